#include "textflag.h"
#include "loop.h"

// loop is not called: program copies its instructions. See loop_linux.go.
TEXT ·loop(SB), NOSPLIT|NOFRAME, $0-0
	MOVD $CALLS, R19
	MOVD $0, R20

next:
	MOVD 0(R19), R8
	MOVD 8(R19), R0
	MOVD 16(R19), R1
	MOVD 24(R19), R2
	MOVD 32(R19), R3
	MOVD 40(R19), R4
	MOVD 48(R19), R5
	SVC
	CMN  $4095, R0
	BCS  failed

skip:
	ADD $64, R19
	B   next

failed:
	NEG R0, R0
	CMP $64, R0
	BCS report
	MOVD 56(R19), R1
	LSR  R0, R1, R1
	TBZ  $0, R1, report
	MOVD $1, R1
	LSL  R0, R1, R1
	ORR  R1, R20, R20
	B    skip

report:
	SUB  $32, RSP
	MOVD R0, 0(RSP)
	MOVD R19, 8(RSP)
	MOVD R20, 16(RSP)
	MOVD $64, R8
	MOVD $REPORT, R0
	MOVD RSP, R1
	MOVD $24, R2
	SVC
	MOVD $94, R8
	MOVD $127, R0
	SVC

	WORD $END1
	WORD $END2

// func loopAddress() *[maxLoop]byte
TEXT ·loopAddress(SB), NOSPLIT, $0-8
	MOVD $·loop(SB), R0
	MOVD R0, ret+0(FP)
	RET
