package qemu

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// A guestTree is the files of a machine that has booted from a disk. The machine is asked for all names of a directory at once,
// and for a file's content when it is opened. What it says is believed of its own files, and of nothing else.
type guestTree struct {
	ctx   context.Context
	guest guest
	tmp   string // a directory for the content of files that are open
	dirs  map[string][]fs.DirEntry
	infos map[string]*guestInfo
}

// Files reads the files in the machine.
func (r *diskRoot) Files(ctx context.Context) (layers.Tree, error) {
	if err := r.start(ctx, executor.Process{Network: r.network}); err != nil {
		r.end()
		return nil, err
	}
	return &guestTree{ctx: ctx, guest: r.guest, tmp: r.e.tmp, dirs: map[string][]fs.DirEntry{}, infos: map[string]*guestInfo{}}, nil
}

// A guestInfo is one file.
type guestInfo struct {
	header tar.Header // Name is the last part
	mode   fs.FileMode
}

func (i *guestInfo) Name() string               { return i.header.Name }
func (i *guestInfo) Size() int64                { return i.header.Size }
func (i *guestInfo) Mode() fs.FileMode          { return i.mode }
func (i *guestInfo) ModTime() time.Time         { return i.header.ModTime }
func (i *guestInfo) IsDir() bool                { return i.mode.IsDir() }
func (i *guestInfo) Sys() any                   { return &i.header }
func (i *guestInfo) Type() fs.FileMode          { return i.mode.Type() }
func (i *guestInfo) Info() (fs.FileInfo, error) { return i, nil }

// findFormat has a line's worth of a file, ended by zero bytes: type, mode, owner, size, time, link, name.
const findFormat = `%y\0%m\0%U\0%G\0%s\0%T@\0%l\0%f\0`

func (t *guestTree) find(name string, depth string) ([]*guestInfo, error) {
	at := "/" + strings.TrimPrefix(path.Clean(name), ".")
	var out boundedBuilder
	err := t.guest.run(t.ctx, fmt.Sprintf("find %s %s -printf '%s' 2>/dev/null", quote(path.Clean(at)), depth, findFormat), nil, &out)
	fields := strings.Split(strings.TrimSuffix(out.String(), "\x00"), "\x00")
	if out.Len() == 0 {
		return nil, errors.Join(fs.ErrNotExist, err)
	}
	if len(fields)%8 != 0 {
		return nil, fmt.Errorf("the machine's find printed %d fields", len(fields))
	}
	var all []*guestInfo
	for f := range slices.Chunk(fields, 8) {
		i, err := parseFound(f)
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

// maxFound is how much a machine may say of one directory, in bytes.
const maxFound = 256 << 20

// A boundedBuilder takes maxFound bytes.
type boundedBuilder struct{ strings.Builder }

func (b *boundedBuilder) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxFound {
		return 0, errors.New("a directory's list is too long")
	}
	return b.Builder.Write(p)
}

func parseFound(f []string) (*guestInfo, error) {
	mode, err := strconv.ParseUint(f[1], 8, 12)
	if err != nil {
		return nil, fmt.Errorf("a file's mode: %w", err)
	}
	var n [3]int64
	for i, s := range f[2:5] {
		if n[i], err = strconv.ParseInt(s, 10, 64); err != nil || n[i] < 0 {
			return nil, fmt.Errorf("a file's number: %q", s)
		}
	}
	sec, frac, _ := strings.Cut(f[5], ".")
	s, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("a file's time: %w", err)
	}
	ns, err := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("a file's time: %w", err)
	}
	i := &guestInfo{header: tar.Header{Name: f[7], Mode: int64(mode), Uid: int(n[0]), Gid: int(n[1]), ModTime: time.Unix(s, ns)}}
	i.mode = fs.FileMode(mode & 0o777)
	for bit, m := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			i.mode |= m
		}
	}
	switch f[0] {
	case "f":
		i.header.Typeflag, i.header.Size = tar.TypeReg, n[2]
	case "d":
		i.header.Typeflag = tar.TypeDir
		i.mode |= fs.ModeDir
	case "l":
		i.header.Typeflag, i.header.Linkname = tar.TypeSymlink, f[6]
		i.mode |= fs.ModeSymlink
	case "p":
		i.header.Typeflag = tar.TypeFifo
		i.mode |= fs.ModeNamedPipe
	default: // devices and sockets are of no use elsewhere
		i.mode |= fs.ModeIrregular
	}
	return i, nil
}

func (t *guestTree) Lstat(name string) (fs.FileInfo, error) {
	if !fs.ValidPath(name) {
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
	found, err := t.find(name, "-maxdepth 0")
	if err != nil || len(found) != 1 {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: errors.Join(fs.ErrNotExist, err)}
	}
	t.infos[name] = found[0]
	return found[0], nil
}

// noLinks fails if a link is on the way to a name.
func (t *guestTree) noLinks(name string) error {
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

func (t *guestTree) ReadDir(name string) ([]fs.DirEntry, error) {
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
	found, err := t.find(name, "-xdev -mindepth 1 -maxdepth 1")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	list := make([]fs.DirEntry, 0, len(found))
	for _, f := range found {
		if f.mode&fs.ModeIrregular == 0 && fs.ValidPath(f.Name()) && !strings.Contains(f.Name(), "/") {
			list = append(list, f)
			t.infos[path.Join(name, f.Name())] = f
		}
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	t.dirs[name] = list
	return list, nil
}

func (t *guestTree) ReadLink(name string) (string, error) {
	i, err := t.Lstat(name)
	if err != nil {
		return "", err
	}
	if i.Mode().Type() != fs.ModeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return i.(*guestInfo).header.Linkname, nil
}

// Xattrs are not asked for: few guests have the program.
func (t *guestTree) Xattrs(string) (map[string]string, error) { return nil, nil }

func (t *guestTree) Open(name string) (fs.File, error) {
	i, err := t.Lstat(name)
	if err != nil {
		return nil, err
	}
	if i.IsDir() {
		list, err := t.ReadDir(name)
		return &guestDir{i, list}, err
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
	err = errors.Join(os.Remove(f.Name()), t.guest.run(t.ctx, "cat "+quote("/"+name), nil, out))
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
	return &guestFile{f, i}, nil
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

// A guestFile is a copy of a file's content.
type guestFile struct {
	*os.File
	info fs.FileInfo
}

func (f *guestFile) Stat() (fs.FileInfo, error) { return f.info, nil }

type guestDir struct {
	info fs.FileInfo
	list []fs.DirEntry
}

func (d *guestDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *guestDir) Close() error               { return nil }
func (d *guestDir) Read([]byte) (int, error)   { return 0, fs.ErrInvalid }

func (d *guestDir) ReadDir(n int) ([]fs.DirEntry, error) {
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
