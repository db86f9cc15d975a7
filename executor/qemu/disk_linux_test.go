package qemu_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/layers"
)

// TestLongDisk makes so many steps on a disk of Debian that the chain is squashed, and goes on from it in another machine.
func TestLongDisk(t *testing.T) {
	if !conformance.LongMachines() {
		t.Skip("it boots Debian twice: `make machines` runs it")
	}
	disk, key := conformance.DebianDisk(t)
	st := conformance.OpenStore(t)
	open := func() *qemu.Executor {
		return newExecutor(t, vm.Options{Store: st, BootTimeout: 10 * time.Minute}, guest.Account{Key: key})
	}
	chain := []layers.Layer{conformance.DiskLayer(t, st, disk)}
	e := open()
	defer func() { e.Close() }()
	r, err := e.Open(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	const steps = 27
	for i := range steps {
		var out bytes.Buffer
		p := shell(fmt.Sprintf("read x; echo %d $x >> /log; wc -l < /log", i))
		p.Env = []string{"PATH=/usr/bin:/bin"}
		in, err := os.CreateTemp(t.TempDir(), "")
		if err == nil {
			_, err = in.WriteString("input\n")
		}
		if err == nil {
			_, err = in.Seek(0, io.SeekStart)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.Stdin = in
		if err := r.Run(t.Context(), p, &out); err != nil || strings.TrimSpace(out.String()) != fmt.Sprint(i+1) {
			t.Fatalf("step %d: %q, %v", i, out.String(), err)
		}
		in.Close()
		chain = append(chain, conformance.Freeze(t, r))
	}
	master, tty := conformance.OpenPTY(t)
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}); err != nil {
		t.Fatal(err)
	}
	p := shell("stty size; echo the end; exit 3")
	p.Env, p.Terminal, p.Stdin = []string{"PATH=/usr/bin:/bin"}, true, tty
	err = r.Run(t.Context(), p, io.Discard)
	var exit *executor.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("on a terminal: %v", err)
	}
	if screen := conformance.Screen(t, master, "the end"); !strings.Contains(screen, "33 77") {
		t.Errorf("the terminal shows %q", screen)
	}
	if err := errors.Join(r.Close(), e.Close()); err != nil {
		t.Error(err)
	}
	e = open()
	if r, err = e.Open(t.Context(), chain); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tree, err := r.Files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := fs.ReadFile(tree, "log")
	if lines := strings.Count(string(b), " input\n"); err != nil || lines != steps {
		t.Errorf("the log has %d lines, %v", lines, err)
	}
}
