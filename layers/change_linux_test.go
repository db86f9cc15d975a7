package layers

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriteChange pins the tar of a directory that has one of each.
func TestWriteChange(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	plant(t, dir, "b/f a/ z->b")
	check(t, os.Link(dir+"/b/f", dir+"/a/g"))
	check(t, unix.Mknod(dir+"/gone", unix.S_IFCHR, 0))
	check(t, unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, unix.Mknod(dir+"/sock", unix.S_IFSOCK|0o666, 0))
	check(t, unix.Setxattr(dir+"/b", opaqueXattr, []byte("y"), 0))
	check(t, unix.Setxattr(dir+"/b/f", "trusted.overlay.origin", []byte("x"), 0))
	// The other form of whiteouts, which overlayfs reads and does not write.
	check(t, unix.Setxattr(dir+"/a", opaqueXattr, []byte("x"), 0))
	write(t, dir+"/a/x", "")
	check(t, unix.Setxattr(dir+"/a/x", whiteoutXattr, nil, 0))
	var buf bytes.Buffer
	check(t, WriteChange(t.Context(), &buf, dir))
	var got []string
	tr := tar.NewReader(&buf)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		check(t, err)
		for k := range h.PAXRecords {
			if strings.Contains(k, "overlay") {
				t.Errorf("%s has %s", h.Name, k)
			}
		}
		if h.Uname != "" || h.Gname != "" {
			t.Errorf("%s has names of owners", h.Name)
		}
		got = append(got, fmt.Sprintf("%c%s%s", h.Typeflag, h.Name, h.Linkname))
	}
	if want := strings.Fields("5./ 5a/ 0a/g 0a/.wh.x 5b/ 0b/.wh..wh..opq 1b/fa/g 0.wh.gone 3null 2zb"); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestNamesThatNoLayerHolds(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	plant(t, dir, "d/.wh.x")
	if err := WriteChange(t.Context(), io.Discard, dir); err == nil || !strings.Contains(err.Error(), "d/.wh.x") {
		t.Errorf("WriteChange: %v", err)
	}
	if _, err := Seal(dir); err == nil || !strings.Contains(err.Error(), "d/.wh.x") {
		t.Errorf("Seal: %v", err)
	}
}

func TestSeal(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name, upper, lower, lower2 string
		want                       string
		empty                      bool
	}{
		{"nothing", "", "", "", "", true},
		{"a file", "f", "", "", "f f 644 4", false},
		{"a socket", "s=", "", "", "", true},
		{"a socket in a directory", "d/s=", "d/", "", "d d 755", false},
		{"a socket over a file", "s=", "s", "", "s whiteout", false},
		{"a socket over a file two layers below", "d/s=", "d/s", "d/", "d d 755; d/s whiteout", false},
		{"a socket over a file that a layer between removed", "d/s=", "d/s", "d/s!", "d d 755", false},
		{"a socket in a directory that a layer between removed", "d/s=", "d/s", "d!", "d d 755", false},
		{"a socket in a directory that hides", "d/s= d^", "d/s", "", "d d 755 opaque", false},
		{"a socket in a directory that a layer between hid", "d/s=", "d/s", "d/ d^", "d d 755", false},
		{"a socket in a directory that was a file", "d/s=", "d", "", "d d 755", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tmp := t.TempDir()
			var dirs []string
			for i, words := range []string{tt.lower, tt.lower2, tt.upper} {
				d := mkdir(t, tmp, fmt.Sprint(i))
				dirs = append(dirs, d)
				for _, w := range strings.Fields(words) {
					name := d + "/" + w[:len(w)-1]
					switch w[len(w)-1] {
					case '=', '!':
						check(t, os.MkdirAll(name[:strings.LastIndex(name, "/")], 0o755))
						mode := map[byte]uint32{'=': unix.S_IFSOCK | 0o600, '!': unix.S_IFCHR}[w[len(w)-1]]
						check(t, unix.Mknod(name, mode, 0))
					case '^':
						check(t, unix.Setxattr(name, opaqueXattr, []byte("y"), 0))
					default:
						plant(t, d, w)
					}
				}
			}
			before, err := os.Stat(dirs[2])
			check(t, err)
			empty, err := Seal(dirs[2], dirs[:2]...)
			check(t, err)
			if got := describe(t, dirs[2], ""); got != tt.want || empty != tt.empty {
				t.Errorf("got %q, empty %v", got, empty)
			}
			after, err := os.Stat(dirs[2])
			check(t, err)
			if !after.ModTime().Equal(before.ModTime()) {
				t.Error("its modification time has changed")
			}
		})
	}
}

func TestMakeUpper(t *testing.T) {
	needRoot(t)
	tmp := t.TempDir()
	below, upper := mkdir(t, tmp, "below"), tmp+"/upper"
	check(t, unix.Setxattr(below, "user.x", []byte("y"), 0))
	check(t, unix.Setxattr(below, opaqueXattr, []byte("y"), 0))
	check(t, os.Chown(below, 5, 6))
	check(t, unix.Chmod(below, 0o1750))
	check(t, MakeUpper(upper, below))
	if same, err := SameDir(upper, below); err != nil || !same {
		t.Errorf("%v %v", same, err)
	}
	if x := xattrLine(t, upper); strings.Contains(x, "overlay") || !strings.Contains(x, "user.x") {
		t.Errorf("it has%s", x)
	}
	check(t, os.Chmod(upper, 0o700))
	if same, err := SameDir(upper, below); err != nil || same {
		t.Errorf("%v %v", same, err)
	}
}

// TestFlatten500 merges more layers than overlayfs mounts, and keeps what they hide.
func TestFlatten500(t *testing.T) {
	needRoot(t)
	tmp := scratch(t)
	var dirs []string
	for i := range 600 {
		d := mkdir(t, tmp, fmt.Sprint(i))
		plant(t, d, fmt.Sprintf("f%d same d/g%d", i%7, i%11))
		if i == 300 {
			check(t, unix.Mknod(d+"/gone", unix.S_IFCHR, 0))
			check(t, unix.Setxattr(d+"/d", opaqueXattr, []byte("y"), 0))
		}
		dirs = append(dirs, d)
	}
	plant(t, dirs[0], "gone d/old")
	plant(t, dirs[599], "d/last:600")
	base := mkdir(t, tmp, "base")
	plant(t, base, "gone kept d/base")
	flat := tmp + "/flat"
	check(t, flattenDirs(t.Context(), flat, dirs, false))
	got := merged(t, base, flat)
	for _, name := range []string{"gone", "d/old", "d/base"} {
		if _, ok := got[name]; ok {
			t.Errorf("%s is there", name)
		}
	}
	for _, name := range []string{"kept", "same", "f6", "d/g10", "d/last"} {
		if _, ok := got[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
	var a, b unix.Stat_t
	check(t, unix.Stat(flat+"/same", &a))
	check(t, unix.Stat(dirs[599]+"/same", &b))
	if a.Ino != b.Ino {
		t.Error("the files were copied")
	}
}

// TestFlattenLinkLimit goes on where a file can have no more links.
func TestFlattenLinkLimit(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	layer := mkdir(t, dir, "layer")
	plant(t, layer, "d/f:640 d/l->f")
	check(t, unix.Mknod(layer+"/d/p", unix.S_IFIFO|0o600, 0))
	for _, name := range []string{"f", "l", "p"} {
		out := mkdir(t, dir, "out")
		to, err := openRoot(out)
		check(t, err)
		from, err := openRoot(layer + "/d")
		check(t, err)
		check(t, duplicate(from, name, to, name))
		check(t, unix.Close(from))
		check(t, unix.Close(to))
		want, got := snapshot(t, layer)["d/"+name], snapshot(t, out)[name]
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
