package rootfs

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

// IsTerminal reports whether a process can be run on a terminal joined to f.
func IsTerminal(f *os.File) error {
	if f == nil || !term.IsTerminal(int(f.Fd())) {
		return errors.New("a process on a terminal needs one as its standard input")
	}
	return nil
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

// JoinTerminal joins a terminal to the controlling end of a process's own, until the process has closed its side.
func JoinTerminal(tty *os.File, master io.ReadWriter, setSize func(*unix.Winsize)) error {
	saved, err := term.MakeRaw(int(tty.Fd()))
	if err != nil {
		return fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	defer func() { _ = term.Restore(int(tty.Fd()), saved) }()

	resize := func() {
		if size, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ); err == nil {
			setSize(size)
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
	running.Go(func() { CopyInput(master, tty, done) })
	if _, err := io.Copy(tty, master); err != nil && !errors.Is(err, unix.EIO) { // EIO: nobody has the other end
		return fmt.Errorf("write to the terminal: %w", err)
	}
	return nil
}

// CopyInput copies what is typed until done is closed at its other end: not one key after that, for it is the user's shell's.
func CopyInput(to io.Writer, tty, done *os.File) {
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
