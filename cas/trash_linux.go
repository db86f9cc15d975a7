package cas

import "golang.org/x/sys/unix"

// lowerPriority makes this thread give way to all others, for the processor and the disk.
func lowerPriority() {
	const (
		whoProcess = 1       // IOPRIO_WHO_PROCESS; with 0, this thread
		idleClass  = 3 << 13 // IOPRIO_CLASS_IDLE
	)
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, idleClass)
}
