package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/layers"
)

func testExecutor(t testing.TB, o vm.Options, account ...guest.Account) *Executor {
	t.Helper()
	conformance.RequireRoot(t)
	o.Kernel = conformance.Kernel(t, "amd64")
	if o.Accel == "" {
		o.Accel = "tcg"
	}
	e, err := New(o, append(account, guest.Account{})[0])
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func script(s string) executor.Process {
	return executor.Process{Argv: []string{"/bin/sh", "-c", s}, Dir: "/", Env: []string{"PATH=/bin"}}
}

// wantFault runs a process in a new machine, which must fail for a reason that the error names, and leave no machine.
func wantFault(t *testing.T, e *Executor, p executor.Process, want string) {
	t.Helper()
	r, err := e.Open(t.Context(), []layers.Layer{conformance.Busybox(t, e.options.Store)})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Run(t.Context(), p, io.Discard)
	var exit *executor.ExitError
	var start *executor.StartError
	if err == nil || errors.As(err, &exit) || errors.As(err, &start) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	if n := len(children(t, os.Getpid())); n > 0 {
		t.Errorf("there are %d machines", n)
	}
	if err := errors.Join(r.Close(), e.Close()); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(e.options.Store.TempDir())
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestNeverBoots(t *testing.T) {
	e := testExecutor(t, vm.Options{Store: conformance.OpenStore(t), NoState: true, BootTimeout: 300 * time.Millisecond})
	wantFault(t, e, script("true"), "did not boot within 300ms")
}

// A machine that stands still is not waited for, whatever its process was to do.
func TestHang(t *testing.T) {
	e := testExecutor(t, vm.Options{Store: conformance.OpenStore(t), NoState: true})
	defer e.Close()
	r, err := e.Open(t.Context(), []layers.Layer{conformance.Busybox(t, e.options.Store)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Run(t.Context(), script("true"), io.Discard); err != nil {
		t.Fatal(err)
	}
	r.(*openedRoot).files.m.Agent.Patience = 300 * time.Millisecond
	for _, pid := range children(t, os.Getpid()) {
		n, err := strconv.Atoi(pid)
		if err == nil {
			err = unix.Kill(n, unix.SIGSTOP)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Run(t.Context(), script("true"), io.Discard); err == nil || !strings.Contains(err.Error(), "it has said nothing for 300ms") {
		t.Errorf("got %v", err)
	}
}

func TestNoMachine(t *testing.T) {
	e := testExecutor(t, vm.Options{Store: conformance.OpenStore(t), NoState: true, CPUs: 4096})
	wantFault(t, e, script("true"), "the machine has ended (exit status 1): ")
}

// TestFullDisk has a store that a machine can fill.
func TestFullDisk(t *testing.T) {
	conformance.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	st, err := cas.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	e := testExecutor(t, vm.Options{Store: st, NoState: true})
	wantFault(t, e, script("dd if=/dev/urandom of=/f bs=1M count=300; sync"), "the host's disk is full")
}

// TestStateThatDoesNotWork goes on from a saved machine that is broken: a machine boots, and there is one warning.
func TestStateThatDoesNotWork(t *testing.T) {
	var warned []string
	st := conformance.OpenStore(t)
	e := testExecutor(t, vm.Options{Store: st, Warn: func(s string) { warned = append(warned, s) }})
	defer e.Close()
	base := conformance.Busybox(t, st)
	for i := range 3 {
		r, err := e.Open(t.Context(), []layers.Layer{base})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := r.Run(t.Context(), script("echo works"), &out); err != nil || out.String() != "works\n" {
			t.Errorf("%q, %v", out.String(), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if i > 0 {
			continue
		}
		saved, err := filepath.Glob(filepath.Join(st.Dir(), vm.StateDir, "*", "devices"))
		if err != nil || len(saved) != 1 {
			t.Fatalf("saved are %q, %v", saved, err)
		}
		if err := os.Truncate(saved[0], 1000); err != nil {
			t.Fatal(err)
		}
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "the saved one does not go on") {
		t.Errorf("warnings: %q", warned)
	}
}

// TestCopiesDiffer has two machines that go on from one: their clocks are right, and they draw other random numbers.
func TestCopiesDiffer(t *testing.T) {
	st := conformance.OpenStore(t)
	e := testExecutor(t, vm.Options{Store: st, Warn: func(s string) { t.Error(s) }})
	defer e.Close()
	base := conformance.Busybox(t, st)
	drawn := map[string]bool{}
	for range 2 {
		r, err := e.Open(t.Context(), []layers.Layer{base})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := r.Run(t.Context(), script("date +%s; head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid"), &out); err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(out.String())
		var now int64
		if _, err := fmt.Sscan(lines[0], &now); err != nil || time.Since(time.Unix(now, 0)).Abs() > 20*time.Second {
			t.Errorf("its clock says %s", lines[0])
		}
		for _, l := range []string{lines[1], lines[3]} {
			if drawn[l] {
				t.Errorf("%s was drawn twice", l)
			}
			drawn[l] = true
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// children are the processes that one has started.
func children(t *testing.T, pid int) (pids []string) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range found {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) > 1 && fields[1] == fmt.Sprint(pid) && fields[0] != "Z" && bytes.Contains(b, []byte("(qemu-system")) {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	return pids
}

// victimVar makes this test's program one that runs a step until it is killed: STORE,LAYER.
const victimVar = "OBX_TEST_VICTIM"

func victim(dir, base string) error {
	st, err := cas.Open(dir)
	if err != nil {
		return err
	}
	e, err := New(vm.Options{Store: st, Accel: "tcg", Kernel: os.Getenv("OBX_QEMU_KERNEL")}, guest.Account{})
	if err != nil {
		return err
	}
	r, err := e.Open(context.Background(), []layers.Layer{{Dir: base}})
	if err != nil {
		return err
	}
	return r.Run(context.Background(), script("echo running; sleep 1000"), os.Stdout)
}

func TestMain(m *testing.M) {
	if store, base, ok := strings.Cut(os.Getenv(victimVar), ","); ok {
		fmt.Fprintln(os.Stderr, victim(store, base))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestKill kills a process that owns machines: at once, while one is booted to be saved, and while a step runs.
func TestKill(t *testing.T) {
	conformance.RequireRoot(t)
	dir := t.TempDir()
	st, err := cas.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	base, err := layers.Unpack(t.Context(), st, conformance.Busybox(t, st))
	if err == nil {
		err = st.PutResult("default", &cas.Result{Key: "base", Layers: []string{base.Dir}})
	}
	if err = errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"booting", "running"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), victimVar+"="+dir+","+base.Dir, "OBX_QEMU_KERNEL="+conformance.Kernel(t, "amd64"))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var machines []string
		if when == "running" {
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "running\n" {
				t.Errorf("the victim says %q, %v", line, err)
			}
		}
		for deadline := time.Now().Add(30 * time.Second); len(machines) == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			machines = children(t, cmd.Process.Pid)
		}
		if len(machines) == 0 {
			t.Errorf("%s: there is no machine", when)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for _, pid := range machines {
			gone := false
			for deadline := time.Now().Add(5 * time.Second); !gone && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				b, err := os.ReadFile("/proc/" + pid + "/cmdline")
				gone = err != nil || len(b) == 0
			}
			if !gone {
				t.Errorf("%s: the machine %s lives", when, pid)
			}
		}
	}
	// The next one finds nothing of them in its way.
	st, err = cas.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	left, err := os.ReadDir(filepath.Dir(st.TempDir()))
	if err != nil || len(left) > 1 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
