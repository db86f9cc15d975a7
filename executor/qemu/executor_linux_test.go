package qemu_test

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

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu"
	"github.com/ocurrent/obx/layers"
)

func shell(script string) executor.Process {
	return executor.Process{Argv: []string{"/bin/sh", "-c", script}, Dir: "/", Env: []string{"PATH=/bin"}}
}

func newExecutor(t testing.TB, o qemu.Options) *qemu.Executor {
	t.Helper()
	conformance.RequireRoot(t)
	o.Kernel = conformance.Kernel(t, "amd64")
	if o.Accel == "" {
		o.Accel = "tcg"
	}
	e, err := qemu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// allVar has the whole suite run: half an hour where processors are emulated.
const allVar = "OBX_TEST_MACHINES"

// essential are the tests of the suite that look at what is done here in another way than in package overlay, which runs in the machine
// as it does outside: how files go in and come out, the process's sandbox, the network, input, caches, the end of machines.
var essential = []string{
	"RunWritesFile", "Whiteout", "OpaqueDirectory", "FailureDropsChanges", "TwoRunsOneFreeze", "Add", "NoLayers", "Cancel", "Timeout",
	"OutputOrder", "Stdin", "NetworkHost", "Privileges", "SystemMounts", "Seccomp", "MemoryLimit", "HardLinks", "SpecialFiles",
	"MountPoints", "Secrets", "CacheKeepsChanges", "CacheShared",
}

func TestExecutor(t *testing.T) {
	conformance.RequireRoot(t)
	only := essential
	if os.Getenv(allVar) == "all" {
		only = nil
	}
	conformance.Executor(t, conformance.ExecutorMaker{
		Sandbox: true,
		Machine: true,
		Only:    only,
		New: func(t testing.TB, st *cas.Store) executor.Executor {
			return newExecutor(t, qemu.Options{Store: st})
		},
	})
}

// TestTerminal runs a process on a terminal of the machine, which is joined to one here.
func TestTerminal(t *testing.T) {
	st := conformance.OpenStore(t)
	e := newExecutor(t, qemu.Options{Store: st})
	defer e.Close()
	r, err := e.Open(t.Context(), []layers.Layer{conformance.Busybox(t, st)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	master, tty := openPTY(t)
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
	p := shell("stty size; read x; echo got $x; trap 'i=1; echo interrupted' INT; echo waiting; while [ -z \"$i\" ]; do sleep 0.1; done; exit 3")
	p.Terminal, p.Stdin = true, tty
	p.Limits.Timeout = 2 * time.Minute
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
}

func openPTY(t *testing.T) (master, tty *os.File) {
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
