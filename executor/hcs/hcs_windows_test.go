package hcs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Microsoft/hcsshim/osversion"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/runtime-spec/specs-go"
	sys "golang.org/x/sys/windows"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// A rig is the driver on a fake containerd, on a fake network, and with mounts that are only noted.
type rig struct {
	t    *testing.T
	f    *fakeContainerd
	hcn  *fakeHCN
	st   *cas.Store
	e    *Executor
	base layers.Layer
	mu   sync.Mutex
	open map[string]bool // mounts; guarded by mu
}

func newRig(t *testing.T) *rig {
	t.Setenv("ProgramData", t.TempDir())
	r := &rig{t: t, f: startFake(t), hcn: &fakeHCN{}, open: map[string]bool{}}
	var err error
	if r.st, err = cas.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.st.Close(); err != nil {
			t.Error(err)
		}
	})
	parent, err := layers.DirTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	r.base, err = layers.MakeWindowsCopy(t.Context(), r.st, layers.Copy{From: os.DirFS(t.TempDir()), Parent: parent, Dst: "/x/"}, layers.Compression{})
	if err != nil {
		t.Fatal(err)
	}
	r.e = r.newExecutor()
	return r
}

func (r *rig) newExecutor() *Executor {
	r.t.Helper()
	e, err := newExecutor(r.t.Context(), Options{Store: r.st, Address: r.f.pipe}, windows{
		hcn: r.hcn,
		mount: func(_ []mount.Mount, dir string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.open[dir] = true
			return nil
		},
		unmount: func(dir string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.open, dir)
			return os.RemoveAll(filepath.Join(dir, "src"))
		},
		version: osversion.OSVersion{MajorVersion: 10, Build: 20348},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

// clean checks that nothing is left, and how many committed snapshots there are.
func (r *rig) clean(committed int) {
	r.t.Helper()
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	n := 0
	for _, i := range r.f.snapshots {
		if i.Kind != snapshots.KindCommitted {
			r.t.Errorf("left over: snapshot %s", i.Name)
			continue
		}
		n++
	}
	if n != committed {
		r.t.Errorf("%d committed snapshots, want %d", n, committed)
	}
	for id := range r.f.containers {
		r.t.Errorf("left over: container %s", id)
	}
	for id := range r.f.tasks {
		r.t.Errorf("left over: task %s", id)
	}
	for dir := range r.open {
		r.t.Errorf("left over: mount %s", dir)
	}
}

// names makes calls comparable: what they name is different in each run.
func (r *rig) names() []string {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	var out []string
	for _, c := range r.f.calls {
		name, _, _ := strings.Cut(c, " ")
		out = append(out, name)
	}
	r.f.calls = nil
	return out
}

var oneStep = []string{
	"NewContainer", "NewTask", "Start", "DeleteTask", "DeleteContainer",
}

func TestSteps(t *testing.T) {
	r := newRig(t)
	root, err := r.e.Open(t.Context(), []layers.Layer{{}, r.base})
	if err != nil {
		t.Fatal(err)
	}
	var seen *specs.Spec
	r.f.program = func(s *specs.Spec, stdout, stderr io.Writer, _ <-chan struct{}) uint32 {
		seen = s
		_, _ = io.WriteString(stdout, "out\n")
		time.Sleep(10 * time.Millisecond)
		_, _ = io.WriteString(stderr, "err\n")
		for _, m := range s.Mounts {
			if m.Destination == `C:\run\secrets` {
				b, err := os.ReadFile(filepath.Join(m.Source, "s"))
				_, _ = io.WriteString(stdout, string(b)+"\n")
				if err != nil {
					return 9
				}
			} else if err := os.WriteFile(filepath.Join(m.Source, "f"), []byte("kept"), 0o644); err != nil {
				return 8
			}
		}
		return 0
	}
	p := executor.Process{
		Argv: []string{"cmd", "/S", "/C", "dir"}, Dir: "C:/src", Network: executor.NetworkHost, OSVersion: "10.0.26100.1",
		Mounts: []executor.Mount{
			{Target: "/run/secrets/s", Secret: &executor.Secret{Data: []byte("value")}},
			{Target: `C:\cache`, Cache: &executor.Cache{Domain: "default", Name: "c"}},
		},
	}
	var out bytes.Buffer
	if err := root.Run(t.Context(), p, &out); err != nil {
		t.Fatal(err)
	}
	if out.String() != "out\nerr\nvalue\n" && out.String() != "out\nvalue\nerr\n" {
		t.Errorf("output %q", out.String())
	}
	want := slices.Concat([]string{"Active", "Apply", "Commit", "Active"}, oneStep)
	if got := r.names(); !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
	if seen.Windows.HyperV == nil || seen.Windows.Network.NetworkNamespace != "NS" || len(seen.Windows.LayerFolders) > 0 || seen.Process.Cwd != `C:\src` || seen.Process.User.Username != "ContainerAdministrator" || len(seen.Mounts) != 2 {
		b, _ := json.Marshal(seen)
		t.Errorf("spec %s", b)
	}
	if !slices.ContainsFunc(r.hcn.calls, func(c string) bool { return strings.HasPrefix(c, "newEndpoint hcs-"+r.e.run.name()) }) || r.hcn.calls[len(r.hcn.calls)-1] != "deleteEndpoint EP" {
		t.Errorf("network %q", r.hcn.calls)
	}
	c, err := root.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.Layer(t.Context())
	if err != nil || l.Blob.Digest == "" || l.DiffID == "" {
		t.Errorf("layer %+v, %v", l, err)
	}
	if got, want := r.names(), []string{"View", "Compare", "Remove", "Active", "Apply", "Commit", "Remove"}; !slices.Equal(got, want) {
		t.Errorf("calls of freeze %q, want %q", got, want)
	}
	// The cache is there the next time, and a step that fails leaves the state before it.
	r.f.program = func(s *specs.Spec, stdout, _ io.Writer, _ <-chan struct{}) uint32 {
		b, err := os.ReadFile(filepath.Join(s.Mounts[len(s.Mounts)-1].Source, "f"))
		if err != nil {
			_, _ = io.WriteString(stdout, err.Error())
			return 9
		}
		_, _ = stdout.Write(b)
		return 0xC0000005
	}
	out.Reset()
	p.Network, p.OSVersion = executor.NetworkNone, "10.0.20348.1"
	err = root.Run(t.Context(), p, &out)
	var exit *executor.ExitError
	if !errors.As(err, &exit) || exit.Code != 0xC0000005 || out.String() != "kept" {
		t.Errorf("got %v, %q", err, out.String())
	}
	if c, err = root.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l, err := c.Layer(t.Context()); err != nil || !l.IsZero() {
		t.Errorf("a failed step gives %+v, %v", l, err)
	}
	if _, err := root.Files(t.Context()); err != nil {
		t.Error(err)
	}
	if err := errors.Join(root.Close(), r.e.Close()); err != nil {
		t.Error(err)
	}
	r.clean(2)
	if left, err := filepath.Glob(filepath.Join(runsDir(), "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// The directory that has secrets while steps run is the system's and administrators', but for who knows the way. Wine makes modes of an
// access list, so this shows that the calls are right, and not who gets in.
func TestRunsAccess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := makeRunsDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := makeRunsDir(dir); err != nil {
		t.Error(err)
	}
	sd, err := sys.GetNamedSecurityInfo(dir, sys.SE_FILE_OBJECT, sys.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(sd)
	want, err := sys.SecurityDescriptorFromString(runsAccess)
	if err != nil || !strings.HasPrefix(want.String(), "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICIIO;") {
		t.Errorf("%v, %v", want, err)
	}
}

// Locked caches are taken in one order, whatever the order of a spec, and once a step: two steps that have both do not wait for each other.
func TestLockedCaches(t *testing.T) {
	r := newRig(t)
	r.f.program = func(s *specs.Spec, _, _ io.Writer, _ <-chan struct{}) uint32 {
		time.Sleep(50 * time.Millisecond)
		if len(s.Mounts) != 3 {
			return 9
		}
		return 0
	}
	a, b := executor.Cache{Domain: "default", Name: "a", Sharing: "locked"}, executor.Cache{Domain: "default", Name: "b", Sharing: "locked"}
	done := make(chan error, 2)
	var roots []executor.Root
	for _, caches := range [][]executor.Cache{{a, b, a}, {b, a, b}} {
		root, err := r.e.Open(t.Context(), []layers.Layer{r.base})
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
		p := executor.Process{Argv: []string{"x"}, Dir: "/"}
		for i, c := range caches {
			p.Mounts = append(p.Mounts, executor.Mount{Target: fmt.Sprintf(`C:\c%d`, i), Cache: &c})
		}
		go func() { done <- root.Run(t.Context(), p, io.Discard) }()
	}
	for range 2 {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("they wait for each other")
		}
	}
	if err := errors.Join(roots[0].Close(), roots[1].Close(), r.e.Close()); err != nil {
		t.Error(err)
	}
	r.clean(1)
}

func TestIsolation(t *testing.T) {
	host := osversion.OSVersion{MajorVersion: 10, Build: 20348}
	for version, want := range map[string]bool{
		"": true, "10.0": true, "x": true, "10.0.20348.5": true, "10.0.17763.5": false, "10.0.26100.5": false,
	} {
		if got := compatible(host, version); got != want {
			t.Errorf("%q: got %v, want %v", version, got, want)
		}
	}
	e := &Executor{options: Options{Isolation: "process"}, windows: windows{version: host}}
	if e.hyperV("10.0.26100.5") {
		t.Error("process isolation is not")
	}
	e.options.Isolation = "hyperv"
	if !e.hyperV("") {
		t.Error("Hyper-V isolation is not")
	}
	if _, err := New(t.Context(), Options{Isolation: "jail"}); err == nil || !strings.Contains(err.Error(), "jail") {
		t.Errorf("an unknown isolation: %v", err)
	}
}

// TestFailures lets every call fail once.
func TestFailures(t *testing.T) {
	for _, call := range []string{"Active", "Apply", "Commit", "NewContainer", "NewTask", "Start", "Compare", "View"} {
		t.Run(call, func(t *testing.T) {
			r := newRig(t)
			r.f.program = func(*specs.Spec, io.Writer, io.Writer, <-chan struct{}) uint32 { return 0 }
			r.f.fail = call
			root, err := r.e.Open(t.Context(), []layers.Layer{r.base})
			if err != nil {
				t.Fatal(err)
			}
			p := executor.Process{Argv: []string{"x"}, Dir: "/"}
			err = root.Run(t.Context(), p, io.Discard)
			if err == nil {
				_, err = root.Freeze(t.Context())
			}
			var exit *executor.ExitError
			if err == nil || errors.As(err, &exit) || !strings.Contains(err.Error(), "fake: "+call+" fails") {
				t.Errorf("got %v", err)
			}
			r.f.mu.Lock()
			r.f.fail = ""
			r.f.mu.Unlock()
			if err := root.Run(t.Context(), p, io.Discard); err != nil {
				t.Errorf("after the failure: %v", err)
			}
			if err := errors.Join(root.Close(), r.e.Close()); err != nil {
				t.Error(err)
			}
			r.clean(1)
		})
	}
}

func TestCancelAndTimeout(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.f.program = func(_ *specs.Spec, _, _ io.Writer, killed <-chan struct{}) uint32 {
		cancel()
		<-killed
		return 137
	}
	root, err := r.e.Open(t.Context(), []layers.Layer{r.base})
	if err != nil {
		t.Fatal(err)
	}
	p := executor.Process{Argv: []string{"x"}, Dir: "/", Network: executor.NetworkHost}
	if err := root.Run(ctx, p, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	p.Limits.Timeout = time.Second
	var exit *executor.ExitError
	if err := root.Run(t.Context(), p, io.Discard); !errors.As(err, &exit) || exit.Reason != executor.TimedOut {
		t.Errorf("timed out: %v", err)
	}
	if err := errors.Join(root.Close(), r.e.Close()); err != nil {
		t.Error(err)
	}
	r.clean(1)
	// At last it is looked whether anything of the run is left.
	if n := len(r.hcn.calls); n != 13 || r.hcn.calls[n-2] != "deleteEndpoint EP" || r.hcn.calls[n-1] != "endpoints "+idPrefix+r.e.run.name()+"-" {
		t.Errorf("network %q", r.hcn.calls)
	}
}

// TestKilled leaves an executor as a kill would: with a running container, an active snapshot, a mount, an endpoint. The
// next one removes all.
func TestKilled(t *testing.T) {
	r := newRig(t)
	started := make(chan struct{})
	r.f.program = func(_ *specs.Spec, _, _ io.Writer, killed <-chan struct{}) uint32 {
		close(started)
		<-killed
		return 137
	}
	root, err := r.e.Open(t.Context(), []layers.Layer{r.base})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx := t.Context()
	go func() {
		done <- root.Run(ctx, executor.Process{Argv: []string{"x"}, Dir: "C:/src", Network: executor.NetworkHost}, io.Discard)
	}()
	<-started
	r.hcn.left = map[string]string{"EP": "NS"}
	r.open[filepath.Join(r.e.run.dir, mountPrefix+"1")] = true
	if err := os.Mkdir(filepath.Join(r.e.run.dir, mountPrefix+"1"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.e.run.lock.Close() // what the kernel does at the end of a process

	next := r.newExecutor()
	<-done // its container was removed under it
	i := slices.Index(r.hcn.calls, "endpoints "+idPrefix+r.e.run.name()+"-")
	if i < 0 || !slices.Equal(r.hcn.calls[i+1:min(i+4, len(r.hcn.calls))], []string{"detach NS EP", "deleteNamespace NS", "deleteEndpoint EP"}) {
		t.Errorf("network %q", r.hcn.calls)
	}
	_ = root.Close()
	_ = r.e.d.client.Close()
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	r.clean(1)
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if len(r.f.leases) > 0 {
		t.Errorf("left over: leases %v", r.f.leases)
	}
}

func TestHealthOfFake(t *testing.T) {
	r := newRig(t)
	seen := map[string]error{}
	for _, c := range health(t.Context(), Options{Store: r.st, Address: r.f.pipe}, r.e.windows) {
		seen[c.Name] = c.Err
	}
	for _, name := range []string{"Windows", "containerd"} {
		if err, ok := seen[name]; !ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	for _, c := range health(t.Context(), Options{Store: r.st, Address: `\\.\pipe\obx-nobody`}, r.e.windows) {
		if c.Name == "containerd" && (c.Err == nil || !strings.Contains(c.Err.Error(), "register-service")) {
			t.Errorf("no containerd: %v", c.Err)
		}
	}
	if err := r.e.Close(); err != nil {
		t.Error(err)
	}
}
