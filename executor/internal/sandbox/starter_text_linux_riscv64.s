#include "textflag.h"
#include "starter.h"

// starterCode is not called: a file has a copy of its instructions. See starter_text_linux.go.
TEXT ·starterCode(SB), NOSPLIT|NOFRAME, $0-0
	MOV  0(X2), T0     // how many arguments there are
	MOV  $1, T1
	BNE  T0, T1, child
	MOV  $222, A7      // mmap
	MOV  $AREA, A0
	MOV  $AREASIZE, A1
	MOV  $3, A2        // PROT_READ | PROT_WRITE
	MOV  $0x11, A3     // MAP_SHARED | MAP_FIXED
	MOV  $AREAFD, A4
	MOV  ZERO, A5
	ECALL
	MOV  $-4096, T0
	BLTU T0, A0, exit
	MOV  $25, A7       // fcntl
	MOV  $SOCKET, A0
	MOV  $2, A1        // F_SETFD
	MOV  $1, A2        // FD_CLOEXEC
	ECALL

closing:
	MOV $(SOCKET+1), S2

closeNext:
	MOV  $57, A7         // close
	MOV  S2, A0
	ECALL
	ADD  $1, S2
	BEQZ A0, closeNext

	MOV  $212, A7        // recvmsg
	MOV  $SOCKET, A0
	MOV  $MESSAGE, A1
	MOV  $CONTROL, A2
	MOV  A2, 40(A1)      // how long the room for descriptors is
	MOV  $0x40000000, A2 // MSG_CMSG_CLOEXEC
	ECALL
	MOV  $1, T0
	BLT  A0, T0, exit

	MOV  $435, A7   // clone3
	MOV  $CLONE, A0
	MOV  $88, A1
	ECALL
	BEQZ A0, child

	MOV $ANSWER, A1
	MOV A0, 0(A1)
	MOV $64, A7     // write
	MOV $SOCKET, A0
	MOV $32, A2
	ECALL
	JMP closing

child:
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
	MOV $ANSWER, A1
	MOV A0, 8(A1)
	MOV S2, 16(A1)
	MOV S3, 24(A1)

exit:
	MOV $94, A7  // exit_group
	MOV $127, A0
	ECALL

	WORD $END1
	WORD $END2

// func starterAddress() *[maxStarter]byte
TEXT ·starterAddress(SB), NOSPLIT, $0-8
	MOV $·starterCode(SB), T0
	MOV T0, ret+0(FP)
	RET
