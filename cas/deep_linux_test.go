package cas

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// deepLayer makes a layer of n directories in each other, the lowest with a file, as no path can name it.
func deepLayer(t *testing.T, s *Store, name string, n int) string {
	t.Helper()
	dir, err := newLayer(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(filepath.Join(dir, layerRoot), unix.O_PATH|unix.O_CLOEXEC, 0)
	for range n {
		if err == nil {
			err = unix.Mkdirat(fd, name, 0o755)
		}
		next := -1
		if err == nil {
			next, err = unix.Openat(fd, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		}
		_ = unix.Close(fd)
		fd = next
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = unix.Write(f, make([]byte, 100<<10))
	if err := errors.Join(err, unix.Close(f), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	layer, err := s.CommitLayer(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// What a step has left may be as deep as it likes: the store is measured, verified and pruned all the same.
func TestDeepLayers(t *testing.T) {
	for _, test := range []struct {
		name  string
		depth int
	}{{strings.Repeat("n", 255), 20}, {"d", 4500}} {
		s := newStore(t)
		layer := deepLayer(t, s, test.name, test.depth)
		putResult(t, s, "default", Result{Key: "k", Layers: []string{layer}})
		if u, err := s.Usage(t.Context()); err != nil || len(u.Odd) > 0 || u.Layers < 100<<10 {
			t.Errorf("%d levels: usage %+v, %v", test.depth, u, err)
		}
		if ps := problems(t, s); len(ps) > 0 {
			t.Errorf("%d levels: %v", test.depth, ps)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, s.Dir())
		if r := prune(t, s, PruneOptions{All: true}); r.Layers != 1 || r.Bytes < 100<<10 || len(r.Odd) > 0 {
			t.Errorf("%d levels: prune %+v", test.depth, r)
		}
		if left, err := os.ReadDir(s.path(trashDir)); err != nil || len(left) > 0 {
			t.Errorf("%d levels: trash has %v, %v", test.depth, left, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// One odd thing in the store is named by all that goes over it, and does not keep them from the rest.
func TestOddThings(t *testing.T) {
	s := newStore(t)
	layer := commitLayer(t, s, "", "x")
	putResult(t, s, "default", Result{Key: "good", Layers: []string{layer}})
	putResult(t, s, "default", Result{Key: "goes"})
	odd := s.resultPath("default", "odd")
	if err := os.MkdirAll(filepath.Join(odd, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.Dir())
	if err := s.Hold("default", "good"); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Results != 2 || len(u.Odd) != 1 || !strings.Contains(u.Odd[0].Error(), odd) {
		t.Errorf("usage %+v, %v", u, err)
	}
	if ps := problems(t, s); len(ps) != 1 || ps[0].Path != odd {
		t.Errorf("verify: %v", ps)
	}
	r := prune(t, s, PruneOptions{All: true})
	if r.Results != 2 || len(r.Odd) != 1 || !strings.Contains(r.Odd[0].Error(), odd) {
		t.Errorf("prune %+v", r)
	}
	if exists(odd) || !hasResult(s, "default", "good") || !s.HasLayer(layer) {
		t.Error("the wrong things are left")
	}
	if r := prune(t, s, PruneOptions{All: true}); len(r.Odd) > 0 {
		t.Errorf("prune again: %v", r.Odd)
	}
}

// A file that cannot be deleted stays in the trash, and is told.
func TestPruneOfWhatCannotBeDeleted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root, to make a file immutable")
	}
	s := newStore(t)
	layer := commitLayer(t, s, "", "x")
	immutable := func(path string, on int) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		const flag = 0x10 // FS_IMMUTABLE_FL
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flag*on)
	}
	if err := immutable(filepath.Join(s.LayerPath(layer), "file"), 1); err != nil {
		t.Skipf("the file system has no immutable files: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.Dir())
	blob := putBlob(t, s, "garbage")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.Dir())
	r := prune(t, s, PruneOptions{All: true})
	left, _ := filepath.Glob(s.path(trashDir, "*", "fs", "file"))
	if len(left) != 1 {
		t.Fatalf("left in the trash: %v", left)
	}
	if err := immutable(left[0], 0); err != nil {
		t.Fatal(err)
	}
	if r.Layers != 1 || r.Blobs != 1 || len(r.Odd) != 1 || !strings.Contains(r.Odd[0].Error(), "file") {
		t.Errorf("%+v", r)
	}
	if p, err := s.blobPath(blob); err != nil || exists(p) {
		t.Errorf("a blob is left: %v", err)
	}
}
