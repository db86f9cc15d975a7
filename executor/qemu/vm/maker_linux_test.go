package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
)

func testMaker(t testing.TB, o Options) *Maker {
	t.Helper()
	conformance.RequireRoot(t)
	if o.Arch == "" {
		o.Arch = "amd64"
	}
	o.Kernel = conformance.Kernel(t, o.Arch)
	if o.Accel == "" {
		o.Accel = "tcg"
	}
	k, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// wantFault makes a machine, which must fail for a reason that the error names, and leave nothing.
func wantFault(t *testing.T, k *Maker, want string) {
	t.Helper()
	if m, err := k.Machine(t.Context(), k.options.Memory); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, %v; want %q", m, err, want)
	}
	if len(k.machines) > 0 {
		t.Errorf("there are %d machines", len(k.machines))
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(k.options.Store.TempDir())
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// TestNoStates looks for a machine where none can be saved: each caller is told, at once.
func TestNoStates(t *testing.T) {
	k := testMaker(t, Options{Store: conformance.OpenStore(t), BootTimeout: 300 * time.Millisecond})
	defer k.Close()
	if err := k.getReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, first := k.state(t.Context(), k.options.Memory)
	if first == nil || !strings.Contains(first.Error(), "did not boot") {
		t.Errorf("got %v", first)
	}
	if s, err := k.state(t.Context(), k.options.Memory); s != nil || err != first {
		t.Errorf("it is tried again: %v, %v", s, err)
	}
	// Who is cancelled does not wait for who saves one.
	if err := k.saving.Acquire(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	defer k.saving.Release(1)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	cancel(why)
	if _, err := k.state(ctx, 1); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

// TestOldStates drops what an earlier boot of the host has saved, and what nobody has used for long.
func TestOldStates(t *testing.T) {
	st := conformance.OpenStore(t)
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{boot + "-used", boot + "-unused", "0123456789abcdef-used"} {
		if err := os.MkdirAll(filepath.Join(st.Dir(), StateDir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-maxStateAge - time.Hour)
	if err := os.Chtimes(filepath.Join(st.Dir(), StateDir, boot+"-unused"), old, old); err != nil {
		t.Fatal(err)
	}
	(&Maker{options: Options{Store: st}}).dropOldStates()
	left, err := os.ReadDir(filepath.Join(st.Dir(), StateDir))
	if err != nil || len(left) != 1 || left[0].Name() != boot+"-used" {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestKernelPanic(t *testing.T) {
	k := testMaker(t, Options{Store: conformance.OpenStore(t), NoState: true})
	if err := k.getReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(k.initrd, 0); err != nil { // there is no first process
		t.Fatal(err)
	}
	wantFault(t, k, "kernel has crashed: Kernel panic")
}

// A machine that may sleep for good while it boots is booted twice.
func TestBootsTwice(t *testing.T) {
	conformance.RequireRoot(t)
	const limit = 400 * time.Millisecond
	k, err := New(Options{Store: conformance.OpenStore(t), Arch: timeless, Kernel: conformance.Kernel(t, timeless), BootTimeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	wantFault(t, k, "did not boot within 400ms")
	if took := time.Since(start); took < limit+limit/2 {
		t.Errorf("it took %v", took)
	}
}

// QEMU's descriptors are numbered in the order of the devices that have them.
func TestArguments(t *testing.T) {
	open := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	show := func(fd []int) []string { return []string{fmt.Sprint(fd)} }
	list := []device{
		{"one", []*os.File{open()}, show}, {"none", nil, fixed("-x", "y")}, {"two", []*os.File{open(), open()}, show}, {"last", []*os.File{open()}, show},
	}
	args, files := arguments(list)
	if got := strings.Join(args, " "); got != "[3] -x y [4 5] [6]" {
		t.Errorf("the arguments are %s", got)
	}
	if len(files) != 4 || files[1] != list[2].files[0] || files[3] != list[3].files[0] {
		t.Errorf("the files are %v", files)
	}
}

// A port that somebody else takes before QEMU does is not the machine's fault.
func TestPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free := freeAddress
	defer func() { freeAddress = free }()
	asked := 0
	freeAddress = func() (string, error) {
		if asked++; asked < 3 {
			return taken.Addr().String(), nil
		}
		return free()
	}
	k := testMaker(t, Options{Store: conformance.OpenStore(t)})
	defer k.Close()
	disk := filepath.Join(t.TempDir(), "empty.qcow2")
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
	m, addr, err := k.FromDisk(t.Context(), Disk{Files: []string{disk}, Memory: k.options.Memory, SSHPort: 22})
	if err != nil || asked != 3 || addr == taken.Addr().String() {
		t.Fatalf("after %d ports: %s, %v", asked, addr, err)
	}
	m.Close()
}

// TestAccel tries KVM, whatever it is here, and remembers.
func TestAccel(t *testing.T) {
	st := conformance.OpenStore(t)
	var first string
	for i := range 2 {
		k := testMaker(t, Options{Store: st, Accel: "auto"})
		start := time.Now()
		if err := k.getReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s after %v", k.accel, time.Since(start))
		if i == 0 {
			first = k.accel
		} else if _, err := os.Stat(filepath.Join(st.Dir(), accelFile)); err == nil && time.Since(start) > kvmPatience || k.accel != first {
			t.Errorf("the second time %s, after %v", k.accel, time.Since(start))
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What KVM did is remembered, and what the host lacked at that moment is not.
func TestLastingFaults(t *testing.T) {
	for _, test := range []struct {
		script, words string
		want          bool
	}{
		{"exit 1", "failed to set MSR", true},
		{"kill -ABRT $$", "Assertion failed", true},
		{"kill -KILL $$", "", false},
		{"exit 1", "cannot set up guest memory", false},
		{"exit 1", "Device or resource busy", false},
	} {
		err := &endError{exec.Command("sh", "-c", test.script).Run(), errors.New(test.words)}
		if err.lasts() != test.want {
			t.Errorf("%v: it lasts: %v", err, err.lasts())
		}
	}
}
