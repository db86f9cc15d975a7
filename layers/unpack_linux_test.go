package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tarball writes headers as they are. A file's content is as many "x" as its size says.
func tarball(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		check(t, tw.WriteHeader(&h))
		_, err := io.CopyN(tw, repeat('x'), h.Size)
		check(t, err)
	}
	check(t, tw.Close())
	return buf.Bytes()
}

type repeat byte

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r)
	}
	return len(p), nil
}

func dir(name string) tar.Header  { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750} }
func file(name string) tar.Header { return tar.Header{Name: name, Size: 3, Mode: 0o640} }
func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}
func symlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

func TestUnpackTakes(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name    string
		headers []tar.Header
		want    string // lines of: path, type, mode, size, and what counts
	}{
		{"parents that are missing", []tar.Header{file("a/b/c")},
			"a d 755; a/b d 755; a/b/c f 640 3"},
		{"a directory after what it holds", []tar.Header{file("a/b"), dir("a/")},
			"a d 750; a/b f 640 3"},
		{"a leading slash as the root of the layer", []tar.Header{dir("/"), file("/etc/x"), link("/y", "/etc/x")},
			"etc d 755; etc/x f 640 3 n2; y f 640 3 n2"},
		{"dots and double slashes", []tar.Header{file("./a//./b")},
			"a d 755; a/b f 640 3"},
		{"the later of two files", []tar.Header{file("a"), {Name: "a", Size: 5, Mode: 0o600}},
			"a f 600 5"},
		{"a file in place of a directory", []tar.Header{dir("a"), file("a/b"), file("a/c/d"), file("a")},
			"a f 640 3"},
		{"a directory in place of a file, which hides what the file hid", []tar.Header{file("a"), dir("a"), file("a/b")},
			"a d 750 opaque; a/b f 640 3"},
		{"a directory in place of a link", []tar.Header{symlink("a", "/etc"), dir("a"), file("a/b")},
			"a d 750 opaque; a/b f 640 3"},
		{"a file in place of a link to it", []tar.Header{file("a"), link("b", "a"), {Name: "b", Size: 1, Mode: 0o600}},
			"a f 640 3; b f 600 1"},
		{"a hard link in place of a file", []tar.Header{file("a"), file("b"), link("b", "a")},
			"a f 640 3 n2; b f 640 3 n2"},
		{"a hard link to itself", []tar.Header{file("a"), link("a", "a")},
			"a f 640 3"},
		{"a hard link to a link", []tar.Header{symlink("a", "/etc/passwd"), link("b", "a")},
			"a l /etc/passwd n2; b l /etc/passwd n2"},
		{"links as they are", []tar.Header{symlink("a", "../../../etc"), symlink("b", "/"), symlink("c", strings.Repeat("l", 4000))},
			"a l ../../../etc; b l /; c l " + strings.Repeat("l", 4000)},
		{"whiteouts", []tar.Header{dir("a"), file("a/.wh.b"), file(".wh.c")},
			"a d 750; a/b whiteout; c whiteout"},
		{"a whiteout twice", []tar.Header{file(".wh.c"), file(".wh.c")},
			"c whiteout"},
		{"a whiteout of a file in the same layer", []tar.Header{file("a"), file(".wh.a"), file(".wh.b"), file("b")},
			"a f 640 3; b f 640 3"},
		{"a whiteout of a directory in the same layer", []tar.Header{file("a/x"), file(".wh.a"), file(".wh.b"), file("b/x")},
			"a d 755 opaque; a/x f 640 3; b d 755 opaque; b/x f 640 3"},
		{"an opaque directory", []tar.Header{file("a/x"), file("a/.wh..wh..opq"), file("a/y"), file("b/.wh..wh..opq")},
			"a d 755 opaque; a/x f 640 3; a/y f 640 3; b d 755 opaque"},
		{"aufs's own files, as nothing", []tar.Header{
			file(".wh..wh.aufs"), file(".wh..wh.plnk"), dir(".wh..wh.plnk/"), dir(".wh..wh.orph/"), file(".wh..wh.orph/1.2"), file("a/.wh..wh.x/y")}, ""},
		{"files that aufs kept apart, by their names", []tar.Header{
			dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), link("a", ".wh..wh.plnk/1.2"), link("b", "/.wh..wh.plnk/1.2"), link("c", "a")},
			"a f 640 3 n3; b f 640 3 n3; c f 640 3 n3"},
		{"a file below a link", []tar.Header{symlink("a", "/tmp"), file("a/b")},
			"a l /tmp; tmp d 755; tmp/b f 640 3"},
		{"a directory below a link that leads out", []tar.Header{symlink("a", "../.."), dir("a/b"), file("a/b/c")},
			"a l ../..; b d 750; b/c f 640 3"},
		{"a whiteout below a link", []tar.Header{dir("b"), symlink("a", "b"), file("a/.wh.c")},
			"a l b; b d 750; b/c whiteout"},
		{"a hard link through a link", []tar.Header{file("d/f"), symlink("a", "/d"), link("g", "a/f")},
			"a l /d; d d 755; d/f f 640 3 n2; g f 640 3 n2"},
		{"a link through a link that is relative", []tar.Header{dir("x/y"), symlink("x/up", ".."), symlink("x/y/l", "../up/z"), file("x/y/l/f")},
			"x d 755; x/up l ..; x/y d 750; x/y/l l ../up/z; z d 755; z/f f 640 3"},
		{"a directory in place of a link that was used", []tar.Header{symlink("a", "b"), file("a/x"), dir("a"), file("a/y")},
			"a d 750 opaque; a/y f 640 3; b d 755; b/x f 640 3"},
		{"a whiteout below a file, as nothing", []tar.Header{file("a"), file("a/.wh.b"), file("a/b/.wh..wh..opq")},
			"a f 640 3"},
		{"set-id bits and the sticky bit", []tar.Header{{Name: "s", Mode: 0o6755, Uid: 7, Gid: 8}, {Typeflag: tar.TypeDir, Name: "t", Mode: 0o1777}},
			"s f 6755 0 7:8; t d 1777"},
		{"devices and pipes", []tar.Header{
			{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1, Devminor: 3, Mode: 0o666},
			{Typeflag: tar.TypeBlock, Name: "b", Devmajor: 259, Devminor: 300000, Mode: 0o660, Gid: 6},
			{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}},
			"b b 660 259:300000 0:6; c c 666 1:3; p p 600"},
		{"capabilities after the owner, whose change drops them", []tar.Header{{
			Name: "f", Mode: 0o4755, Uid: 5, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": string(netBindCap())}}},
			"f f 4755 0 5:0 security.capability"},
		{"attributes in libarchive's form", []tar.Header{{
			Name: "f", PAXRecords: map[string]string{"LIBARCHIVE.xattr.user.a%3Db": "dmFsdWU"}}},
			"f f 0 0 user.a=b"},
		{"labels of the host that packed, as nothing", []tar.Header{{
			Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.security.ima": "y"}}},
			"f f 0 0"},
		{"global headers, as nothing", []tar.Header{
			{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "git"}}, file("a")},
			"a f 640 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := t.TempDir()
			check(t, untar(t.Context(), bytes.NewReader(tarball(t, tt.headers...)), out, untarOptions{}))
			if got := describe(t, out, ""); got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

// describe lists what is below a directory in layer form.
func describe(t testing.TB, root, rel string) string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, rel))
	check(t, err)
	var out []string
	for _, e := range entries {
		name := filepath.Join(rel, e.Name())
		path := filepath.Join(root, name)
		var st unix.Stat_t
		check(t, unix.Lstat(path, &st))
		line := fmt.Sprintf(" %o", st.Mode&0o7777)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			line = " d" + line
			if buf := make([]byte, 1); st.Mode&unix.S_IFMT == unix.S_IFDIR {
				if n, err := unix.Lgetxattr(path, opaqueXattr, buf); err == nil && string(buf[:n]) == "y" {
					line += " opaque"
				}
			}
		case unix.S_IFREG:
			line = " f" + line + fmt.Sprintf(" %d", st.Size)
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			check(t, err)
			line = " l " + to
		case unix.S_IFIFO:
			line = " p" + line
		case unix.S_IFCHR:
			if st.Rdev == 0 {
				line = " whiteout"
				break
			}
			line = " c" + line + fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFBLK:
			line = " b" + line + fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Uid != 0 || st.Gid != 0 {
			line += fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			line += fmt.Sprintf(" n%d", st.Nlink)
		}
		x, err := pathXattrs(path)
		check(t, err)
		for k := range x {
			if k != opaqueXattr {
				line += " " + k
			}
		}
		out = append(out, name+line)
		if e.IsDir() {
			if below := describe(t, root, name); below != "" {
				out = append(out, below)
			}
		}
	}
	return strings.Join(out, "; ")
}

func TestUnpackRefuses(t *testing.T) {
	needRoot(t)
	overlayXattr := file("a")
	overlayXattr.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}
	for _, tt := range []struct {
		name    string
		headers []tar.Header
		want    string
	}{
		{"a name above the root", []tar.Header{file("../a")}, `".."`},
		{"a name above the root on the way", []tar.Header{file("a/../../b")}, `".."`},
		{"a file below a file", []tar.Header{file("a"), file("a/b")}, "not a directory"},
		{"a hard link below a link", []tar.Header{symlink("a", "/etc"), link("b", "a/passwd")}, "neither this layer nor"},
		{"links in a circle", []tar.Header{symlink("a", "b"), symlink("b", "a"), file("a/x")}, "too many levels"},
		{"a hard link in place of the directory that it leads to", []tar.Header{file("a/b"), link("a", "a/b")}, "would replace"},
		{"a hard link to what lower layers have", []tar.Header{link("b", "etc/passwd")}, "neither this layer nor"},
		{"a hard link above the root", []tar.Header{link("b", "../../etc/passwd")}, `".."`},
		{"a hard link to a directory", []tar.Header{dir("a"), link("b", "a")}, "hard link"},
		{"a hard link to the root", []tar.Header{link("b", ".")}, "neither this layer nor"},
		{"a hard link to a whiteout", []tar.Header{file(".wh.a"), link("b", "a")}, "neither this layer nor"},
		{"a root that is no directory", []tar.Header{symlink(".", "/etc")}, "root"},
		{"overlayfs's attributes", []tar.Header{overlayXattr}, "must not set"},
		{"overlayfs's whiteouts", []tar.Header{{Typeflag: tar.TypeChar, Name: "a"}}, "0:0"},
		{"a device number that does not exist", []tar.Header{{Typeflag: tar.TypeChar, Name: "a", Devmajor: 5000}}, "out of range"},
		{"a whiteout of nothing", []tar.Header{file(".wh.")}, "whiteout"},
		{"a whiteout of the parent", []tar.Header{file("a/.wh...")}, "whiteout"},
		{"a directory with a whiteout's name", []tar.Header{dir(".wh.a")}, "cannot be kept"},
		{"something in a whiteout", []tar.Header{file(".wh.a/b")}, "cannot be kept"},
		{"a component that is too long", []tar.Header{file(strings.Repeat("n", 300))}, "too long"},
		{"a path without end", []tar.Header{file(strings.Repeat("n/", maxPath) + "f")}, "too deep"},
		{"an unknown type", []tar.Header{{Typeflag: 'Z', Name: "a"}}, "type"},
		{"an owner that does not fit", []tar.Header{{Name: "a", Uid: math.MaxUint32}}, "out of range"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := untar(t.Context(), bytes.NewReader(tarball(t, tt.headers...)), t.TempDir(), untarOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestUnpackBounds(t *testing.T) {
	needRoot(t)
	big := tar.Header{Name: "big", Size: 5 << 20}
	archive := tarball(t, file("a"), big, file("c"))
	for _, tt := range []struct {
		name string
		data []byte
		lim  Limits
		want string
	}{
		{"entries", archive, Limits{Entries: 2}, "too many entries"},
		{"content", archive, Limits{Bytes: 4 << 20}, "more content"},
		{"data after the end", append(bytes.Clone(archive), "more"...), Limits{}, "after the end"},
		{"truncated in a file", archive[:3<<20], Limits{}, "unexpected EOF"},
		{"truncated in a header", archive[:len(archive)-3000], Limits{}, "unexpected EOF"},
		{"truncated in the padding of the last file", archive[:len(archive)-1024-100], Limits{}, "unexpected EOF"},
		{"truncated after its last byte", archive[:len(archive)-1024-512+3], Limits{}, "unexpected EOF"},
		{"truncated in its end", archive[:len(archive)-512-100], Limits{}, "unexpected EOF"},
		{"no tar", bytes.Repeat([]byte("no tar"), 1000), Limits{}, "invalid tar header"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := untar(t.Context(), bytes.NewReader(tt.data), t.TempDir(), untarOptions{limits: tt.lim})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	t.Run("padding is no data", func(t *testing.T) {
		check(t, untar(t.Context(), bytes.NewReader(append(bytes.Clone(archive), make([]byte, 10<<10)...)), t.TempDir(), untarOptions{}))
	})
	// As Docker takes them, and as some builders write them.
	for name, data := range map[string][]byte{
		"nothing after the last file": archive[:len(archive)-1024],
		"one block after it":          archive[:len(archive)-512],
		"nothing at all":              nil,
	} {
		t.Run(name, func(t *testing.T) {
			check(t, untar(t.Context(), bytes.NewReader(data), t.TempDir(), untarOptions{}))
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := untar(ctx, bytes.NewReader(archive), t.TempDir(), untarOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

// TestUnpackOldDirectory reads a directory as tars had it before they had a type for it.
func TestUnpackOldDirectory(t *testing.T) {
	needRoot(t)
	data := tarball(t, dir("old/"), file("old/x"))
	const typeflag, checksum = 156, 148
	data[typeflag] = tar.TypeReg
	sum := 0
	for i, c := range data[:512] {
		if i >= checksum && i < checksum+8 {
			c = ' '
		}
		sum += int(c)
	}
	copy(data[checksum:], fmt.Sprintf("%06o\x00 ", sum))
	out := t.TempDir()
	check(t, untar(t.Context(), bytes.NewReader(data), out, untarOptions{}))
	if got, want := describe(t, out, ""), "old d 750; old/x f 640 3"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestUnpackWriterFails makes the writers fail while the reader waits for them to make room.
func TestUnpackWriterFails(t *testing.T) {
	needRoot(t)
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	check(t, err)
	defer unix.Close(fsfd)
	check(t, unix.FsconfigSetString(fsfd, "size", "3m"))
	check(t, unix.FsconfigCreate(fsfd))
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	large := tarball(t, tar.Header{Name: "a", Size: 40 << 20}, file("b"))
	var headers []tar.Header
	for i := range 200 {
		headers = append(headers, tar.Header{Name: fmt.Sprint("f", i), Size: 100 << 10})
	}
	for _, data := range [][]byte{large, tarball(t, headers...)} {
		out := mkdir(t, fdPath(fd), "out")
		err := untar(t.Context(), bytes.NewReader(data), out, untarOptions{})
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("error %v, want that there is no room", err)
		}
		check(t, os.RemoveAll(out))
	}
}

// TestUnpackManyDirs has more directories than may be open at once, deeper than the kernel takes a path, and files that
// go back to earlier ones.
func TestUnpackManyDirs(t *testing.T) {
	needRoot(t)
	var headers []tar.Header
	for i := range 3 * maxOpenDirs {
		headers = append(headers, dir(fmt.Sprintf("d%d", i)), file(fmt.Sprintf("d%d/x", i)))
	}
	for i := range 3 * maxOpenDirs {
		headers = append(headers, file(fmt.Sprintf("d%d/y", i)), link(fmt.Sprintf("d%d/z", i), fmt.Sprintf("d%d/x", 3*maxOpenDirs-1-i)))
	}
	deep := strings.Repeat("some-directory/", 600)
	headers = append(headers, file(deep+"bottom"))
	data := tarball(t, headers...)
	out := scratch(t)
	check(t, untar(t.Context(), bytes.NewReader(data), out, untarOptions{}))
	for _, name := range []string{"d0/x", "d0/y", "d0/z", "d700/z"} {
		if !exists(out + "/" + name) {
			t.Errorf("%s is missing", name)
		}
	}
	var packed bytes.Buffer
	check(t, WriteChange(t.Context(), &packed, out))
	if !bytes.Contains(packed.Bytes(), []byte(deep+"bottom")) {
		t.Error("the deep file is not packed")
	}
}

// TestUnpackHoles holds that a large file's zeros take no room.
func TestUnpackHoles(t *testing.T) {
	needRoot(t)
	in, out := t.TempDir(), t.TempDir()
	f, err := os.Create(in + "/f")
	check(t, err)
	_, err = f.WriteAt([]byte("middle"), 20<<20)
	check(t, err)
	check(t, f.Truncate(50<<20))
	check(t, f.Close())
	var buf bytes.Buffer
	check(t, WriteChange(t.Context(), &buf, in))
	if buf.Len() < 50<<20 {
		t.Fatalf("a tar of %d bytes: holes must be packed as zeros", buf.Len())
	}
	check(t, untar(t.Context(), &buf, out, untarOptions{}))
	var st unix.Stat_t
	check(t, unix.Stat(out+"/f", &st))
	if st.Size != 50<<20 || st.Blocks*512 > 2<<20 {
		t.Errorf("%d bytes in %d blocks", st.Size, st.Blocks)
	}
	data, err := os.ReadFile(out + "/f")
	check(t, err)
	if string(data[20<<20:20<<20+6]) != "middle" || len(bytes.Trim(data, "\x00")) != 6 {
		t.Error("the content differs")
	}
}

// TestDirectoryTimes holds that what is made in a directory does not change it, however long that takes.
func TestDirectoryTimes(t *testing.T) {
	needRoot(t)
	at := time.Unix(1_500_000_000, 123_456_789)
	d := tar.Header{Typeflag: tar.TypeDir, Mode: 0o2755, ModTime: at, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_default": string(acl())}}
	root, sub := d, d
	root.Name, sub.Name = "./", "sub/"
	out := t.TempDir()
	check(t, untar(t.Context(), bytes.NewReader(tarball(t, root, sub, file("sub/x"), link("y", "sub/x"), file(".wh.z"))), out, untarOptions{}))
	for _, p := range []string{out, out + "/sub"} {
		fi, err := os.Stat(p)
		check(t, err)
		if !fi.ModTime().Equal(at) {
			t.Errorf("%s has time %s", p, fi.ModTime())
		}
	}
	fi, err := os.Stat(out + "/sub/x")
	check(t, err)
	if x := xattrLine(t, out+"/sub/x"); x != "" || fi.Mode() != 0o640 {
		t.Errorf("the file has inherited %s %s", fi.Mode(), x)
	}
}

// FuzzUnpack holds that no bytes reach outside of the directory, and that what could be unpacked packs and unpacks again
// to the same. Thousands of inputs a second, if go test does not take a minute to make each that is new a smaller one: as in make fuzz, with
// -fuzzminimizetime 100x.
func FuzzUnpack(f *testing.F) {
	needRoot(f)
	for _, headers := range [][]tar.Header{
		{dir("a"), file("a/b"), symlink("a/l", "../../outside"), file("a/l/x"), link("c", "a/b")},
		{symlink("a", "../outside"), dir("a"), file("a/f")},
		{symlink("a", "../outside"), file("a"), link("b", "a"), link("a", "../outside/f")},
		{file(".wh.a"), dir("a"), file("a/.wh..wh..opq"), file(".wh.b"), file("b")},
		{{Typeflag: tar.TypeFifo, Name: "p"}, {Typeflag: tar.TypeChar, Name: "c", Devmajor: 1, Devminor: 3}, file("../outside/f")},
		{{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.xattr.trusted.overlay.redirect": "/"}}},
		{{Name: "x", Size: 3, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, link("y", "x")},
		{dir("d"), file("d/e/f"), file("d"), dir("d/e"), file("d/e")},
	} {
		f.Add(tarball(f, headers...))
	}
	f.Add([]byte("no tar"))
	tmp := scratch(f)
	outside := mkdir(f, tmp, "outside")
	write(f, outside+"/f", "data")
	before := snapshot(f, outside)
	f.Fuzz(func(t *testing.T, data []byte) {
		base := mkdir(t, tmp, "run")
		defer os.RemoveAll(base)
		out := mkdir(t, base, "out")
		err := untar(t.Context(), bytes.NewReader(data), out, untarOptions{limits: Limits{Bytes: 16 << 20, Entries: 1000}})
		if d := diffTrees(before, snapshot(t, outside)); d != "" {
			t.Fatal("outside: ", d)
		}
		if entries, err := os.ReadDir(base); err != nil || len(entries) != 1 {
			t.Fatal("beside: ", entries, err)
		}
		if err != nil {
			return
		}
		var packed, again bytes.Buffer
		check(t, WriteChange(t.Context(), &packed, out))
		twice := mkdir(t, base, "twice")
		check(t, untar(t.Context(), bytes.NewReader(packed.Bytes()), twice, untarOptions{}))
		check(t, WriteChange(t.Context(), &again, twice))
		if !bytes.Equal(packed.Bytes(), again.Bytes()) {
			t.Fatal("it packs into other bytes")
		}
	})
}
