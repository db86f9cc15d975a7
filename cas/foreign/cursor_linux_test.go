package foreign

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A Cursor goes down and up again through paths that no call takes, with few descriptors.
func TestCursorIsDeepWithFewDescriptors(t *testing.T) {
	const depth = 400
	dir := t.TempDir()
	name := strings.Repeat("n", 255)
	if err := deep(dir, name, depth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveAll(t.Context(), filepath.Join(dir, name)); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	for _, hold := range []int{1, 2, 0} {
		before := openFiles(t)
		c, err := NewCursor(dir, hold)
		if err != nil {
			t.Fatal(err)
		}
		for range depth {
			if err := c.Enter(name); err != nil {
				t.Fatal(err)
			}
		}
		if n := openFiles(t) - before; n > defaultHold+2 || hold > 0 && n > hold+1 {
			t.Errorf("hold %d: %d descriptors are open", hold, n)
		}
		if names, err := c.Names(); err != nil || len(names) > 0 {
			t.Errorf("hold %d: at the bottom: %v, %v", hold, names, err)
		}
		if l := c.Level(); l.Depth() != depth || l.Len() != depth*256-1 || len(l.String()) != l.Len() {
			t.Errorf("hold %d: level %d, %d, %d", hold, l.Depth(), l.Len(), len(l.String()))
		}
		for range depth {
			if err := c.Leave(); err != nil {
				t.Fatal(err)
			}
			if names, err := c.Names(); err != nil || len(names) != 1 {
				t.Fatalf("hold %d: level %d: %d names, %v", hold, c.Level().Depth(), len(names), err)
			}
		}
		c.Close()
		if n := openFiles(t); n != before {
			t.Errorf("hold %d: %d descriptors are left", hold, n-before)
		}
	}
}

// A directory that is moved meanwhile does not lead a Cursor out of its tree.
func TestCursorDoesNotLeaveItsTree(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "tree", "a", "b", "c"), 0o755), os.Symlink("..", filepath.Join(dir, "tree", "link"))); err != nil {
		t.Fatal(err)
	}
	c, err := NewCursor(filepath.Join(dir, "tree"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, name := range []string{"link", "none"} {
		if err := c.Enter(name); err == nil {
			t.Fatalf("entered %s", name)
		}
	}
	if err := errors.Join(c.Enter("a"), c.Enter("b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "tree", "a", "b"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := c.Leave(); !errors.Is(err, ErrMoved) {
		t.Errorf("leave: %v", err)
	}
}

func TestOpenBeneath(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("n", 255)
	if err := deep(dir, name, 40); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(name, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	long := strings.TrimSuffix(strings.Repeat(name+"/", 40), "/")
	for path, want := range map[string]error{
		long:                     nil,
		long + "/none":           unix.ENOENT,
		"link":                   unix.ELOOP,
		"link/" + name:           unix.ELOOP,
		"../" + long:             unix.EXDEV,
		strings.Repeat("x", 256): unix.ENAMETOOLONG,
	} {
		fd, err := OpenBeneath(root, path, unix.O_RDONLY|unix.O_NOFOLLOW)
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%.20s (%d bytes): %v, want %v", path, len(path), err, want)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
}

// What is no regular file is an error at once, and a link that leads out of a directory is none of its files.
func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.WriteFile(at("file"), []byte("text"), 0o644),
		os.WriteFile(outside, []byte("secret"), 0o644),
		os.Symlink("file", at("inner")),
		os.Symlink(outside, at("outer")),
		os.Symlink("pipe", at("to-pipe")),
		unix.Mkfifo(at("pipe"), 0o666),
		os.Mkdir(at("dir"), 0o755),
		os.Symlink("/dev/zero", at("device")),
	); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, good := range map[string]struct{ open, in bool }{
		"file": {true, true}, "inner": {true, true}, "outer": {true, false}, "pipe": {}, "to-pipe": {}, "dir": {}, "device": {}, "none": {},
	} {
		f, err := OpenFile(at(name))
		if (err == nil) != good.open {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			f.Close()
		}
		f, err = OpenIn(root, name)
		if (err == nil) != good.in {
			t.Errorf("%s in its directory: %v", name, err)
		}
		if err == nil {
			f.Close()
		}
	}
	if _, err := OpenFile(at("pipe")); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a pipe: %v", err)
	}
}

func TestLevel(t *testing.T) {
	root := &Level{}
	l := root.Child("a").Child("b")
	if root.String() != "." || l.String() != "a/b" || l.Len() != 3 || l.Depth() != 2 || l.Name() != "b" {
		t.Errorf("%q, %q, %d, %d", root, l, l.Len(), l.Depth())
	}
	for range 1000 {
		l = l.Child("directory")
	}
	if s := l.Short(); len(s) > 250 || !strings.HasPrefix(s, "a/b/directory/") || !strings.HasSuffix(s, "...") {
		t.Errorf("short: %q", s)
	}
}
