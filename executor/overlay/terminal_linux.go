package overlay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// openTerminal makes a stdio for a process on a terminal of its own, whose controlling end is joined to tty, the
// user's terminal.
func openTerminal(tty *os.File) (*stdio, error) {
	if tty == nil || !term.IsTerminal(int(tty.Fd())) {
		return nil, errors.New("a process on a terminal needs one as its standard input")
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

// windowSize is a terminal's; nil for what has none.
func windowSize(tty *os.File) *specs.Box {
	if tty == nil {
		return nil
	}
	size, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return nil
	}
	return &specs.Box{Height: uint(size.Row), Width: uint(size.Col)}
}

// session joins a terminal to the controlling end that comes by a socket, until the process has closed its side.
func session(tty, socket *os.File) error {
	files, err := recvFDs(int(socket.Fd()))
	if err != nil || len(files) == 0 {
		return errors.Join(errors.New("no terminal came from the runtime"), err)
	}
	master := files[0]
	defer master.Close()
	saved, err := term.MakeRaw(int(tty.Fd()))
	if err != nil {
		return fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	defer func() { _ = term.Restore(int(tty.Fd()), saved) }()

	resize := func() {
		if size, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ); err == nil {
			_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, size)
		}
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	var running sync.WaitGroup
	done, stop, err := os.Pipe()
	if err != nil {
		signal.Stop(resized)
		return err
	}
	defer func() {
		signal.Stop(resized)
		close(resized)
		stop.Close()
		running.Wait()
		done.Close()
	}()
	resize()
	running.Go(func() {
		for range resized {
			resize()
		}
	})
	running.Go(func() { copyInput(master, tty, done) })
	if _, err := io.Copy(tty, master); err != nil && !errors.Is(err, unix.EIO) { // EIO: nobody has the other end
		return fmt.Errorf("write to the terminal: %w", err)
	}
	return nil
}

// copyInput copies what is typed until done is closed at its other end: not one key after that, for it is the user's shell's.
func copyInput(to, tty, done *os.File) {
	buf := make([]byte, 4096)
	for {
		fds := []unix.PollFd{{Fd: int32(tty.Fd()), Events: unix.POLLIN}, {Fd: int32(done.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(int(tty.Fd()), buf)
		if err != nil || n <= 0 {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
