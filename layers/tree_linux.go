package layers

import (
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// Dir is the Tree of a directory. It is safe for concurrent use.
type Dir struct{ fd int }

// DirTree reads a directory, or a mount (path may be /proc/self/fd/N). Close releases it.
func DirTree(path string) (*Dir, error) {
	fd, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	return &Dir{fd}, nil
}

// Close releases the directory.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// open gives a descriptor that names a file without opening it. The kernel resolves the whole name, and refuses
// links on the way.
func (d *Dir) open(op, name string) (int, error) {
	if !validPath(name) {
		return -1, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	fd, err := foreign.OpenBeneath(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return -1, &fs.PathError{Op: op, Path: short(name), Err: err}
	}
	return fd, nil
}

// validPath is fs.ValidPath, but for names that are not UTF-8: files have those too.
func validPath(name string) bool {
	if name == "." {
		return true
	}
	for elem := range strings.SplitSeq(name, "/") {
		if elem == "" || elem == "." || elem == ".." {
			return false
		}
	}
	return true
}

// Open opens a regular file or a directory. Opening a device or a pipe could do something or wait: it fails. So does opening a file with more than
// maxHoles of holes: whoever opens a file of a tree copies or hashes it.
func (d *Dir) Open(name string) (fs.File, error) {
	fd, err := d.open("open", name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	fi, err := stat(fd, name)
	if err != nil {
		return nil, err
	}
	switch {
	case fi.IsDir():
		return &openDir{d: d, name: name, info: fi}, nil
	case !fi.Mode().IsRegular():
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	file, err := openat(unix.AT_FDCWD, fdPath(fd), unix.O_RDONLY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if err := checkHoles(file, name, (*unix.Stat_t)(unsafe.Pointer(&fi.st))); err != nil {
		unix.Close(file)
		return nil, err
	}
	return os.NewFile(uintptr(file), name), nil
}

// Lstat describes a file.
func (d *Dir) Lstat(name string) (fs.FileInfo, error) {
	fd, err := d.open("lstat", name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return stat(fd, name)
}

// ReadLink gives a link's target.
func (d *Dir) ReadLink(name string) (string, error) {
	fd, err := d.open("readlink", name)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	target, err := readLinkAt(fd, "")
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// Xattrs gives the extended attributes that a layer would hold.
func (d *Dir) Xattrs(name string) (map[string]string, error) {
	fd, err := d.open("listxattr", name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	m, err := xattrsOfPathFD(fd)
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: name, Err: err}
	}
	delete(m, opaqueXattr)
	delete(m, whiteoutXattr)
	return m, nil
}

// xattrsOfPathFD is fdXattrs for a descriptor of O_PATH, also that of a link: following /proc/self/fd/N ends there.
func xattrsOfPathFD(fd int) (map[string]string, error) {
	p := fdPath(fd)
	return xattrs(
		func(buf []byte) (int, error) { return unix.Listxattr(p, buf) },
		func(key string, buf []byte) (int, error) { return unix.Getxattr(p, key, buf) })
}

// ReadDir lists a directory, sorted by name.
func (d *Dir) ReadDir(name string) ([]fs.DirEntry, error) {
	fd, err := d.open("readdir", name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	f, err := openDirAt(fd, ".")
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	entries, err := readDir(f, name)
	if err != nil {
		return nil, err
	}
	// Whoever lists a directory wants to know all about its files: now it takes one call a file, later three.
	at, err := openDirAt(fd, ".")
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	defer unix.Close(at)
	out := make([]fs.DirEntry, len(entries))
	for i, e := range entries {
		entry := &dirEntry{d: d, dir: name, name: e.Name(), typ: e.Type()}
		if info, err := statAt(at, e.Name()); err != nil {
			entry.err = err
		} else {
			entry.info = info
		}
		out[i] = entry
	}
	return out, nil
}

// readDir lists an open directory, sorted by name, and closes it.
func readDir(fd int, name string) ([]fs.DirEntry, error) {
	f := os.NewFile(uintptr(fd), fdPath(fd)) // a file system that gives no types makes ReadDir lstat below this path
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

type dirEntry struct {
	d         *Dir
	dir, name string
	typ       fs.FileMode
	info      fs.FileInfo
	err       error
}

func (e *dirEntry) Name() string               { return e.name }
func (e *dirEntry) IsDir() bool                { return e.typ.IsDir() }
func (e *dirEntry) Type() fs.FileMode          { return e.typ }
func (e *dirEntry) Info() (fs.FileInfo, error) { return e.info, e.err }

// openDir is an open directory as fs.File wants it.
type openDir struct {
	d       *Dir
	name    string
	info    fs.FileInfo
	entries []fs.DirEntry
	read    bool
}

func (o *openDir) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openDir) Close() error               { return nil }
func (o *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: o.name, Err: syscall.EISDIR}
}

func (o *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !o.read {
		entries, err := o.d.ReadDir(o.name)
		if err != nil {
			return nil, err
		}
		o.entries, o.read = entries, true
	}
	if n <= 0 {
		n = len(o.entries)
	} else if len(o.entries) == 0 {
		return nil, io.EOF
	}
	out := o.entries[:min(n, len(o.entries))]
	o.entries = o.entries[len(out):]
	return out, nil
}

type fileInfo struct {
	name string
	st   syscall.Stat_t
}

func stat(fd int, name string) (*fileInfo, error) {
	fi := &fileInfo{name: path.Base(name)}
	if err := syscall.Fstat(fd, &fi.st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return fi, nil
}

// statAt describes a file in an open directory.
func statAt(dirfd int, name string) (*fileInfo, error) {
	fi := &fileInfo{name: name}
	// Package syscall's type is what FileInfo.Sys is expected to be; both describe the kernel's.
	st := (*unix.Stat_t)(unsafe.Pointer(&fi.st))
	if err := unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return fi, nil
}

func (fi *fileInfo) Name() string       { return fi.name }
func (fi *fileInfo) Size() int64        { return fi.st.Size }
func (fi *fileInfo) Mode() fs.FileMode  { return fileMode(fi.st.Mode) }
func (fi *fileInfo) ModTime() time.Time { return time.Unix(fi.st.Mtim.Unix()) }
func (fi *fileInfo) IsDir() bool        { return fi.st.Mode&unix.S_IFMT == unix.S_IFDIR }
func (fi *fileInfo) Sys() any           { return &fi.st }
