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
