package seccomp

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/userns"
)

// maxTold is how many things Watch tells of: a process can think of any number.
const maxTold = 16

// Watch hears of the calls of a filter with [Options].Watched, whose listener it is given, and lets each go on: listener is not blocking. told gets what a
// call was to make that this user namespace cannot have, each thing once, and not more than 16. Watch ends when all processes under the filter have, or with the deadline of
// the listener.
//
// It judges by numbers alone. A process that changes them afterwards deceives nobody but itself.
func Watch(listener *os.File, told func(what string)) error {
	conn, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for {
		n, err := next(conn)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), err == nil && n.id == 0:
			return nil
		case errors.Is(err, unix.ENOENT): // who called was killed
			continue
		case err != nil:
			return fmt.Errorf("hear of system calls: %w", err)
		}
		if what := n.wanted(); what != "" && len(known) < maxTold && !known[what] {
			known[what] = true
			told(what)
		}
		if err := n.goOn(conn); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("let a system call go on: %w", err)
		}
	}
}

// A notification is struct seccomp_notif.
type notification struct {
	id         uint64 // 0 is none: no process is left
	pid, flags uint32

	// struct seccomp_data
	number int32
	arch   uint32
	ip     uint64
	args   [6]uint64
}

// next waits for a call.
func next(conn syscall.RawConn) (n notification, err error) {
	rerr := conn.Read(func(fd uintptr) bool {
		for {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			_, err = unix.Poll(poll, 0)
			switch events := poll[0].Revents; {
			case err == unix.EINTR:
			case err != nil:
				return true
			case events&unix.POLLIN != 0: // else this would block
				n = notification{} // as the kernel wants it
				if err = ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != unix.EINTR {
					return true
				}
			case events&unix.POLLHUP != 0:
				return true
			case events == 0:
				return false
			}
			// Or POLLERR: a signal came while the kernel looked.
		}
	})
	return n, errors.Join(rerr, err)
}

// goOn has the kernel do the call as if nobody had been asked.
func (n notification) goOn(conn syscall.RawConn) (err error) {
	response := struct {
		id           uint64
		value        int64
		errno, flags int32
	}{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	cerr := conn.Control(func(fd uintptr) { err = ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&response)) })
	return errors.Join(cerr, err)
}

func ioctl(fd uintptr, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// wanted is what a call was to make that only root of the machine can; "" if it is nothing of that.
func (n notification) wanted() string {
	first := 1
	switch name := n.name(); {
	case name == "mknod", name == "mknodat":
		return "a device node"
	case name == "fchownat":
		first = 2
	case !slices.Contains(owned, name):
		return ""
	}
	const nobody = ^uint32(0) // stays who it is
	if uid := uint32(n.args[first]); uid != nobody && !userns.HasUser(int(uid)) {
		return fmt.Sprintf("a file of the user %d", uid)
	}
	if gid := uint32(n.args[first+1]); gid != nobody && !userns.HasGroup(int(gid)) {
		return fmt.Sprintf("a file of the group %d", gid)
	}
	return ""
}

// name is that of the call.
func (n notification) name() string {
	for _, all := range abis {
		for _, a := range all {
			if a.audit != n.arch {
				continue
			}
			for _, name := range append([]string{"mknod", "mknodat", "fchownat"}, owned...) {
				if number, ok := numbers()[a.column][name]; ok && number == uint32(n.number) {
					return name
				}
			}
		}
	}
	return ""
}
