#include "textflag.h"
#include "loop.h"

// loop is not called: program copies its instructions. See loop_linux.go.
TEXT ·loop(SB), NOSPLIT|NOFRAME, $0-0
	MOV $CALLS, S2
	MOV ZERO, S3

next:
	MOV 0(S2), A7
	MOV 8(S2), A0
	MOV 16(S2), A1
	MOV 24(S2), A2
	MOV 32(S2), A3
	MOV 40(S2), A4
	MOV 48(S2), A5
	ECALL
	MOV  $-4096, T0
	BLTU T0, A0, failed

skip:
	ADD $64, S2
	JMP next

failed:
	NEG  A0, A0
	MOV  $64, T0
	BGEU A0, T0, report
	MOV  56(S2), T1
	SRL  A0, T1, T1
	AND  $1, T1
	BEQZ T1, report
	MOV  $1, T1
	SLL  A0, T1, T1
	OR   T1, S3
	JMP  skip

report:
	ADD $-32, SP
	MOV A0, 0(SP)
	MOV S2, 8(SP)
	MOV S3, 16(SP)
	MOV $64, A7
	MOV $REPORT, A0
	MOV SP, A1
	MOV $24, A2
	ECALL
	MOV $94, A7
	MOV $127, A0
	ECALL

	WORD $END1
	WORD $END2

// func loopAddress() *[maxLoop]byte
TEXT ·loopAddress(SB), NOSPLIT, $0-8
	MOV $·loop(SB), T0
	MOV T0, ret+0(FP)
	RET
