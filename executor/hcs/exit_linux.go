package hcs

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/rootfs"
)

// A watch learns how a process has ended. containerd gives one number for it, 128 and the signal's for a process that a
// signal has killed, which is what a shell gives for a child of its own too. Linux tells the difference to who holds a descriptor
// of the process (since 6.15); before that, only what we have killed ourselves is known.
type watch struct{ pidfd int }

func newWatch(pid uint32) (*watch, error) {
	fd, err := unix.PidfdOpen(int(pid), 0)
	if errors.Is(err, unix.ENOSYS) {
		return &watch{-1}, nil
	}
	return &watch{fd}, err
}

// killPatience is how long a process may take to its end after SIGKILL.
const killPatience = 10 * time.Second

// pidfdInfo is struct pidfd_info of Linux 6.15.
type pidfdInfo struct {
	mask, cgroup uint64
	ids          [11]uint32
	exit         int32
}

const (
	pidfdGetInfo  = 3<<30 | uint32(unsafe.Sizeof(pidfdInfo{}))<<16 | 0xff<<8 | 11 // _IOWR(0xff, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3
)

// exit says how the process has ended, of which containerd says status. killed says that it was told to kill it.
func (w *watch) exit(status uint32, killed bool) rootfs.Exit {
	x := rootfs.Exit{Code: int(status)}
	if killed && status == 128+uint32(unix.SIGKILL) {
		x = rootfs.Exit{Signal: int(unix.SIGKILL)}
	}
	if w.pidfd < 0 {
		return x
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(w.pidfd), uintptr(pidfdGetInfo), uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return x
	}
	if ws := unix.WaitStatus(info.exit); ws.Signaled() {
		return rootfs.Exit{Signal: int(ws.Signal())}
	}
	return x
}

// end is called when containerd says that the process has ended. It says so of one that has its shim trace it (PTRACE_TRACEME) and stops, too: that is
// killed, for it and all that it has started would outlive the step. It is an error if it lives on.
func (w *watch) end() error {
	if w.pidfd < 0 || w.ended(0) {
		return nil
	}
	if err := unix.PidfdSendSignal(w.pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill a process that containerd took for ended: %w", err)
	}
	if !w.ended(killPatience) {
		return fmt.Errorf("a process that was killed has not ended within %s", killPatience)
	}
	return nil
}

// ended waits until the process has ended, and reports whether it has.
func (w *watch) ended(patience time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(w.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if err != unix.EINTR {
			return err != nil || n > 0
		}
	}
}

func (w *watch) close() {
	if w.pidfd >= 0 {
		unix.Close(w.pidfd)
	}
}
