package fake

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
)

// A tree is a file system in memory, by clean relative path, without its root. A node is never changed, only replaced.
type tree map[string]*node

type node struct {
	header *tar.Header
	data   []byte
}

func newFile(data []byte, mode int64) *node {
	return &node{&tar.Header{Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}, data}
}

func newDir() *node { return &node{header: &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}} }

// with is the same node with another header.
func (n *node) with(change func(*tar.Header)) *node {
	h := *n.header
	change(&h)
	return &node{&h, n.data}
}

func (n *node) isDir() bool { return n.header.Typeflag == tar.TypeDir }

func clean(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

func (t tree) clone() tree { return maps.Clone(t) }

func (t tree) isDir(name string) bool {
	return name == "" || t[name] != nil && t[name].isDir()
}

// touch makes the directory of name a changed one.
func (t tree) touch(name string) {
	if dir := clean(path.Dir(name)); dir != "" && t[dir] != nil {
		t[dir] = t[dir].with(func(*tar.Header) {})
	}
}

func (t tree) mkdirAll(name string) {
	if name == "" || t[name] != nil {
		return
	}
	t.mkdirAll(clean(path.Dir(name)))
	t[name] = newDir()
	t.touch(name)
}

func (t tree) removeBelow(name string) {
	for other := range t {
		if strings.HasPrefix(other, name+"/") {
			delete(t, other)
		}
	}
}

func (t tree) remove(name string) {
	delete(t, name)
	t.removeBelow(name)
	t.touch(name)
}

const whiteout = ".wh."

// apply applies a layer.
func (t tree) apply(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := clean(h.Name)
		dir, base := path.Split(name)
		switch {
		case name == "":
		case base == ".wh..wh..opq":
			t.removeBelow(strings.TrimSuffix(dir, "/"))
		case strings.HasPrefix(base, whiteout):
			t.remove(dir + strings.TrimPrefix(base, whiteout))
		case h.Typeflag == tar.TypeLink:
			target := t[clean(h.Linkname)]
			if target == nil {
				return &fs.PathError{Op: "link", Path: name, Err: fs.ErrNotExist}
			}
			t[name] = target
		default:
			data, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			if h.Typeflag != tar.TypeDir {
				t.removeBelow(name)
			}
			t.mkdirAll(clean(path.Dir(name)))
			t[name] = &node{h, data}
		}
	}
}

// writeDiff writes the layer that leads from one tree to another.
func writeDiff(w io.Writer, from, to tree) (empty bool, err error) {
	tw := tar.NewWriter(w)
	empty = true
	names := slices.AppendSeq(slices.Collect(maps.Keys(from)), maps.Keys(to))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		before, after := from[name], to[name]
		if before == after {
			continue
		}
		dir, base := path.Split(name)
		parent := strings.TrimSuffix(dir, "/")
		h := tar.Header{Name: dir + whiteout + base, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		var data []byte
		switch {
		case after != nil:
			h, data = *after.header, after.data
			h.Name, h.Format = name, tar.FormatPAX
			if after.isDir() {
				h.Name += "/"
			}
		case !to.isDir(parent) || !from.isDir(parent): // gone with its directory
			continue
		}
		empty = false
		if err := tw.WriteHeader(&h); err != nil {
			return false, err
		}
		if _, err := tw.Write(data); err != nil {
			return false, err
		}
	}
	return empty, tw.Close()
}

// ---- layers.Tree

func (t tree) find(op, name string) (*node, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	if name == "." {
		return newDir(), nil
	}
	n := t[name]
	if n == nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return n, nil
}

// Open opens a file or directory.
func (t tree) Open(name string) (fs.File, error) {
	n, err := t.find("open", name)
	if err != nil {
		return nil, err
	}
	info := fileInfo{n.header.FileInfo(), path.Base(name)}
	switch n.header.Typeflag {
	case tar.TypeReg:
		return &file{Reader: bytes.NewReader(n.data), info: info}, nil
	case tar.TypeDir:
		entries, err := t.ReadDir(name)
		return &file{Reader: bytes.NewReader(nil), info: info, entries: entries}, err
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("neither a file nor a directory")}
}

func (t tree) Lstat(name string) (fs.FileInfo, error) {
	n, err := t.find("lstat", name)
	if err != nil {
		return nil, err
	}
	return fileInfo{n.header.FileInfo(), path.Base(name)}, nil
}

func (t tree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	var entries []fs.DirEntry
	for other, n := range t {
		if path.Dir(other) == name {
			entries = append(entries, fs.FileInfoToDirEntry(fileInfo{n.header.FileInfo(), path.Base(other)}))
		}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

func (t tree) ReadLink(name string) (string, error) {
	n, err := t.find("readlink", name)
	if err != nil {
		return "", err
	}
	if n.header.Typeflag != tar.TypeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return n.header.Linkname, nil
}

func (t tree) Xattrs(name string) (map[string]string, error) {
	_, err := t.find("getxattr", name)
	return nil, err
}

// fileInfo is a header's, by the name that it has in the tree.
type fileInfo struct {
	fs.FileInfo
	name string
}

func (i fileInfo) Name() string { return i.name }

type file struct {
	*bytes.Reader
	info    fs.FileInfo
	entries []fs.DirEntry
}

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *file) Close() error               { return nil }

func (f *file) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(f.entries)
	} else if len(f.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(f.entries))
	list := f.entries[:n]
	f.entries = f.entries[n:]
	return list, nil
}
