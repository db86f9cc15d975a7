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

// unheard are those of a process that nobody could listen to.
var unheard = &refusals{list: []string{"something that was not seen (obx's own system calls have a listener)"}}

// watch takes the listener from a socket, on which it is by now, and hears of what the process calls. It is nil if the socket has ended without one.
func watch(socket *os.File) (*refusals, error) {
	files, err := recvFDs(int(socket.Fd()))
	if err != nil || files == nil {
		return nil, err
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
	switch {
	case r == nil:
		return nil
	case r.listener == nil:
		return r.list
	}
	_ = r.listener.SetReadDeadline(time.Now())
	<-r.done
	return r.list
}
