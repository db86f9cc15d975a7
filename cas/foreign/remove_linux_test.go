package foreign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemoveAll(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	tree := filepath.Join(dir, "tree")
	for _, d := range []string{outside, tree, filepath.Join(tree, "many"), filepath.Join(tree, "closed", "inner"), filepath.Join(tree, "read-only")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1500 {
		if err := os.WriteFile(filepath.Join(tree, "many", fmt.Sprint(i)), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{filepath.Join(outside, "file"), filepath.Join(tree, "closed", "inner", "x"), filepath.Join(tree, "read-only", "x")} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Symlink(outside, filepath.Join(tree, "link")),
		os.Symlink("../../../../../../../outside", filepath.Join(tree, "closed", "link")),
		unix.Mkfifo(filepath.Join(tree, "fifo"), 0o644),
		deep(tree, strings.Repeat("d", 255), 300),
	); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(
			unix.Mknod(filepath.Join(tree, "whiteout"), unix.S_IFCHR, 0),
			unix.Mknod(filepath.Join(tree, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
			unix.Mknod(filepath.Join(tree, "disk"), unix.S_IFBLK, int(unix.Mkdev(240, 0))),
		); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Chmod(filepath.Join(tree, "closed", "inner"), 0),
		os.Chmod(filepath.Join(tree, "closed"), 0),
		os.Chmod(filepath.Join(tree, "read-only"), 0o555),
	); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := RemoveAll(ctx, tree); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for range 2 { // the second finds nothing
		if err := RemoveAll(t.Context(), tree); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || !isThere(filepath.Join(outside, "file")) {
		t.Errorf("left %v, %v", left, err)
	}
	if err := RemoveAll(t.Context(), filepath.Join(dir, "no", "such")); err != nil {
		t.Error(err)
	}
}

// deep makes n directories in each other: more than a path can name.
func deep(dir, name string, n int) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	for i := 0; i < n && err == nil; i++ {
		if err = unix.Mkdirat(fd, name, 0o755); err != nil {
			break
		}
		var next int
		next, err = unix.Openat(fd, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		fd = next
	}
	return errors.Join(err, unix.Close(fd))
}

func chown(dir string, user int) error {
	if out, err := exec.Command("chown", "-R", fmt.Sprint(user), dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// openFiles is how many descriptors the process has.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// An ordinary user deletes directories that their own mode closes.
func TestRemoveAllWithoutPrivileges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("TestRemoveAll does so already") // only root is another user
	}
	const user = 65534
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := errors.Join(os.MkdirAll(filepath.Join(tree, "closed", "inner"), 0o755), deep(tree, "a-rather-long-name", 200)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "closed", "inner", "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), chown(dir, user)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Join(tree, "closed", "inner"), 0o555), os.Chmod(filepath.Join(tree, "closed"), 0)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine, and its user with it.
		runtime.LockOSThread()
		done <- errors.Join(unix.Setfsuid(user), RemoveAll(context.Background(), tree))
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// What is far deeper than a layer may be is deleted too: a step can make it before it fails.
func TestRemoveVeryDeep(t *testing.T) {
	dir := t.TempDir()
	if err := deep(dir, "d", 5000); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(t.Context(), filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// One file that cannot be deleted keeps itself and the directories above it, not the rest.
func TestRemoveGoesOn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root, to make a file immutable")
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	stays := filepath.Join(tree, "m", "stays")
	for _, f := range []string{filepath.Join(tree, "a", "f"), stays, filepath.Join(tree, "m", "goes"), filepath.Join(tree, "z", "f")} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o755), os.WriteFile(f, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	immutable := func(on int) error {
		f, err := os.Open(stays)
		if err != nil {
			return err
		}
		defer f.Close()
		const flag = 0x10 // FS_IMMUTABLE_FL
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flag*on)
	}
	if err := immutable(1); err != nil {
		t.Skipf("the file system has no immutable files: %v", err)
	}
	err := RemoveAll(t.Context(), tree)
	left, _ := filepath.Glob(filepath.Join(tree, "*", "*"))
	if off := immutable(0); off != nil {
		t.Fatal(off)
	}
	if err == nil || !strings.Contains(err.Error(), "stays") {
		t.Errorf("error: %v", err)
	}
	if len(left) != 1 || left[0] != stays {
		t.Errorf("left %v", left)
	}
}
