package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// An input sends what a process reads: a file, or what is typed at the user's terminal. Every input that was opened
// sends exactly one end.
type input struct {
	file    *os.File // nil: there is none
	saved   *term.State
	resized chan os.Signal
	stop    *os.File // closing it stops the reader
	running sync.WaitGroup

	mu    sync.Mutex
	port  io.Writer
	ended bool
}

func openInput(p executor.Process, port io.Writer) (*input, error) {
	in := &input{file: p.Stdin, port: port}
	if p.Terminal && (p.Stdin == nil || !term.IsTerminal(int(p.Stdin.Fd()))) {
		return nil, errors.New("a process on a terminal needs one as its standard input")
	}
	if p.Stdin == nil {
		return in, nil
	}
	done, stop, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	in.stop = stop
	if p.Terminal {
		if in.saved, err = term.MakeRaw(int(p.Stdin.Fd())); err != nil {
			done.Close()
			stop.Close()
			return nil, fmt.Errorf("set the terminal to raw mode: %w", err)
		}
		in.resized = make(chan os.Signal, 1)
		signal.Notify(in.resized, unix.SIGWINCH)
		in.running.Go(func() {
			for range in.resized {
				rows, cols := in.size()
				if b, err := json.Marshal(wire.WindowSize{Rows: rows, Cols: cols}); err == nil {
					_ = in.send(wire.KindSize, b)
				}
			}
		})
	}
	in.running.Go(func() {
		defer done.Close()
		in.read(done)
	})
	return in, nil
}

// read sends what comes until its end, or until done is closed at its other end: not one key after that, for it is
// the user's shell's.
func (in *input) read(done *os.File) {
	buf := make([]byte, 32<<10)
	for {
		fds := []unix.PollFd{{Fd: int32(in.file.Fd()), Events: unix.POLLIN}, {Fd: int32(done.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(int(in.file.Fd()), buf)
		if err != nil || n <= 0 {
			_ = in.end()
			return
		}
		if in.send(wire.KindInput, buf[:n]) != nil {
			return
		}
	}
}

func (in *input) send(k wire.Kind, b []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended {
		return io.ErrClosedPipe
	}
	return wire.Write(in.port, k, b)
}

// end tells the machine that nothing more comes.
func (in *input) end() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended || in.file == nil {
		return nil
	}
	in.ended = true
	return wire.Write(in.port, wire.KindInput, nil)
}

// size is the terminal's.
func (in *input) size() (rows, cols uint16) {
	size, err := unix.IoctlGetWinsize(int(in.file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return size.Row, size.Col
}

// close gives the terminal back. The machine may be gone.
func (in *input) close() {
	if in.file == nil {
		return
	}
	in.mu.Lock()
	in.ended = true
	in.mu.Unlock()
	if in.resized != nil {
		signal.Stop(in.resized)
		close(in.resized)
	}
	in.stop.Close()
	in.running.Wait()
	if in.saved != nil {
		_ = term.Restore(int(in.file.Fd()), in.saved)
	}
}
