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
		o.Store = newStore(t)
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
	conformance.RequireRoot(t)
	conformance.Terminal(t, maker)
}

// TestSupervisorKilled kills the supervisor under a step: that step fails, not as a failed command, and the next one works.
func TestSupervisorKilled(t *testing.T) {
	st := newStore(t)
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

// TestRuntime looks for runtimes that are missing, broken, and found out to work.
func TestRuntime(t *testing.T) {
	conformance.RequireRoot(t)
	st := newStore(t)
	if _, err := overlay.New(overlay.Options{Store: st, Runtime: "nosuchruntime"}); err == nil || !strings.Contains(err.Error(), "nosuchruntime") {
		t.Errorf("a missing runtime: %v", err)
	}
	t.Run("BrokenFirst", func(t *testing.T) {
		bin := t.TempDir()
		calls := filepath.Join(bin, "calls")
		broken := "#!/bin/sh\necho called >> " + calls + "\necho 'is broken' >&2\nexit 1\n"
		if err := os.WriteFile(filepath.Join(bin, "crun"), []byte(broken), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		for range 2 {
			r := openBusybox(t, overlay.Options{Store: st})
			if err := r.Run(t.Context(), shell("true"), io.Discard); err != nil {
				t.Fatal(err)
			}
		}
		if b, err := os.ReadFile(calls); err != nil || string(b) != "called\n" {
			t.Errorf("crun was called: %q, %v; want once", b, err)
		}
		r := openBusybox(t, overlay.Options{Store: st, Runtime: filepath.Join(bin, "crun")})
		var bad *executor.StartError
		if err := r.Run(t.Context(), shell("true"), io.Discard); err == nil || errors.As(err, &bad) {
			t.Errorf("a broken runtime that was asked for: %v", err)
		}
	})
	for name, programs := range map[string][]string{"NoneWorks": {"crun", "runc"}, "TheOnlyOneDoesNotWork": {"runc"}} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath("crun"); err == nil && len(programs) == 1 {
				t.Skip("crun is installed, too")
			}
			bin := t.TempDir()
			for _, name := range programs {
				if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			path := os.Getenv("PATH")
			t.Setenv("PATH", bin+":"+path)
			r := openBusybox(t, overlay.Options{Store: newStore(t)})
			if err := r.Run(t.Context(), shell("true"), io.Discard); err == nil || !strings.Contains(err.Error(), "no OCI runtime works here") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	conformance.RequireRoot(t)
	st := newStore(t)
	seen := map[string]bool{}
	for _, c := range overlay.Health(t.Context(), overlay.Options{Store: st}) {
		t.Logf("%s: %s %v", c.Name, c.Detail, c.Err)
		seen[c.Name] = true
		if c.Err != nil {
			t.Errorf("%s: %v", c.Name, c.Err)
		}
	}
	for _, name := range []string{"root", "overlayfs", "control groups", "OCI runtime", "mount", "sandbox"} {
		if !seen[name] {
			t.Errorf("nothing is said of %s", name)
		}
	}
	for _, c := range overlay.Health(t.Context(), overlay.Options{Store: st, Runtime: "nosuchruntime"}) {
		if c.Name == "OCI runtime" && c.Err == nil {
			t.Error("a missing runtime is healthy")
		}
	}
	conformance.Leftovers(t, st.Dir(), st.RunID())
}

// TestRootless asks as an ordinary user.
func TestRootless(t *testing.T) {
	conformance.RequireRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), rootlessVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "needs root") || !strings.Contains(string(out), "sudo") {
		t.Errorf("got %q, %v", out, err)
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
	st := newStore(t)
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
	if after := mounts(); after != before {
		t.Errorf("mounted are\n%s\nwere\n%s", after, before)
	}
	var exit *executor.ExitError
	if err := e.RunHere(t.Context(), shell("exit 7"), io.Discard); !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("got %v", err)
	}
}

// TestSharedHost runs the suite's mounts once more where the host's mounts are shared, as systemd makes them: what is mounted in a step must
// not appear on the host or in another step.
func TestSharedHost(t *testing.T) {
	conformance.RequireRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "shared", exe,
		"-test.run", "^TestExecutor$/^(MountPoints|Secrets|CacheShared|CacheSharedPoints|MountsInsideCaches)$|^TestRunHere$")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
