package cas

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const nobody = 65534

// asNobody runs f with the file permissions of a user who is not root.
func asNobody(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine, and its user with it.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, nobody, 0, 0); errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}

// A store belongs to its user alone, and so does all that leads to it, but for what is root's.
func TestPlaceOfAStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root, to make directories of others")
	}
	for name, test := range map[string]struct {
		make func(dir string) (store string, err error) // dir is 0755 and root's
		want string                                     // part of the error
	}{
		"missing": {func(dir string) (string, error) { return filepath.Join(dir, "a", "b"), nil }, ""},
		"empty, open to all": {func(dir string) (string, error) {
			return filepath.Join(dir, "a"), os.Mkdir(filepath.Join(dir, "a"), 0o755)
		}, ""},
		"a store of an older obx": {func(dir string) (string, error) {
			s, err := Open(dir)
			if err != nil {
				return "", err
			}
			return dir, errors.Join(s.Close(), os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, gcLock), 0o644))
		}, ""},
		"in a sticky directory": {func(dir string) (string, error) {
			return filepath.Join(dir, "a"), os.Chmod(dir, 0o777|fs.ModeSticky)
		}, ""},
		"in a directory of a group": {func(dir string) (string, error) {
			return filepath.Join(dir, "a"), os.Chmod(dir, 0o775)
		}, ""},
		"by a link of root": {func(dir string) (string, error) {
			return filepath.Join(dir, "link", "store"), errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o755), os.Symlink("../"+filepath.Base(dir)+"/a", filepath.Join(dir, "link")))
		}, ""},
		"by an absolute link of root": {func(dir string) (string, error) {
			return filepath.Join(dir, "link"), os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "link"))
		}, ""},
		"of another": {func(dir string) (string, error) {
			return filepath.Join(dir, "a"), errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Chown(filepath.Join(dir, "a"), nobody, -1))
		}, "belongs to user 65534"},
		"below a directory of another": {func(dir string) (string, error) {
			return filepath.Join(dir, "a", "b", "c"), errors.Join(os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700), os.Chown(filepath.Join(dir, "a"), nobody, -1))
		}, "belongs to user 65534"},
		"by a link of another": {func(dir string) (string, error) {
			return filepath.Join(dir, "link"), errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Symlink("a", filepath.Join(dir, "link")), os.Lchown(filepath.Join(dir, "link"), nobody, -1))
		}, "belongs to user 65534"},
		"by a link below another's": {func(dir string) (string, error) {
			return filepath.Join(dir, "link"), errors.Join(os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700), os.Chown(filepath.Join(dir, "a"), nobody, -1), os.Symlink("a/b", filepath.Join(dir, "link")))
		}, "belongs to user 65534"},
		"by links in a circle": {func(dir string) (string, error) {
			return filepath.Join(dir, "link"), os.Symlink("link", filepath.Join(dir, "link"))
		}, "too many levels"},
		"where everybody can write": {func(dir string) (string, error) {
			return filepath.Join(dir, "a"), os.Chmod(dir, 0o777)
		}, "everybody can write to"},
		"where everybody could write who cannot come there": {func(dir string) (string, error) {
			return filepath.Join(dir, "a", "b"), errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o777), os.Chmod(filepath.Join(dir, "a"), 0o777), os.Chmod(dir, 0o700))
		}, ""},
		"open for everybody to write": {func(dir string) (string, error) {
			return filepath.Join(dir, "a"), errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o777), os.Chmod(filepath.Join(dir, "a"), 0o777|fs.ModeSticky))
		}, "use a new directory in it"},
		"a directory with other things": {func(dir string) (string, error) {
			return dir, os.WriteFile(filepath.Join(dir, "letter"), nil, 0o644)
		}, "not a store"},
		"a project with a version": {func(dir string) (string, error) {
			return dir, errors.Join(os.WriteFile(filepath.Join(dir, versionFile), []byte(format), 0o644), os.WriteFile(filepath.Join(dir, "letter"), nil, 0o644))
		}, "not a store"},
		"a file": {func(dir string) (string, error) {
			return filepath.Join(dir, "a"), os.WriteFile(filepath.Join(dir, "a"), nil, 0o644)
		}, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // all of it can be reached
				t.Fatal(err)
			}
			store, err := test.make(dir)
			if err != nil {
				t.Fatal(err)
			}
			modes := func() (all string) {
				_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, _ error) error {
					info, err := e.Info()
					if err != nil {
						return err
					}
					all += p + " " + info.Mode().String() + "\n"
					return nil
				})
				return all
			}
			before := modes()
			s, err := Open(store)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want %q", err, test.want)
				}
				if now := modes(); now != before {
					t.Errorf("something was changed: %s, then %s", before, now)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, f := range []struct {
				path string
				mode fs.FileMode
			}{{s.Dir(), 0o700}, {s.path(gcLock), 0o600}, {s.path(leasesDir, s.RunID()), 0o600}} {
				if info, err := os.Stat(f.path); err != nil || info.Mode().Perm() != f.mode {
					t.Errorf("%s: %v, %v, want mode %o", f.path, info.Mode(), err, f.mode)
				}
			}
		})
	}
}

// What a step has left in a layer or a cache mount is out of reach of the machine's other users, and so are the locks.
func TestOthersSeeNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root, to be another")
	}
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	layer := commitLayer(t, s, "", "x")
	program := filepath.Join(s.LayerPath(layer), "file")
	if err := os.Chmod(program, 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	shared := openCache(t, s, "c", "shared").Shared
	lock, err := s.Lock(t.Context(), "default", "key")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{program, shared, s.path(gcLock), lock.LogPath(), s.path(locksDir, "default", "key.lock"), s.path(leasesDir, s.RunID())} {
		if !exists(path) {
			t.Fatalf("no %s", path)
		}
		err := asNobody(func() error {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
		if !errors.Is(err, unix.EACCES) {
			t.Errorf("%s: another user: %v", path, err)
		}
	}
}
