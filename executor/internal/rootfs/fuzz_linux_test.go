package rootfs

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// plantLines makes files in a directory: a line is a letter for the type, a name, and for links a target after a tab. What cannot be made is left
// out.
func plantLines(t *testing.T, dir, text string) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) < 2 {
			continue
		}
		name, target, _ := strings.Cut(line[1:], "\t")
		if !filepath.IsLocal(name) || name != path.Clean(name) {
			continue
		}
		_ = root.MkdirAll(path.Dir(name), 0o755)
		switch line[0] {
		case 'd':
			_ = root.Mkdir(name, 0o755)
		case 'f':
			if f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err == nil {
				f.Close()
			}
		case 'l':
			_ = root.Symlink(target, name)
		case 'p':
			if parent, err := root.OpenFile(path.Dir(name), unix.O_DIRECTORY, 0); err == nil {
				_ = unix.Mknodat(int(parent.Fd()), path.Base(name), unix.S_IFIFO|0o600, 0)
				parent.Close()
			}
		}
	}
}

// kernelFinds is where the kernel says that a path leads in a root, relative to that.
func kernelFinds(root int, rootPath, name string) (string, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, name, &how)
		// Something was renamed somewhere; and a walk that the kernel begins once more goes on counting links.
		if err == unix.EAGAIN || err == unix.EINTR || err == unix.ELOOP && try < 20 {
			continue
		}
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		at, err := os.Readlink(ProcFD(fd))
		if err != nil {
			return "", err
		}
		if at != rootPath && !strings.HasPrefix(at, rootPath+"/") {
			return "", errors.New("the kernel has left the root")
		}
		return strings.TrimPrefix(strings.TrimPrefix(at, rootPath), "/"), nil
	}
}

// FuzzResolve holds that a path in a hostile root, on which a hostile cache will be mounted, leads to where it leads when the cache is there, as the
// kernel finds it; and that nothing which a link in the cache leads to is found, unless such links are followed.
func FuzzResolve(f *testing.F) {
	for _, seed := range [][3]string{
		{"dd/sub\nlabs\t/d/sub\nlrel\td/sub\nlup\t../../../../d\nfd/f", "", "/abs/../../rel/./x"},
		{"lloop\tloop\nlping\tpong\nlpong\tping", "", "ping/x"},
		{"lout\t../outside\nlroot\t/../../outside", "", "out/f"},
		{"lmagic\t/proc/self/root\nlfd\t/proc/self/fd/0", "", "/magic/etc/passwd"},
		{"ff\nlf2\tf/", "", "f/"}, {"ff", "", "f/.."}, {"ff", "", "f/."}, {"ff\nll\tf", "", "l/"}, {"", "", "none/../c"},
		{"pp", "", "p"}, {"la\tb\nlb\tc/d", "dd\nfd/f", "a/f"},
		{"", "lx\t/etc\nly\t..\nlz\t../../outside", "c/x"}, {"", "lx\t..", "c/x/c/x"}, {"", "dd\nff", "c/d/../f"}, {"fc/hidden\nll\tc", "", "l/hidden"},
		{"d" + strings.Repeat("a/", 30) + "a", "", strings.Repeat("a/", 30) + strings.Repeat("../", 40) + "c"},
		{"ll\t" + strings.Repeat("./", 100) + "d\ndd", "", strings.Repeat("l/../", 39) + "l"}, {"ll\td\ndd", "", strings.Repeat("l/../", 40) + "l"},
		{"d\xff\nl\xfe\t\xff", "", "\xfe"}, {"", "", strings.Repeat("n", 256)},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	tmp, err := os.MkdirTemp("/dev/shm", "obx-resolve-")
	if err != nil {
		tmp = f.TempDir()
	}
	f.Cleanup(func() { os.RemoveAll(tmp) })
	f.Fuzz(func(t *testing.T, rootText, cacheText, name string) {
		if len(name) > 1000 || len(rootText)+len(cacheText) > 2000 || strings.Contains(name, "\x00") {
			return
		}
		base := filepath.Join(tmp, "run")
		defer os.RemoveAll(base)
		dirs := map[string]int{}
		for _, d := range []string{"root/c", "cache", "shown/c", "outside/f"} {
			if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		root, cache, shown := filepath.Join(base, "root"), filepath.Join(base, "cache"), filepath.Join(base, "shown")
		plantLines(t, root, rootText)
		plantLines(t, cache, cacheText)
		plantLines(t, shown, rootText)
		if err := errors.Join(os.RemoveAll(shown+"/c"), os.Mkdir(shown+"/c", 0o755)); err != nil {
			t.Fatal(err)
		}
		plantLines(t, shown+"/c", cacheText)
		for _, d := range []string{root, cache, shown} {
			r, err := openRoot(d)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(r.FD)
			dirs[d] = r.FD
		}
		want, wantErr := kernelFinds(dirs[shown], shown, name)
		if name == "" {
			want, wantErr = "", nil
		}
		for _, lenient := range []bool{true, false} {
			r := RootDir{FD: dirs[root], over: []overMount{{"c", dirs[cache]}}, lenient: lenient}
			at, err := r.resolve(name)
			if err != nil && !lenient && strings.Contains(err.Error(), "in a cache") {
				if !strings.Contains(cacheText, "\t") {
					t.Errorf("%q: %v, but there is no link in the cache", name, err)
				}
				continue
			}
			switch {
			case wantErr == nil && (err != nil || len(at.missing) > 0 || at.found != want):
				t.Errorf("%q (%v): found %q, missing %q, %v; the kernel finds %q", name, lenient, at.found, at.missing, err, want)
			case lenient && strings.Contains(name+rootText+cacheText, ".."): // may lead back from what is missing
			case errors.Is(wantErr, unix.ENOENT) && (err == nil && len(at.missing) == 0 || err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR)):
				t.Errorf("%q (%v): found %q, %v; for the kernel it is missing", name, lenient, at.found, err)
			case wantErr != nil && !errors.Is(wantErr, unix.ENOENT) && !errors.Is(err, wantErr):
				t.Errorf("%q (%v): found %q, missing %q, %v; the kernel says %v", name, lenient, at.found, at.missing, err, wantErr)
			}
			if err != nil {
				continue
			}
			// What was found is there, and no link is on the way to it.
			fd, err := r.openAt(at.found, unix.O_PATH|unix.O_NOFOLLOW)
			if err != nil {
				t.Fatalf("%q (%v): found %q: %v", name, lenient, at.found, err)
			}
			here, err := os.Readlink(ProcFD(fd))
			unix.Close(fd)
			if err != nil || here != root && !strings.HasPrefix(here, root+"/") && here != cache && !strings.HasPrefix(here, cache+"/") {
				t.Fatalf("%q (%v): it is %s, outside of the root: %v", name, lenient, here, err)
			}
			for _, m := range at.missing {
				if m == "" || m == "." || m == ".." || strings.Contains(m, "/") {
					t.Errorf("%q (%v): missing is %q", name, lenient, at.missing)
				}
			}
		}
		if all, err := os.ReadDir(base + "/outside"); err != nil || len(all) != 1 {
			t.Fatalf("outside are %v, %v", all, err)
		}
	})
}
