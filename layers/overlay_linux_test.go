package layers

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("requires root: overlay mounts, devices, owners")
	}
}

// mountOverlay mounts as executors do. The mount is attached nowhere: it goes with its descriptor. Lower directories
// are given base first.
func mountOverlay(t testing.TB, upper, work string, lower ...string) (path string, unmount func()) {
	t.Helper()
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	check(t, err)
	defer unix.Close(fsfd)
	set := func(key, value string) {
		if err := unix.FsconfigSetString(fsfd, key, value); err != nil {
			t.Fatalf("overlay %s=%s: %v", key, value, err)
		}
	}
	set("source", "overlay")
	for _, key := range []string{"redirect_dir", "metacopy", "index", "xino"} {
		set(key, "off")
	}
	slices.Reverse(lower)
	for _, l := range lower {
		set("lowerdir+", l)
	}
	if upper != "" {
		set("upperdir", upper)
		set("workdir", work)
		check(t, unix.FsconfigSetFlag(fsfd, "volatile"))
	}
	check(t, unix.FsconfigCreate(fsfd))
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	check(t, err)
	return fdPath(fd), func() { unix.Close(fd) }
}

// scratch is a directory in memory: tests that make many files would wait for a disk. Its mount, too, goes with its
// descriptor.
func scratch(t testing.TB) string {
	t.Helper()
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	check(t, err)
	defer unix.Close(fsfd)
	check(t, unix.FsconfigCreate(fsfd))
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fdPath(fd)
}

// merged reads what a chain of layer directories shows.
func merged(t testing.TB, lower ...string) map[string]string {
	t.Helper()
	lower = slices.Clone(lower)
	if len(lower) == 1 { // overlayfs wants two without an upper directory
		empty := t.TempDir()
		lower = append([]string{empty}, lower...)
	}
	path, unmount := mountOverlay(t, "", "", lower...)
	defer unmount()
	return snapshot(t, path)
}

// snapshot describes each file below root by one line, by means other than this package's.
func snapshot(t testing.TB, root string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	groups := make(map[[2]uint64]string)
	var walk func(rel string)
	walk = func(rel string) {
		path := root + "/" + rel
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatalf("lstat %q: %v", path, err)
		}
		typ := st.Mode & unix.S_IFMT
		if typ == unix.S_IFSOCK {
			return
		}
		line := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		if typ != unix.S_IFDIR && st.Nlink > 1 {
			id := [2]uint64{st.Dev, st.Ino}
			if first, ok := groups[id]; ok {
				line += " link=" + first
			} else {
				groups[id] = rel
			}
		}
		switch typ {
		case unix.S_IFREG:
			f, err := os.Open(path)
			check(t, err)
			h := sha256.New()
			n, err := io.Copy(h, f)
			check(t, err)
			f.Close()
			line += fmt.Sprintf(" %d %s", n, hex.EncodeToString(h.Sum(nil)[:6]))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			check(t, err)
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		out[rel] = line + xattrLine(t, path)
		if typ == unix.S_IFDIR {
			entries, err := os.ReadDir(path)
			check(t, err)
			for _, e := range entries {
				if e.Type() == fs.ModeCharDevice|fs.ModeDevice && !exists(filepath.Join(path, e.Name())) {
					continue // a whiteout that hides nothing: overlayfs lists it all the same
				}
				walk(filepath.Join(rel, e.Name()))
			}
		}
	}
	walk(".")
	return out
}

func xattrLine(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	check(t, err)
	keys := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	sort.Strings(keys)
	line := ""
	for _, k := range keys {
		if k == "" || k == "trusted.overlay.origin" || k == "trusted.overlay.impure" {
			continue // overlayfs's notes on an upper directory, which mean nothing in a lower one
		}
		n, err := unix.Lgetxattr(path, k, buf)
		check(t, err)
		line += fmt.Sprintf(" %q=%q", k, buf[:n])
	}
	return line
}

// diffTrees says how two snapshots differ, "" if they do not.
func diffTrees(a, b map[string]string) string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	var out []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if a[k] != b[k] {
			out = append(out, fmt.Sprintf("%q:\n  %s\n  %s", k, a[k], b[k]))
		}
	}
	return strings.Join(out, "\n")
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, elem ...string) string {
	t.Helper()
	path := filepath.Join(elem...)
	check(t, os.MkdirAll(path, 0o755))
	return path
}

func write(t testing.TB, path, data string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(data), 0o644))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

var _ fs.FS = (*Dir)(nil)
