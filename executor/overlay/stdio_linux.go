package overlay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
)

// drainGrace is how long output may come after the end of all processes. Only a descriptor that was sent out of the sandbox
// (possible with the host's network) keeps a pipe open.
const drainGrace = time.Second

// stdio is where a process's input comes from and its output goes.
type stdio struct {
	stdin, stdout *os.File // the process's own ends, or for a terminal the socket that its controlling end comes by

	copy  func() error // copies until the end of the output; called when the process has started
	ended func()       // called when the process has ended
	close func()
}

// openStdio makes the ends of a process's input and output. The caller closes it.
func openStdio(p executor.Process, out io.Writer) (*stdio, error) {
	if p.Terminal {
		return openTerminal(p.Stdin)
	}
	var stdin *os.File
	var err error
	if p.Stdin != nil {
		stdin, err = dup(p.Stdin)
	} else {
		stdin, err = emptyInput()
	}
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	// One pipe for output and errors keeps their order.
	pipe, stdout, err := newPipe(true)
	if err != nil {
		stdin.Close()
		return nil, fmt.Errorf("output pipe: %w", err)
	}
	return &stdio{
		stdin:  stdin,
		stdout: stdout,
		copy: func() error {
			_, err := io.Copy(out, pipe)
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("write the log: %w", err)
			}
			return nil
		},
		ended: func() { _ = pipe.SetReadDeadline(time.Now().Add(drainGrace)) },
		close: func() { stdin.Close(); stdout.Close(); pipe.Close() },
	}, nil
}

// emptyInput is a pipe that nobody writes to.
func emptyInput() (*os.File, error) {
	r, w, err := newPipe(false)
	if err != nil {
		return nil, err
	}
	return r, w.Close()
}

// newPipe is os.Pipe, but ends that a process takes are not made ready for Go to poll, which takes three more calls for each.
func newPipe(read bool) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	if read {
		err = unix.SetNonblock(p[0], true)
	}
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), err
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
