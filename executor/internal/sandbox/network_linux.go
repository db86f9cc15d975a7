package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Networks makes network namespaces with a loopback interface that is up. One of them takes a quarter of the time of a container, so the next is made
// while a container runs. The zero value is ready.
type Networks struct {
	mu   sync.Mutex
	next chan network // of the one that is being made; nil if there is none
}

type network struct {
	file *os.File
	err  error
}

// take gives a namespace that nobody else has, and has the next made.
func (n *Networks) take() (*os.File, error) {
	n.mu.Lock()
	made := n.next
	n.next = makeNetwork()
	n.mu.Unlock()
	if made != nil {
		if one := <-made; one.err == nil {
			return one.file, nil
		}
		// It may have failed for what is over now.
	}
	one := <-makeNetwork()
	return one.file, one.err
}

// Close lets go of the namespace that nobody took. A supervisor need not call it.
func (n *Networks) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == nil {
		return nil
	}
	one := <-n.next
	n.next = nil
	if one.err != nil {
		return nil // nobody wanted it
	}
	return one.file.Close()
}

func makeNetwork() chan network {
	made := make(chan network, 1)
	go func() {
		// A thread whose namespace is not put back ends with its goroutine.
		runtime.LockOSThread()
		f, back, err := newNetwork()
		if back {
			runtime.UnlockOSThread()
		}
		if err != nil {
			err = fmt.Errorf("make a network namespace: %w", err)
		}
		made <- network{f, err}
	}()
	return made
}

// newNetwork reports whether the thread is back in the namespace that it was in. In a user namespace it cannot: the machine's network is not of that.
func newNetwork() (f *os.File, back bool, err error) {
	const own = "/proc/thread-self/ns/net"
	before, err := os.Open(own)
	if err != nil {
		return nil, true, err
	}
	defer before.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, true, err
	}
	err = loopbackUp()
	f, oerr := os.Open(own)
	back = unix.Setns(int(before.Fd()), unix.CLONE_NEWNET) == nil
	if err = errors.Join(err, oerr); err != nil && f != nil {
		f.Close()
	}
	return f, back, err
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("start the loopback interface: %w", err)
	}
	return nil
}
