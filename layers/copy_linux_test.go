package layers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// plant makes files as words say: "d/" a directory, "f" a file, "l->to" a link, ":MODE" after one its mode.
func plant(t testing.TB, root, words string) {
	t.Helper()
	for _, w := range strings.Fields(words) {
		w, mode, _ := strings.Cut(w, ":")
		name, to, isLink := strings.Cut(w, "->")
		path := filepath.Join(root, name)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch {
		case isLink:
			check(t, os.Symlink(to, path))
		case strings.HasSuffix(w, "/"):
			check(t, os.MkdirAll(path, 0o755))
		default:
			check(t, os.WriteFile(path, []byte("of "+filepath.Base(name)), 0o644))
		}
		if mode != "" {
			var m uint32
			_, err := fmt.Sscanf(mode, "%o", &m)
			check(t, err)
			check(t, unix.Chmod(path, m))
		}
	}
}

func TestCopy(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name, parent, source, srcs, dst string
		want                            string // what the layer has; the user is 7:8
	}{
		{"file to a name", "", "a", "a", "/x",
			"x f 644 4 7:8"},
		{"file into a directory that is missing", "", "a", "a", "/new/deep/",
			"new d 755; new/deep d 755 7:8; new/deep/a f 644 4 7:8"},
		{"file below a directory that is missing", "", "a", "a", "/new/x",
			"new d 755; new/x f 644 4 7:8"},
		{"file into the root", "etc/", "a", "a", "/",
			"a f 644 4 7:8"},
		{"file over a file", "f:600", "a", "a", "/f",
			"f f 644 4 7:8"},
		{"file over a link, which it replaces", "real f->real", "a", "a", "/f",
			"f f 644 4 7:8"},
		{"file through a link to a directory", "usr/bin/ bin->usr/bin", "a", "a", "/bin/",
			"usr d 755; usr/bin d 755; usr/bin/a f 644 4 7:8"},
		{"file to a name through a link", "usr/bin/ bin->usr/bin", "a", "a", "/bin/x",
			"usr d 755; usr/bin d 755; usr/bin/x f 644 4 7:8"},
		{"through an absolute link", "real/ lnk->/real", "a", "a", "/lnk/",
			"real d 755; real/a f 644 4 7:8"},
		{"through a link that goes up beyond the root", "real/ d/lnk->../../../real", "a", "a", "/d/lnk/",
			"real d 755; real/a f 644 4 7:8"},
		{"through links to links", "real/ a->b b->/c c->./real/.", "x", "x", "/a/y",
			"real d 755; real/y f 644 4 7:8"},
		{"through a link to nothing", "lnk->no/where", "a", "a", "/lnk/",
			"no d 755; no/where d 755 7:8; no/where/a f 644 4 7:8"},
		{"existing directories as they are", "tmp/:1777 tmp/s/:2700", "a", "a", "/tmp/s/",
			"tmp d 1777; tmp/s d 2700; tmp/s/a f 644 4 7:8"},
		{"several files", "", "a b:700 c:4654", "a b c", "/m/",
			"m d 755 7:8; m/a f 644 4 7:8; m/b f 755 4 7:8; m/c f 755 4 7:8"},
		{"a source twice", "", "a", "a a", "/m/",
			"m d 755 7:8; m/a f 644 4 7:8"},
		{"directory to a name", "", "d/a d/e/ d/l->a", "d", "/x",
			"x d 755 7:8; x/a f 644 4 7:8; x/e d 755 7:8; x/l l a 7:8"},
		{"directory into a directory", "", "d/a", "d", "/x/",
			"x d 755 7:8; x/d d 755 7:8; x/d/a f 644 4 7:8"},
		{"directory into one that exists, and keeps its attributes", "x/:700 x/keep x/sub/:711 x/a:600", "d/a d/sub/b", "d", "/x",
			"x d 700; x/a f 644 4 7:8; x/sub d 711; x/sub/b f 644 4 7:8"},
		{"directory over a file", "x", "d/a", "d", "/x",
			"x d 755 7:8; x/a f 644 4 7:8"},
		{"directory over a link to a directory, which it follows", "real/keep x->real", "d/a", "d", "/x",
			"real d 755; real/a f 644 4 7:8"},
		{"directory inside a source over a link to a directory", "usr/lib/ lib->usr/lib", "lib/a", ".", "/",
			"usr d 755; usr/lib d 755; usr/lib/a f 644 4 7:8"},
		{"everything to a name", "", "a d/b", ".", "/all",
			"all d 755 7:8; all/a f 644 4 7:8; all/d d 755 7:8; all/d/b f 644 4 7:8"},
		{"everything into a directory", "", "a d/b", ".", "/all/",
			"all d 755 7:8; all/a f 644 4 7:8; all/d d 755 7:8; all/d/b f 644 4 7:8"},
		{"everything into the root", "etc/:700", "a etc/b", ".", "/",
			"a f 644 4 7:8; etc d 700; etc/b f 644 4 7:8"},
		{"everything to a workdir that is spelled with dots", "", "a", ".", "/w/./.",
			"w d 755 7:8; w/a f 644 4 7:8"},
		{"two directories of one name", "", "x/d/a y/d/b", "x/d y/d", "/o/",
			"o d 755 7:8; o/d d 755 7:8; o/d/a f 644 4 7:8; o/d/b f 644 4 7:8"},
		{"a directory over a file of the same copy", "", "x/n y/n/b", "x/n y/n", "/o/",
			"o d 755 7:8; o/n d 755 7:8; o/n/b f 644 4 7:8"},
		{"through a link of the same copy", "etc/", "x/n->/etc y/n/b", "x/n y/n", "/o/",
			"etc d 755; etc/b f 644 4 7:8; o d 755 7:8; o/n l /etc 7:8"},
		{"a link as itself", "", "l->/etc/passwd", "l", "/x",
			"x l /etc/passwd 7:8"},
		{"empty directory", "", "e/", "e", "/e1",
			"e1 d 755 7:8"},
		{"slashes twice", "", "a", "a", "//x///y//",
			"x d 755; x/y d 755 7:8; x/y/a f 644 4 7:8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tmp := t.TempDir()
			got, err := copyOf(t, tmp, tt.parent, tt.source, tt.srcs, tt.dst)
			check(t, err)
			if got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

// copyOf plants a parent and a source directory and runs one copy.
func copyOf(t *testing.T, tmp, parentWords, sourceWords, srcs, dst string) (string, error) {
	t.Helper()
	parent, source, out := mkdir(t, tmp, "parent"), mkdir(t, tmp, "source"), mkdir(t, tmp, "out")
	plant(t, parent, parentWords)
	plant(t, source, sourceWords)
	to, from := openTree(t, parent), openTree(t, source)
	c := Copy{From: from, Parent: to, Dst: dst, UID: 7, GID: 8}
	for _, src := range strings.Fields(srcs) {
		name := filepath.Base(src)
		if src == "." {
			name = ""
		}
		c.Items = append(c.Items, items(t, from, src, name))
	}
	if err := makeCopy(t.Context(), out, c); err != nil {
		return "", err
	}
	return describe(t, out, ""), nil
}

func openTree(t testing.TB, path string) *Dir {
	t.Helper()
	d, err := DirTree(path)
	check(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// A directory for a machine of Windows has no drive, and its links lead to drive C.
func TestCopyToWindows(t *testing.T) {
	needRoot(t)
	for dst, want := range map[string]string{
		`C:\src\`:         "src d 755 7:8; src/a f 644 4 7:8",
		"c:/Users/opam/x": "Users d 755; Users/opam d 755; Users/opam/x f 644 4 7:8",
		`/link/y`:         "Users d 755; Users/y f 644 4 7:8",
	} {
		tmp := t.TempDir()
		parent, source, out := mkdir(t, tmp, "parent"), mkdir(t, tmp, "source"), mkdir(t, tmp, "out")
		plant(t, parent, "Users/")
		check(t, os.Symlink(`C:\Users`, filepath.Join(parent, "link")))
		plant(t, source, "a")
		from := openTree(t, source)
		c := Copy{From: from, Parent: openTree(t, parent), Dst: dst, Windows: true, UID: 7, GID: 8, Items: []Item{items(t, from, "a", "a")}}
		check(t, makeCopy(t.Context(), out, c))
		if got := describe(t, out, ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", dst, got, want)
		}
	}
	err := makeCopy(t.Context(), mkdir(t, t.TempDir(), "out"), Copy{Dst: `D:\x`, Windows: true})
	if bad := (*CopyError)(nil); !errors.As(err, &bad) {
		t.Errorf("got %v", err)
	}
}

func TestCopyFails(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name, parent, source, srcs, dst string
		path, msg                       string
	}{
		{"file over a directory", "dir/", "a", "a", "/dir", "/dir", "is a directory"},
		{"file over a directory in a directory", "x/a/", "a", "a", "/x/", "/x/a", "is a directory"},
		{"file inside a source over a directory", "x/a/", "d/a", "d", "/x", "/x/a", "is a directory"},
		{"link over a directory", "x/", "l->a", "l", "/x", "/x", "is a directory"},
		{"file over a directory of the same copy", "", "x/n/b y/n", "x/n y/n", "/o/", "/o/n", "is a directory"},
		{"file to the working directory's name", "", "a", "a", "/w/.", "/w/.", "is a directory"},
		{"file to the root's name", "", "a", "a", "/.", "/.", "is a directory"},
		{"below a file", "f", "a", "a", "/f/x", "/f", "is not a directory"},
		{"into a file", "f", "a", "a", "/f/", "/f", "is not a directory"},
		{"dots", "w/", "a", "a", "/w/../y", "/w/../y", `".."`},
		{"a loop of links", "a->b b->a", "x", "x", "/a/y", "/", "too many links"},
		{"several to a name", "", "a b", "a b", "/m", "/m", "must end with /"},
		{"a name that no layer can hold", "", "d/.wh.x", "d", "/m", "/m/.wh.x", "cannot be kept"},
		{"a destination of endless depth", "", "a", "a", "/" + strings.Repeat("d/", 3000), "/d/d/d/", "is longer than 4095 bytes"},
		{"endless depth through a link", "l->" + strings.Repeat("d/", 2000) + " m->/l/l/l", "a", "a", "/m/" + strings.Repeat("d/", 100), "/m/d/d/", "is longer than 4095 bytes"},
		{"a destination that no layer can hold", "", "a", "a", "/.wh.m/x", "/.wh.m", "cannot be kept"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := copyOf(t, t.TempDir(), tt.parent, tt.source, tt.srcs, tt.dst)
			var ce *CopyError
			if !errors.As(err, &ce) || !strings.HasPrefix(ce.Path, tt.path) || !strings.Contains(ce.Msg, tt.msg) {
				t.Errorf("error %v, want a CopyError of %s: %s", err, tt.path, tt.msg)
			}
		})
	}
}

// TestCopySourceChanged holds that what lands is what was hashed.
func TestCopySourceChanged(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name   string
		change func(dir string) error
	}{
		{"other content", func(dir string) error { return os.WriteFile(dir+"/d/f", []byte("OF f"), 0o644) }},
		{"longer", func(dir string) error { return os.WriteFile(dir+"/d/f", []byte("of f and more"), 0o644) }},
		{"gone", func(dir string) error { return os.Remove(dir + "/d/f") }},
		{"a link now", func(dir string) error {
			return errors.Join(os.Rename(dir+"/d/f", dir+"/g"), os.Symlink("../g", dir+"/d/f"))
		}},
		{"a pipe now", func(dir string) error {
			return errors.Join(os.Remove(dir+"/d/f"), unix.Mkfifo(dir+"/d/f", 0o644))
		}},
		{"another link", func(dir string) error {
			return errors.Join(os.Remove(dir+"/d/l"), os.Symlink("elsewhere", dir+"/d/l"))
		}},
		{"directory gone", func(dir string) error { return os.Rename(dir+"/d", dir+"/e") }},
		{"a file for a directory", func(dir string) error {
			return errors.Join(os.RemoveAll(dir+"/d"), os.WriteFile(dir+"/d", nil, 0o644))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source := t.TempDir()
			plant(t, source, "d/f d/l->f")
			from := openTree(t, source)
			c := Copy{From: from, Parent: openTree(t, t.TempDir()), Dst: "/x", Items: []Item{items(t, from, "d", "d")}}
			check(t, tt.change(source))
			err := makeCopy(t.Context(), t.TempDir(), c)
			var ce *CopyError
			if err == nil || errors.As(err, &ce) || !strings.Contains(err.Error(), `source "d`) {
				t.Errorf("error %v, want a plain one that names the source", err)
			}
		})
	}
}

// TestCopyTimes holds that times are kept in whole seconds, that directories on the way stay exactly as they are, and
// that the same copy packs into the same bytes.
func TestCopyTimes(t *testing.T) {
	needRoot(t)
	at := time.Unix(1_500_000_000, 987_654_321)
	parent, source := t.TempDir(), t.TempDir()
	plant(t, parent, "usr/bin/:2751")
	check(t, unix.Setxattr(parent+"/usr/bin", "user.x", []byte("y"), 0))
	check(t, os.Chown(parent+"/usr/bin", 3, 4))
	check(t, unix.Chmod(parent+"/usr/bin", 0o2751))
	plant(t, source, "d/f d/l->f")
	for _, p := range []string{parent, parent + "/usr", parent + "/usr/bin", source + "/d/f", source + "/d/l", source + "/d"} {
		check(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{}, unix.NsecToTimespec(at.UnixNano())}, unix.AT_SYMLINK_NOFOLLOW))
	}
	from, to := openTree(t, source), openTree(t, parent)
	c := Copy{From: from, Parent: to, Dst: "/usr/bin/new/", Items: []Item{items(t, from, "d", "d")}}
	out := mkdir(t, t.TempDir(), "out")
	check(t, makeCopy(t.Context(), out, c))
	before, after := snapshot(t, parent), snapshot(t, out)
	for _, p := range []string{".", "usr", "usr/bin"} {
		if before[p] != after[p] {
			t.Errorf("%s: %s, was %s", p, after[p], before[p])
		}
	}
	for _, p := range []string{"d", "d/f", "d/l"} {
		if got := after["usr/bin/new/"+p]; !strings.Contains(got, " 1500000000.000000000") {
			t.Errorf("%s: %s", p, got)
		}
	}
	again := mkdir(t, t.TempDir(), "out")
	check(t, makeCopy(t.Context(), again, c))
	if a, b := diffOf(t, out), diffOf(t, again); a != b {
		t.Errorf("%s, then %s", a, b)
	}
}

// diffOf is the digest of a layer directory's tar.
func diffOf(t testing.TB, dir string) digest.Digest {
	t.Helper()
	h := digest.SHA256.Digester()
	check(t, WriteChange(context.Background(), h.Hash(), dir))
	return h.Digest()
}

// TestCopyLarge copies files in several reads, from any fs.FS.
func TestCopyLarge(t *testing.T) {
	needRoot(t)
	source := t.TempDir()
	data := strings.Repeat("0123456789abcdef", 100_000)
	write(t, source+"/large", data)
	write(t, source+"/exact", data[:256<<10])
	root, err := os.OpenRoot(source)
	check(t, err)
	defer root.Close()
	it := items(t, openTree(t, source), ".", "")
	out := t.TempDir()
	check(t, makeCopy(t.Context(), out, Copy{From: root.FS(), Parent: openTree(t, t.TempDir()), Dst: "/", Items: []Item{it}}))
	for _, name := range []string{"large", "exact"} {
		want, err := os.ReadFile(filepath.Join(source, name))
		check(t, err)
		got, err := os.ReadFile(filepath.Join(out, name))
		check(t, err)
		if string(got) != string(want) {
			t.Errorf("%s differs", name)
		}
	}
}

// plantLines makes files in a directory: a line is a letter for the type, a name, and for links a target after a tab. Files have their names as
// content. What cannot be made is left out.
func plantLines(t *testing.T, dir, text string) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	check(t, err)
	defer root.Close()
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) < 2 {
			continue
		}
		name, target, _ := strings.Cut(line[1:], "\t")
		if !filepath.IsLocal(name) || name != filepath.Clean(name) {
			continue
		}
		_ = root.MkdirAll(filepath.Dir(name), 0o755)
		switch line[0] {
		case 'd':
			_ = root.Mkdir(name, 0o755)
		case 'f':
			if f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err == nil {
				_, _ = f.WriteString(name)
				f.Close()
			}
		case 'l':
			_ = root.Symlink(target, name)
		case 'p', 'w':
			parent, err := root.OpenFile(filepath.Dir(name), unix.O_DIRECTORY, 0)
			if err != nil {
				continue
			}
			mode := uint32(unix.S_IFIFO)
			if line[0] == 'w' { // what overlayfs would take for a whiteout
				mode = unix.S_IFCHR
			}
			_ = unix.Mknodat(int(parent.Fd()), filepath.Base(name), mode|0o600, 0)
			parent.Close()
		}
	}
}

// inRoot is where the kernel says that a path leads in a root, relative to that.
func inRoot(t *testing.T, root, name string) (string, error) {
	t.Helper()
	dir, err := openRoot(root)
	check(t, err)
	defer unix.Close(dir)
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		if err == unix.EAGAIN || err == unix.EINTR { // something was renamed somewhere
			continue
		}
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		at, err := os.Readlink(fdPath(fd))
		check(t, err)
		top, err := os.Readlink(fdPath(dir))
		check(t, err)
		return filepath.Rel(top, at)
	}
}

// FuzzCopy holds that a copy between hostile trees reads and writes nothing outside of them; that what it makes lands where the kernel finds the
// destination with the parent as its root, in the place of no directory, and below no link; and that its files have what the sources had.
func FuzzCopy(f *testing.F) {
	needRoot(f)
	for _, seed := range [][3]string{
		{"dusr/bin\nlbin\tusr/bin", "ff\nda\nfa/b\nla/l\t../../outside/f", "/bin/"},
		{"lout\t../outside\nlabs\t/../../outside\nd\xff", "ff\nf\xfe", "/out/"},
		{"labs\t/../../outside", "ff", "/abs/x/"}, {"la\t../outside\nda2", "da\nfa/f", "/"}, {"la\tb\nlb\ta", "ff", "/a/"},
		{"", "lf\t../outside/f\nld\t../outside", "/x"}, {"pf\nwd", "ff\ndd\nfd/x", "/"}, {"", "pf", "/x/"}, {"", "f.wh.x", "/"}, {"", "wx\nf.wh..wh..opq", "/a"},
		{"df", "ff", "/"}, {"ff", "df\nff/x", "/"}, {"", "fx", "/../outside/"}, {"", "fx", "/."}, {"", "fx", "/a/./b//"}, {"lm\t/proc/self/root", "ff", "/m/"},
		{"ll\t" + strings.Repeat("x/../", 50) + "d", "ff", "/l/"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	tmp := scratch(f)
	outside := mkdir(f, tmp, "outside")
	write(f, outside+"/f", "secret")
	before := snapshot(f, outside)
	f.Fuzz(func(t *testing.T, parentText, sourceText, dst string) {
		if len(parentText)+len(sourceText) > 2000 || len(dst) > 500 || strings.Contains(dst, "\x00") {
			return
		}
		base := mkdir(t, tmp, "run")
		defer os.RemoveAll(base)
		parent, source, out := mkdir(t, base, "parent"), mkdir(t, base, "source"), mkdir(t, base, "out")
		plantLines(t, parent, parentText)
		plantLines(t, source, sourceText)
		trees := [2]map[string]string{snapshot(t, parent), snapshot(t, source)}
		from, err := DirTree(source)
		check(t, err)
		defer from.Close()
		to, err := DirTree(parent)
		check(t, err)
		defer to.Close()
		c := Copy{From: from, Parent: to, Dst: dst, UID: 7, GID: 8, Items: copyItems(t, from, ".")}
		into := strings.HasSuffix(dst, "/")
		if !into {
			c.Items = []Item{{Src: ".", Mode: os.ModeDir, Children: c.Items}}
		}
		err = makeCopy(t.Context(), out, c)
		if d := diffTrees(before, snapshot(t, outside)); d != "" {
			t.Fatal("outside: ", d)
		}
		for i, dir := range []string{parent, source} {
			if d := diffTrees(trees[i], snapshot(t, dir)); d != "" {
				t.Fatal("it changes what it reads: ", d)
			}
		}
		if err != nil {
			return
		}
		check(t, filepath.WalkDir(out, func(name string, e os.DirEntry, err error) error {
			if err != nil || name == out {
				return err
			}
			rel, _ := filepath.Rel(out, name)
			if strings.HasPrefix(e.Name(), whiteoutPrefix) {
				t.Errorf("%q is in the layer", rel)
			}
			if old, err := os.Lstat(filepath.Join(parent, rel)); err == nil {
				if old.IsDir() && !e.IsDir() || old.Mode()&os.ModeSymlink != 0 && e.IsDir() {
					t.Errorf("%q, a %v, is in the place of a %v", rel, e.Type(), old.Mode())
				}
			}
			switch e.Type() {
			case 0:
				b, err := os.ReadFile(name)
				check(t, err)
				if filepath.Base(string(b)) != e.Name() {
					t.Errorf("%q has %q", rel, b)
				}
			case os.ModeDir, os.ModeSymlink:
			default:
				t.Errorf("%q is a %v", rel, e.Type())
			}
			return nil
		}))
		place, err := inRoot(t, parent, dst)
		if err != nil {
			return
		}
		for _, it := range c.Items {
			if !into {
				it = Item{Mode: os.ModeDir}
			}
			// A directory follows a link of the parent, and is not in the layer if it is there and nothing goes into it.
			old, err := os.Lstat(filepath.Join(parent, place, it.Name))
			if it.Mode == os.ModeDir && err == nil && (old.IsDir() || old.Mode()&os.ModeSymlink != 0) {
				continue
			}
			got, err := os.Lstat(filepath.Join(out, place, it.Name))
			if err != nil || got.Mode().Type() != it.Mode {
				t.Errorf("%q is not in %q, to which %q leads: %v", it.Name, place, dst, err)
			}
		}
	})
}

// copyItems describes what is in a directory, but for what cannot be copied.
func copyItems(t *testing.T, from *Dir, dir string) (list []Item) {
	t.Helper()
	entries, err := from.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch e.Type() {
		case os.ModeDir:
			list = append(list, Item{Src: name, Name: e.Name(), Mode: os.ModeDir, Children: copyItems(t, from, name)})
		case 0, os.ModeSymlink:
			list = append(list, items(t, from, name, e.Name()))
		}
	}
	return list
}
