#include "textflag.h"
#include "starter.h"

// starterCode is not called: a file has a copy of its instructions. See starter_text_linux.go.
TEXT ·starterCode(SB), NOSPLIT|NOFRAME, $0-0
	MOVD 0(RSP), R0    // how many arguments there are
	CMP  $1, R0
	BNE  child
	MOVD $222, R8      // mmap
	MOVD $AREA, R0
	MOVD $AREASIZE, R1
	MOVD $3, R2        // PROT_READ | PROT_WRITE
	MOVD $0x11, R3     // MAP_SHARED | MAP_FIXED
	MOVD $AREAFD, R4
	MOVD $0, R5
	SVC
	CMN  $4095, R0
	BCS  exit
	MOVD $25, R8       // fcntl
	MOVD $SOCKET, R0
	MOVD $2, R1        // F_SETFD
	MOVD $1, R2        // FD_CLOEXEC
	SVC

closing:
	MOVD $(SOCKET+1), R19

closeNext:
	MOVD $57, R8         // close
	MOVD R19, R0
	SVC
	ADD  $1, R19
	CBZ  R0, closeNext

	MOVD $212, R8        // recvmsg
	MOVD $SOCKET, R0
	MOVD $MESSAGE, R1
	MOVD $CONTROL, R2
	MOVD R2, 40(R1)      // how long the room for descriptors is
	MOVD $0x40000000, R2 // MSG_CMSG_CLOEXEC
	SVC
	CMP  $1, R0
	BLT  exit

	MOVD $435, R8   // clone3
	MOVD $CLONE, R0
	MOVD $88, R1
	SVC
	CBZ  R0, child

	MOVD $ANSWER, R1
	MOVD R0, 0(R1)
	MOVD $64, R8     // write
	MOVD $SOCKET, R0
	MOVD $32, R2
	SVC
	B    closing

child:
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
	MOVD $ANSWER, R1
	MOVD R0, 8(R1)
	MOVD R19, 16(R1)
	MOVD R20, 24(R1)

exit:
	MOVD $94, R8  // exit_group
	MOVD $127, R0
	SVC

	WORD $END1
	WORD $END2

// func starterAddress() *[maxStarter]byte
TEXT ·starterAddress(SB), NOSPLIT, $0-8
	MOVD $·starterCode(SB), R0
	MOVD R0, ret+0(FP)
	RET
