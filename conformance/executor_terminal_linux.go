package conformance

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
)

// Terminal tests what package executor promises of a process on a terminal.
func Terminal(t *testing.T, m ExecutorMaker) {
	b := newRig(t, m)
	r := b.open(t, b.base)
	master, tty := OpenPTY(t)
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	screen := make(chan string)
	go func() {
		var all bytes.Buffer
		buf := make([]byte, 1024)
		for {
			n, err := master.Read(buf)
			all.Write(buf[:n])
			// Ctrl-C interrupts what is in the foreground, if the terminal controls it.
			if bytes.Contains(buf[:n], []byte("waiting")) {
				_, _ = master.WriteString("\x03")
			}
			if err != nil || strings.Contains(all.String(), "the end") {
				break
			}
		}
		screen <- all.String()
	}()
	if _, err := master.WriteString("typed\n"); err != nil { // before anybody reads
		t.Fatal(err)
	}
	p := script("stty size; read x; echo got $x; trap 'i=1; echo interrupted' INT; echo waiting; while [ -z \"$i\" ]; do sleep 0.1; done; exit 3")
	p.Terminal, p.Stdin = true, tty
	p.Limits.Timeout = time.Minute
	err = r.Run(t.Context(), p, io.Discard)
	var exit *executor.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("got %v", err)
	}
	if _, err := tty.WriteString("the end"); err != nil { // wakes the reader
		t.Fatal(err)
	}
	got := <-screen
	for _, want := range []string{"33 77\r\n", "got typed\r\n", "interrupted\r\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("the terminal shows %q, not %q", got, want)
		}
	}
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal is not as it was: %v, %v", after, err)
	}
	p.Stdin = nil
	if err := r.Run(t.Context(), p, io.Discard); err == nil {
		t.Error("a terminal without a terminal")
	}
}

// TerminalEscapes runs what a process may try that has a terminal. Nothing is typed into the user's, which is nobody else's afterwards.
func TerminalEscapes(t *testing.T, m ExecutorMaker) {
	b := newRig(t, m)
	master, tty := OpenPTY(t)
	size := unix.Winsize{Row: 33, Col: 77}
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &size); err != nil {
		t.Fatal(err)
	}
	screen := make(chan string)
	go func() { screen <- Screen(t, master, "the end") }()
	p := script("exec /escape terminal")
	p.Terminal, p.Stdin = true, tty
	if err := b.open(t, b.base, b.escape(t)).Run(t.Context(), p, io.Discard); err != nil {
		t.Error(err)
	}
	if typed, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCINQ); err != nil || typed != 0 {
		t.Errorf("%d bytes are typed into the user's terminal, %v", typed, err)
	}
	if now, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ); err != nil || *now != size {
		t.Errorf("the user's terminal has the size %v, %v", now, err)
	}
	if session, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGSID); err == nil {
		t.Errorf("session %d has the user's terminal", session)
	}
	if _, err := tty.WriteString("the end"); err != nil {
		t.Fatal(err)
	}
	if got := <-screen; !strings.Contains(got, "held\r\n") {
		t.Errorf("the terminal shows %q", got)
	}
}

// Screen is what a terminal shows until some words come.
func Screen(t testing.TB, master *os.File, words string) string {
	t.Helper()
	var all []byte
	for buf := make([]byte, 1024); !bytes.Contains(all, []byte(words)); {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatalf("the terminal shows %q: %v", all, err)
		}
		all = append(all, buf[:n]...)
	}
	return string(all)
}

// OpenPTY opens a pseudo-terminal that ends with the test.
func OpenPTY(t testing.TB) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return master, tty
}
