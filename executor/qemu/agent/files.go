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

// answerFiles answers requests about the machine's own files. in is where the frames of a tar come from.
func answerFiles(req wire.Request, in *wire.Reader, out io.Writer) error {
	switch {
	case req.List != nil:
		return list(string(req.List.Name), req.List.Dir, out)
	case req.Read != nil:
		return read(string(req.Read.Name), out)
	}
	t := wire.NewTarReader(in)
	err := unpack(t, local(req.Unpack.Dir))
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

// unpack unpacks the tar of a layer over a directory. Links to directories on the way are followed, as they are by all that runs here.
func unpack(r io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
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
		h.Name = path.Clean("/" + h.Name)
		at := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
		if h.Typeflag == tar.TypeSymlink && runtime.GOOS == "windows" {
			links = append(links, h) // there are two kinds of them, by what is there that they lead to
			continue
		}
		if err := unpackOne(tr, h, dir, at); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
	for _, h := range links {
		if err := unpackOne(nil, h, dir, filepath.Join(dir, filepath.FromSlash(h.Name))); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
	for _, h := range slices.Backward(dirs) {
		if err := setTime(filepath.Join(dir, filepath.FromSlash(h.Name)), h.ModTime); err != nil {
			return err
		}
	}
	return nil
}

func unpackOne(r io.Reader, h *tar.Header, dir, at string) error {
	base := path.Base(h.Name)
	if base == opaque {
		return clearDir(filepath.Dir(at))
	}
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		return os.RemoveAll(filepath.Join(filepath.Dir(at), hidden))
	}
	if h.Typeflag == tar.TypeDir {
		if i, err := os.Stat(at); err != nil || !i.IsDir() {
			if err := os.RemoveAll(at); err != nil {
				return err
			}
			if err := os.Mkdir(at, 0o755); err != nil {
				return err
			}
		}
		return setOwner(at, h)
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
		return os.Link(filepath.Join(dir, filepath.FromSlash(path.Clean("/"+h.Linkname))), at)
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
