#include "textflag.h"
#include "starter.h"

// starterCode is not called: a file has a copy of its instructions. See starter_text_linux.go.
TEXT ·starterCode(SB), NOSPLIT|NOFRAME, $0-0
	CMPQ 0(SP), $1      // how many arguments there are
	JNE  child
	MOVQ $9, AX         // mmap
	MOVQ $AREA, DI
	MOVQ $AREASIZE, SI
	MOVQ $3, DX         // PROT_READ | PROT_WRITE
	MOVQ $0x11, R10     // MAP_SHARED | MAP_FIXED
	MOVQ $AREAFD, R8
	MOVQ $0, R9
	SYSCALL
	CMPQ AX, $-4095
	JCC  exit
	MOVQ $72, AX        // fcntl
	MOVQ $SOCKET, DI
	MOVQ $2, SI         // F_SETFD
	MOVQ $1, DX         // FD_CLOEXEC
	SYSCALL

closing:
	MOVQ $(SOCKET+1), BX

closeNext:
	MOVQ  $3, AX // close
	MOVQ  BX, DI
	SYSCALL
	INCQ  BX
	TESTQ AX, AX
	JEQ   closeNext

	MOVQ $47, AX         // recvmsg
	MOVQ $SOCKET, DI
	MOVQ $MESSAGE, SI
	MOVQ $CONTROL, 40(SI) // how long the room for descriptors is
	MOVQ $0x40000000, DX // MSG_CMSG_CLOEXEC
	SYSCALL
	CMPQ AX, $1
	JLT  exit

	MOVQ  $435, AX   // clone3
	MOVQ  $CLONE, DI
	MOVQ  $88, SI
	SYSCALL
	TESTQ AX, AX
	JEQ   child

	MOVQ $ANSWER, SI
	MOVQ AX, 0(SI)
	MOVQ $1, AX      // write
	MOVQ $SOCKET, DI
	MOVQ $32, DX
	SYSCALL
	JMP  closing

child:
	MOVQ $CALLS, R12
	MOVQ $0, R13

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
	MOVQ $ANSWER, SI
	MOVQ AX, 8(SI)
	MOVQ R12, 16(SI)
	MOVQ R13, 24(SI)

exit:
	MOVQ $231, AX // exit_group
	MOVQ $127, DI
	SYSCALL

	LONG $END1
	LONG $END2

// func starterAddress() *[maxStarter]byte
TEXT ·starterAddress(SB), NOSPLIT, $0-8
	LEAQ ·starterCode(SB), AX
	MOVQ AX, ret+0(FP)
	RET
