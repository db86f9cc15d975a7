//go:build !linux

package layers

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
)

// Dir is the Tree of a directory. It is safe for concurrent use.
type Dir struct {
	root *os.Root
	fsys fs.FS
}

// DirTree reads a directory. Close releases it.
func DirTree(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Dir{root, root.FS()}, nil
}

// Close releases the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Open opens a regular file or a directory.
func (d *Dir) Open(name string) (fs.File, error) {
	fi, err := d.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() && !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return d.fsys.Open(name)
}

// Lstat describes a file.
func (d *Dir) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(d.fsys, name) }

// ReadDir lists a directory, sorted by name.
func (d *Dir) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(d.fsys, name) }

// ReadLink gives a link's target.
func (d *Dir) ReadLink(name string) (string, error) { return fs.ReadLink(d.fsys, name) }

func addSys(*tar.Header, any) inode { return inode{} }

var errNoOverlay = errors.New("layer directories are overlayfs's: they need Linux")
