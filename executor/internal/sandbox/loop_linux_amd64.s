#include "textflag.h"
#include "loop.h"

// loop is not called: program copies its instructions. See loop_linux.go.
TEXT ·loop(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ $CALLS, R12
	XORQ R13, R13

next:
	MOVQ 0(R12), AX
	MOVQ 8(R12), DI
	MOVQ 16(R12), SI
	MOVQ 24(R12), DX
	MOVQ 32(R12), R10
	MOVQ 40(R12), R8
	MOVQ 48(R12), R9
	SYSCALL
	CMPQ AX, $-4095
	JCC  failed

skip:
	ADDQ $64, R12
	JMP  next

failed:
	NEGQ AX
	CMPQ AX, $64
	JCC  report
	MOVQ 56(R12), CX
	BTQ  AX, CX
	JCC  report
	BTSQ AX, R13
	JMP  skip

report:
	SUBQ $24, SP
	MOVQ AX, 0(SP)
	MOVQ R12, 8(SP)
	MOVQ R13, 16(SP)
	MOVQ $1, AX
	MOVQ $REPORT, DI
	MOVQ SP, SI
	MOVQ $24, DX
	SYSCALL
	MOVQ $231, AX
	MOVQ $127, DI
	SYSCALL

	LONG $END1
	LONG $END2

// func loopAddress() *[maxLoop]byte
TEXT ·loopAddress(SB), NOSPLIT, $0-8
	LEAQ ·loop(SB), AX
	MOVQ AX, ret+0(FP)
	RET
