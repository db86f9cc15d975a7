package overlay

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/rootfs"
)

// openTerminal makes a stdio for a process on a terminal of its own, whose controlling end is joined to tty, the
// user's terminal.
func openTerminal(tty *os.File) (*stdio, error) {
	if err := rootfs.IsTerminal(tty); err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	stdin, err := emptyInput() // not used: the runtime gives the process its terminal
	if err != nil {
		ours.Close()
		theirs.Close()
		return nil, err
	}
	return &stdio{
		stdin:  stdin,
		stdout: theirs,
		copy:   func() error { return session(tty, ours) },
		ended:  func() {},
		close:  func() { stdin.Close(); ours.Close(); theirs.Close() },
	}, nil
}

// session joins a terminal to the controlling end that comes by a socket.
func session(tty, socket *os.File) error {
	files, err := recvFDs(int(socket.Fd()))
	if err != nil || len(files) == 0 {
		return errors.Join(errors.New("no terminal came from the runtime"), err)
	}
	master := files[0]
	defer master.Close()
	return rootfs.JoinTerminal(tty, master, func(size *unix.Winsize) {
		_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, size)
	})
}
