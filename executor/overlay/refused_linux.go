package overlay

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/seccomp"
)

// refusals are what a process in a user namespace wanted to make, and could not, as that takes root of the machine.
type refusals struct {
	listener *os.File // of the process's filter
	done     chan struct{}
	list     []string // when done is closed
}

// watch takes the listener from a socket, on which it is by now, and hears of what the process calls.
func watch(socket *os.File) (*refusals, error) {
	files, err := recvFDs(int(socket.Fd()))
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		return nil, errors.New("the filter of system calls has no listener")
	}
	defer files[0].Close()
	fd, err := unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // before it is a File: that can be waited for then
		return nil, errors.Join(err, unix.Close(fd))
	}
	r := &refusals{listener: os.NewFile(uintptr(fd), "listener"), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer r.listener.Close() // whoever calls then gets an error, and does not wait
		if err := seccomp.Watch(r.listener, func(what string) { r.list = append(r.list, what) }); err != nil {
			r.list = append(r.list, "something ("+err.Error()+")")
		}
	}()
	return r, nil
}

// all gives them when the process has ended.
func (r *refusals) all() []string {
	if r == nil {
		return nil
	}
	_ = r.listener.SetReadDeadline(time.Now())
	<-r.done
	return r.list
}
