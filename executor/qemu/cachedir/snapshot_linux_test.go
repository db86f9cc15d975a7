package cachedir

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A snapshot keeps what was there, whatever happens to names after it.
func TestSnapshot(t *testing.T) {
	top := t.TempDir()
	of, dir := filepath.Join(top, "of"), filepath.Join(top, "snapshot")
	date := time.Unix(1234567890, 5)
	err := errors.Join(
		os.MkdirAll(filepath.Join(of, "d/e"), 0o755),
		os.WriteFile(filepath.Join(of, "d/e/f"), []byte("old"), 0o640),
		os.Link(filepath.Join(of, "d/e/f"), filepath.Join(of, "again")),
		os.Symlink("/etc", filepath.Join(of, "link")),
		unix.Mkfifo(filepath.Join(of, "fifo"), 0o600),
		os.Chmod(filepath.Join(of, "d"), os.ModeSticky|0o777),
		os.Chtimes(filepath.Join(of, "d"), date, date),
	)
	if err != nil {
		t.Fatal(err)
	}
	if err := Snapshot(dir, of); err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(of, "new"), []byte("new"), 0o644),
		os.Rename(filepath.Join(of, "new"), filepath.Join(of, "d/e/f")),
		os.Remove(filepath.Join(of, "fifo")),
		os.RemoveAll(filepath.Join(of, "d")),
		os.Symlink("/etc", filepath.Join(of, "d")),
	)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "d"))
	if err != nil {
		t.Fatal(err)
	}
	if m := info.Mode(); m != os.ModeDir|os.ModeSticky|0o777 || !info.ModTime().Equal(date) {
		t.Errorf("a directory has mode %v and time %v", m, info.ModTime())
	}
	for _, name := range []string{"d/e/f", "again"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != "old" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for name, mode := range map[string]os.FileMode{"link": os.ModeSymlink, "fifo": os.ModeNamedPipe} {
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode().Type() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// While a snapshot is taken, a directory becomes a link to files of the host, and back: they are never in it.
func TestSnapshotFollowsNoLinks(t *testing.T) {
	top := t.TempDir()
	host, of := filepath.Join(top, "host"), filepath.Join(top, "of")
	for _, d := range []string{host, of, filepath.Join(of, "d"), filepath.Join(of, "aside")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(host, "secret"), nil, 0o600), os.Symlink(host, filepath.Join(of, "aside/link"))); err != nil {
		t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-end:
				ended <- nil
				return
			default:
			}
			// The two names are exchanged in one go: there is always one of them.
			if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(of, "d"), unix.AT_FDCWD, filepath.Join(of, "aside/link"), unix.RENAME_EXCHANGE); err != nil {
				ended <- err
				return
			}
		}
	}()
	for i := range 300 {
		dir := filepath.Join(top, strconv.Itoa(i))
		if err := Snapshot(dir, of); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(filepath.Join(dir, "d"))
		if err != nil {
			if errors.Is(err, os.ErrNotExist) { // it was neither when it was looked at
				continue
			}
			t.Fatal(err)
		}
		if info.IsDir() {
			if _, err := os.Lstat(filepath.Join(dir, "d/secret")); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("a file of the host is in the snapshot: %v", err)
			}
		}
	}
	close(end)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
