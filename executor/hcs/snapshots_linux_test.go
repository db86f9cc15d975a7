package hcs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// A hostOfMounts runs commands of the host on the files of a snapshot, below its directory.
type hostOfMounts struct{ dir string }

func (h hostOfMounts) mount(mounts []mount.Mount, dir string) error { return mount.All(mounts, dir) }
func (h hostOfMounts) unmount(dir string) error                     { return mount.UnmountAll(dir, 0) }

func (h hostOfMounts) run(ctx context.Context, p executor.Process, mounts []mount.Mount, out io.Writer) (err error) {
	at, err := os.MkdirTemp(h.dir, mountPrefix)
	if err != nil {
		return err
	}
	if err := h.mount(mounts, at); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.unmount(at), os.Remove(at)) }()
	cmd := exec.CommandContext(ctx, p.Argv[0], p.Argv[1:]...)
	cmd.Dir, cmd.Stdout = at, out
	return cmd.Run()
}

// TestSnapshotRoot runs the chain of snapshots that Windows has on a real containerd, with Linux's differ: layers become
// snapshots, a step's change is diffed against its direct parent, applied again, and gone on from.
func TestSnapshotRoot(t *testing.T) {
	address := conformance.StartContainerd(t, "overlayfs")
	st := conformance.OpenStore(t)
	ctx := t.Context()
	d, err := connect(ctx, Options{Address: address, Snapshotter: "overlayfs"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.client.Close()
	const run = "run-1"
	if err := d.begin(ctx, run); err != nil {
		t.Fatal(err)
	}
	s := &stacker{d: d, store: st}
	dir := t.TempDir()
	open := func(chain ...layers.Layer) *snapshotRoot {
		return &snapshotRoot{stacker: s, host: hostOfMounts{dir}, dir: dir, pending: chain}
	}
	sh := func(r *snapshotRoot, script string) string {
		t.Helper()
		var out bytes.Buffer
		if err := r.Run(ctx, executor.Process{Argv: []string{"sh", "-ec", script}, Dir: "C:/some/dir"}, &out); err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		return out.String()
	}
	step := func(r *snapshotRoot, script string) layers.Layer {
		t.Helper()
		sh(r, script)
		c, err := r.Freeze(ctx)
		if err != nil {
			t.Fatal(err)
		}
		l, err := c.Layer(ctx)
		if err != nil || l.Blob.Digest == "" || l.DiffID == "" || l.Size == 0 {
			t.Fatalf("%+v, %v", l, err)
		}
		return l
	}
	base, err := layers.Pack(ctx, st, conformance.Busybox(t, st), layers.Compression{})
	if err != nil {
		t.Fatal(err)
	}
	r := open(base)
	one := step(r, "echo 1 > one; mkdir gone; echo x > gone/x; test -d some/dir")
	two := step(r, "rm -r gone; echo 2 > two")
	if err := r.Run(ctx, executor.Process{Argv: []string{"sh", "-c", "echo 3 > three; exit 3"}, Dir: "/"}, io.Discard); err == nil {
		t.Error("a failed step succeeds")
	}
	for _, r := range []*snapshotRoot{r, open(base, one, two)} {
		if got := sh(r, "cat one two; ls | grep -c -e three -e gone || true"); got != "1\n2\n0\n" {
			t.Errorf("got %q", got)
		}
		tree, err := r.Files(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := fs.ReadFile(tree, "two"); err != nil || string(b) != "2\n" {
			t.Errorf("two: %q, %v", b, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	// What is kept is one committed snapshot a layer, and no data beside.
	count := func() (n int) {
		err := d.snaps.Walk(d.context(ctx), func(_ context.Context, i snapshots.Info) error {
			if i.Kind != snapshots.KindCommitted {
				t.Errorf("left over: snapshot %s", i.Name)
			}
			n++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 3 {
		t.Errorf("%d snapshots, want 3", n)
	}
	for _, l := range []layers.Layer{base, one, two} {
		if _, err := d.client.ContentStore().Info(d.context(ctx), l.Blob.Digest); !errdefs.IsNotFound(err) {
			t.Errorf("content %s: %v", l.Blob.Digest, err)
		}
	}
	// They outlive the run, and go when they are old.
	if err := d.end(ctx, run); err != nil {
		t.Error(err)
	}
	d.run = ""
	if n := count(); n != 3 {
		t.Errorf("after the run: %d snapshots, want 3", n)
	}
	if err := s.prune(ctx, time.Now().Add(-48*time.Hour)); err != nil || count() != 3 {
		t.Errorf("what was used today is pruned: %v", err)
	}
	if err := s.prune(ctx, time.Now().Add(48*time.Hour)); err != nil || count() != 0 {
		t.Errorf("what is old is not pruned: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "one")); err == nil {
		t.Error("a step has written outside")
	}
}

// TestStackersTogether has two runs put the same layer, and take equal ones, at once: neither takes the other's data away.
func TestStackersTogether(t *testing.T) {
	address := conformance.StartContainerd(t, "overlayfs")
	st := conformance.OpenStore(t)
	ctx := t.Context()
	base, err := layers.Pack(ctx, st, conformance.Busybox(t, st), layers.Compression{})
	if err != nil {
		t.Fatal(err)
	}
	var stackers []*stacker
	for _, run := range []string{"run-1", "run-2"} {
		d, err := connect(ctx, Options{Address: address, Snapshotter: "overlayfs"})
		if err != nil {
			t.Fatal(err)
		}
		defer d.client.Close()
		if err := d.begin(ctx, run); err != nil {
			t.Fatal(err)
		}
		stackers = append(stackers, &stacker{d: d, store: st})
	}
	for range 10 {
		var busy sync.WaitGroup
		for range 2 {
			for _, s := range stackers {
				busy.Go(func() {
					if _, err := s.put(ctx, "", base); err != nil {
						t.Error(err)
					}
				})
			}
		}
		busy.Wait()
		d := stackers[0].d
		if _, err := d.client.ContentStore().Info(d.context(ctx), base.Blob.Digest); !errdefs.IsNotFound(err) {
			t.Errorf("content: %v", err)
		}
		if err := d.snaps.Remove(d.context(ctx), base.DiffID.String()); err != nil {
			t.Fatal(err)
		}
	}
	for i, run := range []string{"run-1", "run-2"} {
		if err := stackers[i].d.end(ctx, run); err != nil {
			t.Error(err)
		}
	}
}
