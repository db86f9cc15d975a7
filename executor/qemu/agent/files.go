package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// local is a path of this system for one that obx names: on Windows, drive C is meant unless another is said.
func local(name string) string {
	if runtime.GOOS == "windows" && (len(name) < 2 || name[1] != ':') {
		name = "C:" + name
	}
	return filepath.Clean(filepath.FromSlash(name))
}

// answerFiles answers requests about the machine's own files. in is where the frames of a tar come from, which are unpacked as u says.
func answerFiles(req wire.Request, in *wire.Reader, out io.Writer, u unpacker) error {
	switch {
	case req.List != nil:
		return list(string(req.List.Name), req.List.Dir, out)
	case req.Read != nil:
		return read(string(req.Read.Name), out)
	}
	t := wire.NewTarReader(in)
	u.dir = local(req.Unpack.Dir)
	err := u.unpack(t)
	return errors.Join(err, t.Drain())
}

// A tree is all files. Obx does not ask for names with links on the way.
type tree interface {
	layers.Tree
	Close() error
}

// listedAtOnce is how many files one frame describes.
const listedAtOnce = 1000

func list(name string, dir bool, out io.Writer) error {
	t, err := files()
	if err != nil {
		return err
	}
	defer t.Close()
	if !dir {
		f, err := describe(t, name)
		if err != nil {
			return err
		}
		return wire.WriteJSON(out, wire.KindFiles, []wire.File{f})
	}
	if passing(local("/" + name)) {
		return nil
	}
	entries, err := t.ReadDir(name)
	if err != nil {
		return err
	}
	var all []wire.File
	size := 0
	send := func() error {
		err := wire.WriteJSON(out, wire.KindFiles, all)
		all, size = nil, 0
		return err
	}
	for _, e := range entries {
		f, err := describe(t, path.Join(name, e.Name()))
		if err != nil && runtime.GOOS == "windows" {
			continue // the system's own that nobody may look at
		}
		if err != nil {
			return err
		}
		if f.Type == 0 {
			continue
		}
		all = append(all, f)
		for _, v := range f.Xattrs {
			size += len(v)
		}
		if size += len(f.Link); len(all) == listedAtOnce || size > 1<<20 {
			if err := send(); err != nil {
				return err
			}
		}
	}
	return send()
}

// namelessInfo keeps package tar from looking for names of users.
type namelessInfo struct{ fs.FileInfo }

func (namelessInfo) Uname() (string, error) { return "", nil }
func (namelessInfo) Gname() (string, error) { return "", nil }

// describe gives the zero File for what is gone, and for what is of no use elsewhere: devices and sockets.
func describe(t tree, name string) (wire.File, error) {
	i, err := t.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return wire.File{}, nil
	}
	if err != nil {
		return wire.File{}, err
	}
	link := ""
	switch i.Mode().Type() {
	case 0, fs.ModeDir, fs.ModeNamedPipe:
	case fs.ModeSymlink:
		if link, err = t.ReadLink(name); err != nil {
			return wire.File{}, err
		}
	default:
		return wire.File{}, nil
	}
	h, err := tar.FileInfoHeader(namelessInfo{i}, link)
	if err != nil {
		return wire.File{}, fmt.Errorf("%s: %w", name, err)
	}
	f := wire.File{
		Name: []byte(path.Base(name)), Type: h.Typeflag, Mode: portableMode(h), UID: h.Uid, GID: h.Gid, Size: h.Size, Modified: h.ModTime, Link: []byte(link),
	}
	xattrs, err := t.Xattrs(name)
	if err != nil {
		return wire.File{}, err
	}
	for k, v := range xattrs {
		if f.Xattrs == nil {
			f.Xattrs = map[string][]byte{}
		}
		f.Xattrs[k] = []byte(v)
	}
	return f, nil
}

// portableMode is a file's mode where there are others than on Windows.
func portableMode(h *tar.Header) int64 {
	switch {
	case runtime.GOOS != "windows":
		return h.Mode & 0o7777
	case h.Typeflag == tar.TypeDir:
		return 0o755
	}
	return 0o644
}

func read(name string, out io.Writer) error {
	t, err := files()
	if err != nil {
		return err
	}
	defer t.Close()
	f, err := t.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(wire.FrameWriter{W: out, Kind: wire.KindOutput}, 128<<10)
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return w.Flush()
}

// Marks of a layer's tar.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// An unpacker unpacks the tar of a layer over a directory.
type unpacker struct {
	dir string

	// confined says that nothing outside of dir may be changed, as in a cache: whoever has filled that may have left links in it. Else links to
	// directories on the way are followed, as they are by all that runs here.
	confined bool
}

func (u unpacker) unpack(r io.Reader) error {
	if err := os.MkdirAll(u.dir, 0o755); err != nil {
		return err
	}
	tr := tar.NewReader(r)
	var dirs []*tar.Header // whose times come last: files are made in them
	var links []*tar.Header
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read a layer: %w", err)
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
		if h.Typeflag == tar.TypeSymlink && runtime.GOOS == "windows" {
			links = append(links, h) // there are two kinds of them, by what is there that they lead to
			continue
		}
		if err := u.one(tr, h); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
	for _, h := range links {
		if err := u.one(nil, h); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
	for _, h := range slices.Backward(dirs) {
		at, err := u.place(h.Name)
		if errors.Is(err, errLeadsOut) { // a later entry has put something else on the way there
			continue
		}
		if err == nil {
			err = setTime(at, h.ModTime)
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
	return nil
}

var errLeadsOut = errors.New("what is on the way there is not a directory")

// place is the path for a name in the tar.
func (u unpacker) place(name string) (string, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if runtime.GOOS == "windows" && name != "" {
		var err error
		if name, err = filepath.Localize(name); err != nil { // with a backslash in it, or a colon, it means another file
			return "", err
		}
	}
	if !u.confined {
		return filepath.Join(u.dir, name), nil
	}
	at := u.dir
	for rest := name; ; {
		first, more, found := strings.Cut(rest, string(filepath.Separator))
		at = filepath.Join(at, first)
		if !found {
			return at, nil
		}
		if i, err := os.Lstat(at); err != nil || !i.IsDir() {
			return "", errors.Join(errLeadsOut, err)
		}
		rest = more
	}
}

// isDir reports whether there is a directory already.
func (u unpacker) isDir(at string) bool {
	look := os.Stat
	if u.confined && at != u.dir {
		look = os.Lstat
	}
	i, err := look(at)
	return err == nil && i.IsDir()
}

func (u unpacker) one(r io.Reader, h *tar.Header) error {
	at, err := u.place(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if !u.isDir(at) {
			if err := os.RemoveAll(at); err != nil {
				return err
			}
			if err := os.Mkdir(at, 0o755); err != nil {
				return err
			}
		}
		return setOwner(at, h)
	}
	if at == u.dir {
		return errors.New("the root is not a directory")
	}
	base := filepath.Base(at)
	if base == opaque {
		return clearDir(filepath.Dir(at))
	}
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		if hidden == "" || hidden == "." || hidden == ".." {
			return fmt.Errorf("a whiteout of %q", hidden)
		}
		return os.RemoveAll(filepath.Join(filepath.Dir(at), hidden))
	}
	if err := os.RemoveAll(at); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		link := h.Linkname
		if runtime.GOOS == "windows" {
			link = filepath.FromSlash(link)
		}
		if err := os.Symlink(link, at); err != nil {
			return err
		}
	case tar.TypeLink:
		old, err := u.place(h.Linkname)
		if err != nil {
			return err
		}
		return os.Link(old, at)
	default:
		if err := makeSpecial(at, h); err != nil {
			return err
		}
	}
	if err := setOwner(at, h); err != nil {
		return err
	}
	return setTime(at, h.ModTime)
}

func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
