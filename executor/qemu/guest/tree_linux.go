package guest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// A tree is the files of a machine that has booted from a disk. The machine is asked for all names of a directory at once,
// and for a file's content when it is opened. What it says is believed of its own files, and of nothing else.
type tree struct {
	ctx   context.Context
	guest *Guest
	tmp   string // a directory for the content of files that are open
	dirs  map[string][]fs.DirEntry
	infos map[string]*fileInfo
}

// What a machine may say of all its files together: some gigabytes of memory. Tests have less patience.
var maxNames = 4 << 20

// maxPath is the longest path, as Linux has it.
const maxPath = 4096

// maxLink is the longest text of a link, as Windows has it.
const maxLink = 96 << 10

// Files is the files of the machine, until ctx ends. tmp is a directory for what is open of them.
func (g *Guest) Files(ctx context.Context, tmp string) layers.Tree {
	return &tree{ctx: ctx, guest: g, tmp: tmp, dirs: map[string][]fs.DirEntry{}, infos: map[string]*fileInfo{}}
}

// A fileInfo is one file.
type fileInfo struct {
	header tar.Header // Name is the last part
	mode   fs.FileMode
	xattrs map[string]string
}

func (i *fileInfo) Name() string               { return i.header.Name }
func (i *fileInfo) Size() int64                { return i.header.Size }
func (i *fileInfo) Mode() fs.FileMode          { return i.mode }
func (i *fileInfo) ModTime() time.Time         { return i.header.ModTime }
func (i *fileInfo) IsDir() bool                { return i.mode.IsDir() }
func (i *fileInfo) Sys() any                   { return &i.header }
func (i *fileInfo) Type() fs.FileMode          { return i.mode.Type() }
func (i *fileInfo) Info() (fs.FileInfo, error) { return i, nil }

// infoOf describes a file as the machine does, if it may be what it says.
func infoOf(f wire.File) (*fileInfo, error) {
	name := string(f.Name)
	if len(name) > maxPath || len(f.Link) > maxLink {
		return nil, errors.New("the machine says that a file has a name or a link which is too long")
	}
	// The last user and group are none: a system call would leave the file to whom it belongs.
	if f.Mode < 0 || f.Mode > 0o7777 || f.UID < 0 || f.UID >= math.MaxUint32 || f.GID < 0 || f.GID >= math.MaxUint32 || f.Size < 0 {
		return nil, fmt.Errorf("the machine says impossible things of a file %q", name)
	}
	i := &fileInfo{header: tar.Header{Name: name, Typeflag: f.Type, Mode: f.Mode, Uid: f.UID, Gid: f.GID, ModTime: f.Modified}}
	i.mode = fs.FileMode(f.Mode & 0o777)
	for bit, m := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if f.Mode&bit != 0 {
			i.mode |= m
		}
	}
	switch f.Type {
	case tar.TypeReg:
		i.header.Size = f.Size
	case tar.TypeDir:
		i.mode |= fs.ModeDir
	case tar.TypeSymlink:
		i.header.Linkname = string(f.Link)
		i.mode |= fs.ModeSymlink
	case tar.TypeFifo:
		i.mode |= fs.ModeNamedPipe
	default:
		return nil, fmt.Errorf("the machine says that a file %q is a %q", name, f.Type)
	}
	for k, v := range f.Xattrs {
		if !layers.KeepXattr(k) { // on the host it might mean something
			continue
		}
		if i.xattrs == nil {
			i.xattrs = map[string]string{}
		}
		i.xattrs[k] = string(v)
	}
	return i, nil
}

func (t *tree) Lstat(name string) (fs.FileInfo, error) {
	if path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") { // it may be no UTF-8
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrInvalid}
	}
	if i := t.infos[name]; i != nil {
		return i, nil
	}
	if dir := path.Dir(name); name != "." && t.dirs[dir] != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrNotExist}
	}
	if err := t.noLinks(name); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	found, err := t.guest.list(t.ctx, name, false)
	if err == nil && (len(found) != 1 || found[0].Type == 0) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	found[0].Name = []byte(path.Base(name))
	i, err := infoOf(found[0])
	if err != nil {
		return nil, err
	}
	t.infos[name] = i
	return i, nil
}

// noLinks fails if a link is on the way to a name.
func (t *tree) noLinks(name string) error {
	dir := path.Dir(name)
	if name == "." || dir == "." {
		return nil
	}
	i, err := t.Lstat(dir)
	if err != nil {
		return err
	}
	if !i.IsDir() {
		return errors.New("not a directory")
	}
	return nil
}

func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	if list := t.dirs[name]; list != nil {
		return list, nil
	}
	i, err := t.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !i.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a directory")}
	}
	found, err := t.guest.list(t.ctx, name, true)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	if len(name) > maxPath || len(t.infos)+len(found) > maxNames {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("the machine has too many files, or too deep directories")}
	}
	list := make([]fs.DirEntry, 0, len(found))
	for _, f := range found {
		i, err := infoOf(f)
		if err != nil {
			return nil, err
		}
		if n := i.Name(); n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") {
			return nil, fmt.Errorf("the machine says that a directory has a file %q", n)
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for n, i := range list {
		if n > 0 && list[n-1].Name() == i.Name() {
			return nil, fmt.Errorf("the machine says that a directory has two files %q", i.Name())
		}
		t.infos[path.Join(name, i.Name())] = i.(*fileInfo)
	}
	t.dirs[name] = list
	return list, nil
}

func (t *tree) ReadLink(name string) (string, error) {
	i, err := t.Lstat(name)
	if err != nil {
		return "", err
	}
	if i.Mode().Type() != fs.ModeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return i.(*fileInfo).header.Linkname, nil
}

func (t *tree) Xattrs(name string) (map[string]string, error) {
	i, err := t.Lstat(name)
	if err != nil {
		return nil, err
	}
	return i.(*fileInfo).xattrs, nil
}

func (t *tree) Open(name string) (fs.File, error) {
	i, err := t.Lstat(name)
	if err != nil {
		return nil, err
	}
	if i.IsDir() {
		list, err := t.ReadDir(name)
		return &openDir{i, list}, err
	}
	if !i.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	// All of it at once: an agent does one thing at a time, and who has opened one file may open another.
	f, err := os.CreateTemp(t.tmp, "file-")
	if err != nil {
		return nil, err
	}
	out := &sizedFile{f, i.Size()}
	err = errors.Join(os.Remove(f.Name()), t.guest.read(t.ctx, name, out))
	if err == nil && out.left > 0 {
		err = errors.New("it has shrunk in the machine while it was read")
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &openFile{f, i}, nil
}

// A sizedFile takes what a file had when it was looked at, and no more.
type sizedFile struct {
	f    *os.File
	left int64
}

func (s *sizedFile) Write(p []byte) (int, error) {
	if s.left -= int64(len(p)); s.left < 0 {
		return 0, errors.New("it has grown in the machine while it was read")
	}
	return s.f.Write(p)
}

// A openFile is a copy of a file's content.
type openFile struct {
	*os.File
	info fs.FileInfo
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }

type openDir struct {
	info fs.FileInfo
	list []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error)   { return 0, fs.ErrInvalid }

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		list := d.list
		d.list = nil
		return list, nil
	}
	if len(d.list) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.list))
	list := d.list[:n]
	d.list = d.list[n:]
	return list, nil
}
