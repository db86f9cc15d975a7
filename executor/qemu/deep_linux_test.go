package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/layers"
)

// deepTree makes a directory with a file in so many others that no call takes its path.
func deepTree(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	for range 20 {
		if err == nil {
			err = unix.Mkdirat(fd, strings.Repeat("n", 255), 0o755)
		}
		next := -1
		if err == nil {
			next, err = unix.Openat(fd, strings.Repeat("n", 255), unix.O_PATH|unix.O_CLOEXEC, 0)
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
	_, err = unix.Write(f, bytes.Repeat([]byte("deep"), 5000))
	if err := errors.Join(err, unix.Close(f), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
}

func layerOf(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := layers.WriteChange(t.Context(), &b, dir); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDeepCaches takes a snapshot of what is deeper than a path, and puts it into another directory.
func TestDeepCaches(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root: copies owners")
	}
	dir, tmp := t.TempDir(), t.TempDir()
	deepTree(t, dir)
	want := layerOf(t, dir)
	if err := snapshot(filepath.Join(tmp, "seen"), dir); err != nil {
		t.Fatal(err)
	}
	if got := layerOf(t, filepath.Join(tmp, "seen")); !bytes.Equal(got, want) {
		t.Error("the snapshot differs")
	}
	for range 2 { // into nothing, and into the same
		change := filepath.Join(tmp, "change")
		if err := layers.CopyDir(t.Context(), change, dir); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(tmp, "target")
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := applyChange(context.Background(), target, change); err != nil {
			t.Fatal(err)
		}
		tree, err := layers.DirTree(target)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tree.Lstat(strings.Repeat(strings.Repeat("n", 255)+"/", 20) + "file"); err != nil {
			t.Errorf("what was applied: %.80v", err)
		}
		if err := tree.Close(); err != nil {
			t.Fatal(err)
		}
		if err := foreign.RemoveAll(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeepImage has the host's kernel read the image of a layer that is deeper than a path.
func TestDeepImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root: mounts an image")
	}
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(b, []byte("erofs")) {
		t.Skip("the kernel has no EROFS")
	}
	dir, tmp := t.TempDir(), t.TempDir()
	deepTree(t, dir)
	l, err := metaOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	img, err := newImage([]*layerMeta{l})
	if err != nil {
		t.Fatal(err)
	}
	var files fileCache
	defer files.close()
	b := make([]byte, img.size)
	err = img.readAt(b, 0, func(dir string, at *foreign.Level) (*os.File, error) { return files.open(openFile{0, dir, at}) })
	if err != nil {
		t.Fatal(err)
	}
	image, mnt := filepath.Join(tmp, "image"), filepath.Join(tmp, "mnt")
	if err := errors.Join(os.WriteFile(image, b, 0o600), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", image, mnt).CombinedOutput(); err != nil {
		t.Skipf("cannot mount it: %s", out)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	}()
	if got := layerOf(t, filepath.Join(mnt, "0")); !bytes.Equal(got, layerOf(t, dir)) {
		t.Error("the image differs")
	}
}
