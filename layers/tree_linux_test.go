package layers

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

func TestDirTree(t *testing.T) {
	needRoot(t)
	tmp := t.TempDir()
	root := mkdir(t, tmp, "root")
	plant(t, root, "a d/b:4755 d/l->b out->../secret abs->/etc in->d e/")
	write(t, tmp+"/secret", "secret")
	check(t, unix.Mkfifo(root+"/p", 0o600))
	check(t, unix.Mknod(root+"/dev", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, unix.Setxattr(root+"/a", "user.x", []byte("y"), 0))
	check(t, unix.Setxattr(root+"/d", opaqueXattr, []byte("y"), 0))
	check(t, unix.Lsetxattr(root+"/abs", "trusted.x", []byte("z"), 0))
	d := openTree(t, root)

	for _, name := range []string{"out", "abs", "in", "in/b", "d/l", "p", "dev", "abs/passwd", "../secret", "/etc/passwd", ".."} {
		if f, err := d.Open(name); err == nil {
			f.Close()
			t.Errorf("open %s: no error", name)
		}
	}
	for _, name := range []string{"in/b", "abs/passwd", "out/x"} {
		if _, err := d.Lstat(name); err == nil {
			t.Errorf("lstat %s: no error", name)
		}
	}
	if _, err := d.Lstat("nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lstat nothing: %v", err)
	}
	for name, mode := range map[string]fs.FileMode{
		".": fs.ModeDir | 0o755, "d/b": fs.ModeSetuid | 0o755, "out": fs.ModeSymlink | 0o777, "p": fs.ModeNamedPipe | 0o600,
		"dev": fs.ModeDevice | fs.ModeCharDevice | 0o644, "e": fs.ModeDir | 0o755,
	} {
		fi, err := d.Lstat(name)
		check(t, err)
		if fi.Mode() != mode {
			t.Errorf("%s has mode %s, want %s", name, fi.Mode(), mode)
		}
		if _, ok := fi.Sys().(*syscall.Stat_t); !ok {
			t.Errorf("%s: Sys is %T", name, fi.Sys())
		}
	}
	for name, want := range map[string]string{"out": "../secret", "abs": "/etc", "d/l": "b"} {
		if got, err := d.ReadLink(name); err != nil || got != want {
			t.Errorf("link %s: %q %v", name, got, err)
		}
	}
	if _, err := d.ReadLink("a"); err == nil {
		t.Error("a is no link")
	}
	for name, want := range map[string]string{"a": "user.x", "abs": "trusted.x", "d": "", "e": ""} {
		x, err := d.Xattrs(name)
		check(t, err)
		if want == "" && len(x) != 0 || want != "" && (len(x) != 1 || x[want] == "") {
			t.Errorf("%s has %v", name, x)
		}
	}
	data, err := fs.ReadFile(d, "d/b")
	if err != nil || string(data) != "of b" {
		t.Errorf("%q %v", data, err)
	}
	var names []string
	check(t, fs.WalkDir(d, ".", func(name string, e fs.DirEntry, err error) error {
		names = append(names, name)
		return err
	}))
	if want := strings.Fields(". a abs d d/b d/l dev e in out p"); !slices.Equal(names, want) {
		t.Errorf("walk %q", names)
	}
	f, err := d.Open("d")
	check(t, err)
	defer f.Close()
	first, err := f.(fs.ReadDirFile).ReadDir(1)
	if err != nil || len(first) != 1 || first[0].Name() != "b" {
		t.Errorf("%v %v", first, err)
	}
	if fi, err := first[0].Info(); err != nil || fi.Size() != 4 {
		t.Errorf("%v %v", fi, err)
	}
	// Regular files alone, for the standard test of file systems.
	plain := mkdir(t, tmp, "plain")
	plant(t, plain, "a d/b d/e/c f/")
	check(t, fstest.TestFS(openTree(t, plain), "a", "d/b", "d/e/c", "f"))
}

// TestWriteTree writes what a chain of layers shows, as any tar reads it.
func TestWriteTree(t *testing.T) {
	needRoot(t)
	tmp := scratch(t)
	base, top := mkdir(t, tmp, "base"), mkdir(t, tmp, "top")
	plant(t, base, "gone kept d/old l->kept")
	plant(t, top, "d/new:600 .wh.odd")
	check(t, os.Link(top+"/d/new", top+"/linked"))
	check(t, unix.Mknod(top+"/gone", unix.S_IFCHR, 0))
	check(t, unix.Mknod(top+"/sock", unix.S_IFSOCK|0o600, 0))
	m, unmount := mountOverlay(t, "", "", base, top)
	defer unmount()
	tree := openTree(t, m)
	var buf bytes.Buffer
	check(t, WriteTree(t.Context(), &buf, tree))
	var got []string
	tr := tar.NewReader(bytes.NewReader(buf.Bytes()))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		check(t, err)
		line := string(h.Typeflag) + h.Name
		if h.Linkname != "" {
			line += "->" + h.Linkname
		}
		got = append(got, line)
	}
	if want := strings.Fields("0.wh.odd 5d/ 0d/new 0d/old 0kept 2l->kept 1linked->d/new"); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}

	// A local directory gets the same, beside what it has, and nothing through its links.
	out := mkdir(t, tmp, "out")
	plant(t, out, "own kept elsewhere/ l/x")
	check(t, os.RemoveAll(out+"/l/x"))
	check(t, os.Remove(out+"/l"))
	check(t, os.Symlink("elsewhere", out+"/d"))
	err := CopyTree(t.Context(), out, tree)
	check(t, err)
	if got, want := describe(t, out, ""), ".wh.odd f 644 10; d d 755; d/new f 600 6 n2; d/old f 644 6; elsewhere d 755; kept f 644 7; l l kept; linked f 600 6 n2; own f 644 6"; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// headerTree is a Tree whose files are known as a tar has them.
type headerTree struct{ fstest.MapFS }

func (h headerTree) Lstat(name string) (fs.FileInfo, error) {
	fi, err := h.MapFS.Lstat(name)
	if err != nil {
		return nil, err
	}
	hdr := &tar.Header{Typeflag: tar.TypeReg, Mode: 0o640, Uid: 5, Gid: 6, Size: fi.Size(), ModTime: time.Unix(1, 2)}
	return headerInfo{fi, hdr}, nil
}

func (h headerTree) Xattrs(string) (map[string]string, error) {
	return map[string]string{"user.k": "v"}, nil
}

type headerInfo struct {
	fs.FileInfo
	h *tar.Header
}

func (h headerInfo) Sys() any { return h.h }

func TestWriteTreeOfHeaders(t *testing.T) {
	var buf bytes.Buffer
	check(t, WriteTree(t.Context(), &buf, headerTree{fstest.MapFS{"f": {Data: []byte("data")}}}))
	h, err := tar.NewReader(&buf).Next()
	check(t, err)
	if h.Uid != 5 || h.Gid != 6 || h.Mode != 0o640 || h.Size != 4 || !h.ModTime.Equal(time.Unix(1, 2)) || h.PAXRecords["SCHILY.xattr.user.k"] != "v" {
		t.Errorf("%+v", h)
	}
}

// TestExportTree makes a directory that everybody may find: nothing in it gives rights.
func TestExportTree(t *testing.T) {
	needRoot(t)
	tmp := t.TempDir()
	root := mkdir(t, tmp, "root")
	plant(t, root, "capable:755 common/:3777 dev/ su:6755 tool:755")
	check(t, unix.Mknod(root+"/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, unix.Mknod(root+"/dev/sda", unix.S_IFBLK|0o660, int(unix.Mkdev(8, 0))))
	check(t, unix.Mkfifo(root+"/dev/pipe", 0o600))
	check(t, os.Link(root+"/dev/null", root+"/null"))
	check(t, os.Link(root+"/su", root+"/su2"))
	check(t, unix.Setxattr(root+"/capable", capabilityXattr, netBindCap(), 0))
	check(t, unix.Setxattr(root+"/tool", "user.x", []byte("y"), 0))
	tree := openTree(t, root)
	for _, tt := range []struct {
		setuid bool
		want   string
	}{
		{false, "capable f 755 10; common d 1777; dev d 755; dev/pipe p 600; su f 755 5 n2; su2 f 755 5 n2; tool f 755 7 user.x"},
		{true, "capable f 755 10 security.capability; common d 3777; dev d 755; dev/pipe p 600; su f 6755 5 n2; su2 f 6755 5 n2; tool f 755 7 user.x"},
	} {
		out := mkdir(t, tmp, fmt.Sprint("out", tt.setuid))
		check(t, os.Chmod(out, 0o700))
		devices, err := ExportTree(t.Context(), out, tree, tt.setuid, io.Discard)
		check(t, err)
		if devices != (Devices{Count: 3, First: "dev/null"}) {
			t.Errorf("left out: %+v", devices)
		}
		if got := describe(t, out, ""); got != tt.want {
			t.Errorf("setuid %v:\n got %s\nwant %s", tt.setuid, got, tt.want)
		}
		if fi, err := os.Stat(out); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("the directory's mode is %v, %v", fi.Mode(), err)
		}
	}
	// What obx keeps itself is whole.
	out := mkdir(t, tmp, "whole")
	check(t, CopyTree(t.Context(), out, tree))
	if got, want := describe(t, out, ""), describe(t, root, ""); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}
