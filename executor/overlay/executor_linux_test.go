package overlay_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
	"github.com/ocurrent/obx/layers"
)

func shell(script string) executor.Process {
	return executor.Process{Argv: []string{"/bin/sh", "-c", script}, Dir: "/", Env: []string{"PATH=/bin"}}
}

func openBusybox(t *testing.T, o overlay.Options) executor.Root {
	t.Helper()
	conformance.RequireRoot(t)
	if o.Store == nil {
		o.Store = conformance.OpenStore(t)
	}
	e, err := overlay.New(o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := e.Open(t.Context(), []layers.Layer{conformance.Busybox(t, o.Store)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Close(), e.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestOldMounts runs steps as on a kernel without lowerdir+.
func TestOldMounts(t *testing.T) {
	r := openBusybox(t, overlay.Options{OldMounts: true})
	for _, want := range []string{"", "x\n", "x\nx\n"} {
		var out bytes.Buffer
		p := shell("cat /f 2>/dev/null; echo x >> /f; ls /c; touch /c/f")
		p.Mounts = []executor.Mount{{Target: "/c", Cache: &executor.Cache{Domain: "default", Name: "c"}}}
		if err := r.Run(t.Context(), p, &out); err != nil {
			t.Fatal(err)
		}
		if want != "" {
			want += "f\n"
		}
		if out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
		if _, err := r.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := r.Files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Lstat("f"); err != nil {
		t.Error(err)
	}
	if _, err := tree.Lstat("c"); err == nil {
		t.Error("the mount point of the cache is there")
	}
}

func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, runtime string) { conformance.Terminal(t, maker(runtime)) })
}

func TestTerminalEscapes(t *testing.T) {
	each(t, func(t *testing.T, runtime string) { conformance.TerminalEscapes(t, maker(runtime)) })
}

// TestSupervisorKilled kills the supervisor under a step: that step fails, not as a failed command, and the next one works.
func TestSupervisorKilled(t *testing.T) {
	st := conformance.OpenStore(t)
	r := openBusybox(t, overlay.Options{Store: st})
	done := make(chan error)
	ctx := t.Context()
	go func() { done <- r.Run(ctx, shell("sleep 60"), io.Discard) }()
	var pid int
	for deadline := time.Now().Add(10 * time.Second); pid == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range all {
			b, _ := os.ReadFile(name)
			if args := strings.Split(string(b), "\x00"); len(args) > 1 && args[0] == "sleep" {
				continue
			} else if len(args) > 1 && args[0] == "obx-supervisor" && strings.HasPrefix(args[1], st.Dir()+"/") {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(name)))
			}
		}
	}
	if pid == 0 {
		t.Fatal("there is no supervisor")
	}
	time.Sleep(300 * time.Millisecond)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := <-done
	var exit *executor.ExitError
	if err == nil || errors.As(err, &exit) || !strings.Contains(err.Error(), "supervisor ended") {
		t.Errorf("got %v", err)
	}
	if err := r.Run(ctx, shell("echo x"), io.Discard); err != nil {
		t.Errorf("the next step: %v", err)
	}
}

// TestRuntimeIsMissing asks for one that is not there.
func TestRuntimeIsMissing(t *testing.T) {
	conformance.RequireRoot(t)
	if _, err := overlay.New(overlay.Options{Store: conformance.OpenStore(t), Runtime: "nosuchruntime"}); err == nil || !strings.Contains(err.Error(), "nosuchruntime") {
		t.Errorf("got %v", err)
	}
}

// TestBuiltinFirst has another runtime at hand, which is not called.
func TestBuiltinFirst(t *testing.T) {
	bin := t.TempDir()
	putRuntimes(t, bin, "exit 1", "crun", "runc")
	r := openBusybox(t, overlay.Options{Warn: func(s string) { t.Errorf("warned: %s", s) }})
	if err := r.Run(t.Context(), shell("true"), io.Discard); err != nil {
		t.Fatal(err)
	}
}

// putRuntimes has scripts take the place of runtimes.
func putRuntimes(t *testing.T, bin, script string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

// TestLackingKernel runs TestLacking under a kernel on which the builtin sandbox does not work.
func TestLackingKernel(t *testing.T) {
	conformance.RequireRoot(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestLacking$", "-test.v")
	cmd.Env = append(os.Environ(), lackingVar+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestLacking/Next") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestLacking looks for the runtime that is taken where the builtin sandbox does not work.
func TestLacking(t *testing.T) {
	if os.Getenv(lackingVar) == "" {
		t.Skip("run by TestLackingKernel")
	}
	t.Run("Next", func(t *testing.T) {
		bin := t.TempDir()
		calls := filepath.Join(bin, "calls")
		putRuntimes(t, bin, "echo called >> "+calls+"; echo 'is broken' >&2; exit 1", "crun")
		st := conformance.OpenStore(t)
		var warned []string
		for range 2 {
			r := openBusybox(t, overlay.Options{Store: st, Warn: func(s string) { warned = append(warned, s) }})
			for range 2 {
				if err := r.Run(t.Context(), shell("true"), io.Discard); err != nil {
					t.Fatal(err)
				}
			}
		}
		if b, err := os.ReadFile(calls); err != nil || string(b) != "called\n" {
			t.Errorf("crun was called: %q, %v; want once", b, err)
		}
		if len(warned) != 2 || !strings.Contains(warned[0], "runc") || !strings.Contains(warned[0], "make a program in memory") || warned[1] != warned[0] {
			t.Errorf("warned: %q; want once for each executor, with runc and the reason", warned)
		}
	})
	t.Run("AskedFor", func(t *testing.T) {
		bin := t.TempDir()
		putRuntimes(t, bin, "exit 1", "crun")
		for _, name := range []string{overlay.Builtin, filepath.Join(bin, "crun")} {
			r := openBusybox(t, overlay.Options{Runtime: name})
			var bad *executor.StartError
			if err := r.Run(t.Context(), shell("true"), io.Discard); err == nil || errors.As(err, &bad) {
				t.Errorf("%s: got %v", name, err)
			}
		}
	})
	t.Run("None", func(t *testing.T) {
		putRuntimes(t, t.TempDir(), "exit 1", "crun", "runc")
		r := openBusybox(t, overlay.Options{})
		if err := r.Run(t.Context(), shell("true"), io.Discard); err == nil || !strings.Contains(err.Error(), "steps cannot run here") {
			t.Errorf("got %v", err)
		}
	})
}

func TestHealth(t *testing.T) {
	conformance.RequireRoot(t)
	st := conformance.OpenStore(t)
	seen := map[string]bool{}
	for _, c := range overlay.Health(t.Context(), overlay.Options{Store: st}) {
		t.Logf("%s: %s %v", c.Name, c.Detail, c.Err)
		seen[c.Name] = true
		if c.Err != nil {
			t.Errorf("%s: %v", c.Name, c.Err)
		}
	}
	for _, name := range []string{"rights", "overlayfs", "control groups", "runtime", "mount", "sandbox"} {
		if !seen[name] {
			t.Errorf("nothing is said of %s", name)
		}
	}
	for _, c := range overlay.Health(t.Context(), overlay.Options{Store: st, Runtime: "nosuchruntime"}) {
		if c.Name == "runtime" && c.Err == nil {
			t.Error("a missing runtime is healthy")
		}
	}
	conformance.Leftovers(t, st.Dir(), st.RunID())
}

// TestRootless runs the suite as an ordinary user.
func TestRootless(t *testing.T) { conformance.RunRootless(t, "^TestExecutor$/^builtin$") }

// TestOneOfTwoCloses has two executors on one store: what one of them removes, the other does not need.
func TestOneOfTwoCloses(t *testing.T) {
	conformance.RequireRoot(t)
	st := conformance.OpenStore(t)
	base := conformance.Busybox(t, st)
	run := func(e *overlay.Executor) {
		t.Helper()
		r, err := e.Open(t.Context(), []layers.Layer{base})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := r.Run(t.Context(), shell("true"), io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	stays := newExecutor(t, st)
	goes, err := overlay.New(overlay.Options{Store: st})
	if err != nil {
		t.Fatal(err)
	}
	run(stays)
	run(goes)
	if err := goes.Close(); err != nil {
		t.Fatal(err)
	}
	run(stays)
}

// TestNamedPipe gives a user's process a named pipe as its input, which stays whose it was.
func TestNamedPipe(t *testing.T) {
	r := openBusybox(t, overlay.Options{Runtime: overlay.Builtin})
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if _, err := pipe.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	p := shell("read x; echo $x; echo to > /dev/stdout")
	p.Stdin, p.UID, p.GID = pipe, 1000, 1000
	var out bytes.Buffer
	if err := r.Run(t.Context(), p, &out); err != nil || out.String() != "typed\nto\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if uid := st.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("the pipe is user %d's", uid)
	}
}

// TestRunHere runs a process in the file system of this machine: it changes that, and nothing stays mounted.
func TestRunHere(t *testing.T) {
	conformance.RequireRoot(t)
	mounts := func() string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	st := conformance.OpenStore(t)
	e := newExecutor(t, st)
	before := mounts()
	dir := t.TempDir()
	p := shell("set -e; cd " + dir + "; cat secret/s > seen; hostname >> seen; echo 1 >> /cache/n; cat /cache/n >> seen; echo $$")
	p.Hostname = "here"
	p.Mounts = []executor.Mount{
		{Target: dir + "/secret/s", Secret: &executor.Secret{Data: []byte("a secret\n")}},
		{Target: "/cache", Cache: &executor.Cache{Domain: "default", Name: "c"}},
	}
	for range 2 {
		var out bytes.Buffer
		if err := e.RunHere(t.Context(), p, &out); err != nil || out.String() != "1\n" {
			t.Fatalf("%v: %s", err, out.String())
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "seen")); err != nil || string(b) != "a secret\nhere\n1\n1\n" {
		t.Errorf("the process has written %q, %v", b, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	if _, err := os.Stat("/cache"); err == nil {
		t.Error("the mount point of the cache is there")
	}
	if after := mounts(); after != before && os.Getenv(aloneVar) != "" { // else other tests mount, too
		t.Errorf("mounted are\n%s\nwere\n%s", after, before)
	}
	var exit *executor.ExitError
	if err := e.RunHere(t.Context(), shell("exit 7"), io.Discard); !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("got %v", err)
	}
}

// aloneVar says that the mount namespace is this program's alone.
const aloneVar = "OBX_TEST_ALONE"

// TestSharedHost runs the suite's mounts once more where the host's mounts are shared, as systemd makes them: what is mounted in a step must
// not appear on the host or in another step.
func TestSharedHost(t *testing.T) {
	conformance.RequireRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "shared", exe,
		"-test.run", "^TestExecutor$/^(builtin|runc)$/^(MountPoints|Secrets|CacheShared|CacheSharedPoints|MountsInsideCaches)$|^TestRunHere$")
	cmd.Env = append(os.Environ(), aloneVar+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
