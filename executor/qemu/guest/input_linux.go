package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// An input sends what a process reads: a file, or what is typed at the user's terminal. Every input that was opened
// sends exactly one end.
type input struct {
	file    *os.File // nil: there is none
	to      inputEnd
	saved   *term.State
	resized chan os.Signal
	stop    *os.File // closing it stops the reader
	running sync.WaitGroup

	mu    sync.Mutex
	ended bool
}

// inputPatience is what a machine has to take what was sent before its process ended.
const inputPatience = 2 * time.Second

// An inputEnd is where an input goes.
type inputEnd struct {
	put    func([]byte) error
	end    func() error
	within func(time.Duration)           // limits what is on its way, if that may be held up for good; 0 takes the limit away
	resize func(rows, cols uint16) error // of a terminal
}

// portInput goes to the agent.
func portInput(port net.Conn) inputEnd {
	return inputEnd{
		within: func(d time.Duration) {
			var limit time.Time
			if d > 0 {
				limit = time.Now().Add(d)
			}
			_ = port.SetWriteDeadline(limit)
		},
		put: func(b []byte) error { return wire.Write(port, wire.KindInput, b) },
		end: func() error { return wire.Write(port, wire.KindInput, nil) },
		resize: func(rows, cols uint16) error {
			return wire.WriteJSON(port, wire.KindSize, wire.WindowSize{Rows: rows, Cols: cols})
		},
	}
}

func openInput(p executor.Process, to inputEnd) (*input, error) {
	in := &input{file: p.Stdin, to: to}
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
				_ = in.send(func() error { return in.to.resize(rows, cols) })
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
		if in.send(func() error { return in.to.put(buf[:n]) }) != nil {
			return
		}
	}
}

// send does something before the end.
func (in *input) send(do func() error) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended {
		return io.ErrClosedPipe
	}
	return do()
}

// end tells the machine that nothing more comes.
func (in *input) end() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended || in.file == nil {
		return nil
	}
	in.ended = true
	return in.to.end()
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
	if in.to.within != nil {
		in.to.within(inputPatience)
		defer in.to.within(0)
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
