package cas

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inside runs a helper of insiders as root in a mount namespace of its own, so that nothing stays mounted.
func inside(t *testing.T, name string, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("requires root, to mount")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: make test-deps", err)
		}
	}
	cmd := helperCmd(t, "inside", name, t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.Output()
	if s := strings.TrimSpace(string(out)); s != "" {
		t.Log(s)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func insideHelper(args []string) error {
	insiders := map[string]func(string) error{
		"copied image": copiedImage,
		"full disk":    fullDisk,
		"mounts":       mountsInTrash,
	}
	return insiders[args[0]](args[1])
}

// ext4 makes a file system in a file.
func ext4(image string, size int64) error {
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	return tool("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
}

func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func TestCopiedImage(t *testing.T) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_MNT_ID_UNIQUE, &st); err != nil || st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		t.Skip("requires unique mount ids (Linux 6.8): older ones are used again")
	}
	inside(t, "copied image", "mkfs.ext4", "mount", "umount")
}

// copiedImage copies the file system that a store is on while it is in use, and mounts the copy later, on the same
// boot, device number and path.
func copiedImage(dir string) error {
	image, copied, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "copy"), filepath.Join(dir, "mnt")
	if err := errors.Join(ext4(image, 32<<20), os.Mkdir(mnt, 0o755)); err != nil {
		return err
	}
	if err := tool("mount", "-o", "loop", image, mnt); err != nil {
		return err
	}
	before, err := Open(mnt)
	if err != nil {
		return err
	}
	var dev unix.Stat_t
	if err := unix.Stat(mnt, &dev); err != nil {
		return err
	}
	put := func(s *Store, key string) error {
		l, err := newLayer(s, key)
		if err != nil {
			return err
		}
		name, err := s.CommitLayer(l, "d-"+key)
		if err != nil {
			return err
		}
		return s.PutResult("default", &Result{Key: key, Layers: []string{name}})
	}
	if err := errors.Join(put(before, "synced"), before.Sync(context.Background()), put(before, "lost")); err != nil {
		return err
	}
	// Even with all bytes on the disk nobody can know.
	unix.Sync()
	if err := tool("cp", image, copied); err != nil {
		return err
	}
	if err := errors.Join(before.Close(), tool("umount", mnt), tool("mount", "-o", "loop", copied, mnt)); err != nil {
		return err
	}
	defer func() { _ = tool("umount", mnt) }()
	var now unix.Stat_t
	if err := unix.Stat(mnt, &now); err != nil {
		return err
	}
	fmt.Println("same device number:", dev.Dev == now.Dev)
	after, err := Open(mnt)
	if err != nil {
		return err
	}
	defer after.Close()
	if after.epoch == before.epoch {
		return errors.New("the epoch is the same")
	}
	if !hasResult(after, "default", "synced") || !after.HasLayer("d-synced") {
		return errors.New("what was synced is lost")
	}
	if hasResult(after, "default", "lost") || after.HasLayer("d-lost") {
		return errors.New("what was not synced is there")
	}
	if err := put(after, "lost"); err != nil {
		return err
	}
	if !hasResult(after, "default", "lost") || !after.HasLayer("d-lost") {
		return errors.New("it cannot be made again")
	}
	return nil
}

func TestFullDisk(t *testing.T) { inside(t, "full disk", "mount", "umount") }

// fullDisk sees that on a full disk nothing half is visible, nothing is left, and a prune makes room.
func fullDisk(dir string) error {
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		return err
	}
	// Of all file systems this one alone knows at each moment whether it is full.
	if err := tool("mount", "-t", "tmpfs", "-o", "size=8m", "full", mnt); err != nil {
		return err
	}
	defer func() { _ = tool("umount", mnt) }()
	if err := os.Mkdir(filepath.Join(mnt, "lost+found"), 0o700); err != nil {
		return err
	}
	s, err := Open(mnt)
	if err != nil {
		return err
	}
	if err := s.PutResult("default", &Result{Key: "before"}); err != nil {
		return err
	}
	filler, err := s.NewBlob()
	if err != nil {
		return err
	}
	for block := make([]byte, 1<<10); err == nil; {
		_, err = filler.Write(block)
	}
	if !isFull(err) {
		return err
	}
	if _, _, err := filler.Commit(""); !isFull(err) {
		return fmt.Errorf("commit of a blob that failed: %w", err)
	}
	// A layer of the same size fills it again: to the last block, by blobs that fit.
	big, err := s.NewBlob()
	if err != nil {
		return err
	}
	if _, err := big.Write(make([]byte, 3<<20)); err != nil {
		return err
	}
	d, _, err := big.Commit("")
	if err != nil {
		return err
	}
	if err := s.PutResult("default", &Result{Key: "big", Blobs: nil}); err != nil {
		return err
	}
	layer, err := newLayer(s, "layer")
	if err != nil {
		return err
	}
	cacheUpper := s.temp("upper")
	if err := os.Mkdir(cacheUpper, 0o755); err != nil {
		return err
	}
	cache, err := s.OpenCache(context.Background(), "default", "c", "")
	if err != nil {
		return err
	}
	s.EmptyTrash(context.Background()) // else that goes in the background, and makes room
	if err := fill(filepath.Join(mnt, "lost+found")); err != nil {
		return err
	}
	memo, err := s.HashMemo("/src")
	if err != nil {
		return err
	}
	for name, e := range manyEntries(1000) {
		memo.remember(name, e)
	}
	memo.remember("x", memoEntry{})
	blobs, _ := os.ReadDir(s.path(blobsDir, "sha256"))
	for what, f := range map[string]func() error{
		"PutBlob":   func() error { _, err := s.PutBlob([]byte("small")); return err },
		"PutResult": func() error { return s.PutResult("default", &Result{Key: "new"}) },
		"replacing": func() error { return s.PutResult("default", &Result{Key: "before", Alias: "new"}) },
		"memo":      memo.Save,
		"layer":     func() error { _, err := s.CommitLayer(layer, "d-new"); return err },
		"cache":     func() error { return cache.Commit(cacheUpper, flattenForTest) },
	} {
		if err := f(); !isFull(err) {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if r, err := s.Result("default", "before"); err != nil || r.Alias != "" {
		return fmt.Errorf("the old result: %v, %w", r, err)
	}
	if hasResult(s, "default", "new") || s.HasLayer("d-new") || exists(memo.path) {
		return errors.New("something is visible")
	}
	if now, _ := os.ReadDir(s.path(blobsDir, "sha256")); len(now) != len(blobs) {
		return fmt.Errorf("blobs are left: %v", now)
	}
	left, err := os.ReadDir(s.TempDir())
	if err != nil {
		return err
	}
	for _, e := range left {
		if e.Name() != filepath.Base(layer) { // the caller's, until it was committed
			return fmt.Errorf("%s is left", e.Name())
		}
	}
	if err := errors.Join(cache.Close(), s.Close()); err != nil {
		return err
	}
	// Full still, for the trash of Close is only a directory.
	if err := fill(filepath.Join(mnt, "lost+found")); err != nil {
		return err
	}
	s, err = Open(mnt)
	if err != nil {
		return fmt.Errorf("a full disk: %w", err)
	}
	defer s.Close()
	if _, err := s.Prune(context.Background(), PruneOptions{All: true}); err != nil {
		return err
	}
	if p, err := s.blobPath(d); err != nil || exists(p) {
		return errors.New("prune removed nothing")
	}
	again, err := Open(mnt)
	if err != nil {
		return err
	}
	defer again.Close()
	if _, err := again.PutBlob([]byte("small")); err != nil {
		return fmt.Errorf("after the prune: %w", err)
	}
	return again.PutResult("default", &Result{Key: "after"})
}

// fill takes all space that is left, and all room for names in dir's own blocks.
func fill(dir string) error {
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("filler-%d-%d", time.Now().UnixNano(), i)))
		if isFull(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, size := range []int{64 << 10, 1 << 10} {
			for err == nil {
				_, err = f.Write(make([]byte, size))
			}
			if !isFull(err) {
				return errors.Join(err, f.Close())
			}
			err = nil
		}
		if err := f.Close(); err != nil {
			return err
		}
		if i == 1 {
			return nil
		}
	}
}

func TestMountsInTrash(t *testing.T) { inside(t, "mounts", "mount", "umount") }

// mountsInTrash sees that a mount that was left in a trashed directory survives.
func mountsInTrash(dir string) error {
	outside := filepath.Join(dir, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		return err
	}
	precious := filepath.Join(outside, "precious")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		return err
	}
	s, err := Open(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	defer s.Close()
	layer, err := newLayer(s, "x")
	if err != nil {
		return err
	}
	// The same file system: only the mount tells.
	mnt := filepath.Join(layer, "fs", "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(outside, mnt, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := s.Trash(layer); err != nil {
		return err
	}
	if err := s.emptyTrash(context.Background()); err == nil {
		return errors.New("no error")
	}
	if !exists(precious) {
		return errors.New("what was mounted is gone")
	}
	if _, err := s.Prune(context.Background(), PruneOptions{All: true}); err != nil {
		return fmt.Errorf("a mount in the trash fails the prune: %w", err)
	}
	left, err := filepath.Glob(s.path(trashDir, "*", "fs", "mnt"))
	if err != nil || len(left) != 1 {
		return fmt.Errorf("left %v, %w", left, err)
	}
	if err := unix.Unmount(left[0], 0); err != nil {
		return err
	}
	if err := s.emptyTrash(context.Background()); err != nil {
		return err
	}
	if left, _ := os.ReadDir(s.path(trashDir)); len(left) > 0 {
		return fmt.Errorf("left %v", left)
	}
	if !exists(precious) {
		return errors.New("what was mounted is gone")
	}
	return nil
}

// Layers have whiteouts, devices and closed directories; all that handles layers must take them.
func TestLayerOfAnything(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root, to make devices")
	}
	s := newStore(t)
	dir, err := newLayer(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	fs := filepath.Join(dir, layerRoot)
	if err := errors.Join(
		unix.Mknod(filepath.Join(fs, "whiteout"), unix.S_IFCHR, 0),
		os.Mkdir(filepath.Join(fs, "closed"), 0),
		os.WriteFile(filepath.Join(fs, "closed", "file"), make([]byte, 100<<10), 0),
		os.Chmod(fs, 0o555),
	); err != nil {
		t.Fatal(err)
	}
	name, err := s.CommitLayer(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Layers < 100<<10 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.Dir())
	if r := prune(t, s, PruneOptions{}); r.Layers != 1 || r.Bytes < 100<<10 {
		t.Errorf("%+v", r)
	}
	if left, _ := os.ReadDir(s.path(trashDir)); len(left) > 0 || exists(s.LayerPath(name)) {
		t.Errorf("left %v", left)
	}
}

// Open must neither leave descriptors nor goroutines behind.
func TestNothingLeaks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	fds := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	round := func() {
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Lock(t.Context(), "default", "k"); err != nil { // Close releases it
			t.Fatal(err)
		}
		use(t, s, "c", "x")
		openCache(t, s, "c", "")
		openCache(t, s, "d", "locked")
		putResult(t, s, "default", Result{Key: "k", Layers: []string{commitLayer(t, s, "", "x")}})
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		prune(t, s, PruneOptions{All: true})
		problems(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	round()
	before, goroutines := fds(), runtime.NumGoroutine()
	for range 5 {
		round()
	}
	if after := fds(); after > before {
		t.Errorf("%d descriptors, then %d", before, after)
	}
	if after := runtime.NumGoroutine(); after > goroutines {
		t.Errorf("%d goroutines, then %d", goroutines, after)
	}
}

func TestPlaceWarnings(t *testing.T) {
	if w := placeWarnings(t.TempDir()); len(w) > 0 {
		t.Logf("the tests themselves run in such a place: %v", w)
	}
	if boot, epoch := epoch(t.TempDir(), ""); boot == "" || epoch == "" || boot == epoch {
		t.Errorf("boot %q, epoch %q", boot, epoch)
	}
	if !slices.Contains(topDirs(), trashDir) {
		t.Error("no trash")
	}
}

// TestDirtyBytes sees that a sync is known to be heavy when much has been written just now.
func TestDirtyBytes(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == unix.TMPFS_MAGIC {
		t.Skip("files of tmpfs are never written anywhere")
	}
	const size = 8 << 20
	for range 20 { // the kernel may write some meanwhile
		if _, err := f.WriteAt(make([]byte, size), 0); err != nil {
			t.Fatal(err)
		}
		if dirtyBytes() >= size/2 {
			return
		}
	}
	t.Errorf("%d bytes are dirty after %d were written", dirtyBytes(), size)
}
