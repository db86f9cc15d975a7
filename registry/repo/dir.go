package repo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cas/foreign"
)

// dirFiles is a layout in a directory. Others may write there too: nothing is read or written through a link that leads out of it, nor out of
// anything but a regular file.
type dirFiles struct {
	dir string

	mu   sync.Mutex
	root *os.Root // nil until the directory is there
}

const (
	tempPrefix = ".tmp-"
	tempAge    = 24 * time.Hour // older ones belong to processes that were killed
)

// checkDir refuses a directory that holds something else: it would be filled with blobs.
func (l *Layout) checkDir() error {
	d, ok := l.files.(*dirFiles)
	if !ok {
		return nil
	}
	if _, err := os.Stat(d.dir); err != nil {
		return nil // it is not there yet, or is an error of who uses it
	}
	root, err := d.openRoot()
	if err == nil {
		_, err = root.Stat(ocispec.ImageLayoutFile)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	names, err := foreign.ListIn(root, ".", 1)
	if err != nil || len(names) == 0 {
		return err
	}
	return fmt.Errorf("%s is no OCI layout, nor is it empty: it has no file %s", root.Name(), ocispec.ImageLayoutFile)
}

// openRoot opens the directory, once it is there. Whatever has its name later is not looked at.
func (d *dirFiles) openRoot() (*os.Root, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root != nil {
		return d.root, nil
	}
	root, err := os.OpenRoot(d.dir)
	if err != nil {
		return nil, err
	}
	d.root = root
	return root, nil
}

// makeRoot is openRoot that makes the directory if it is missing.
func (d *dirFiles) makeRoot() (*os.Root, error) {
	root, err := d.openRoot()
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(d.dir, 0o755); err != nil {
			return nil, err
		}
		return d.openRoot()
	}
	return root, err
}

func (d *dirFiles) open(name string) (io.ReadCloser, fileStamp, error) {
	f, stamp, err := d.openFile(name)
	if err != nil {
		return nil, stamp, err
	}
	return f, stamp, nil
}

func (d *dirFiles) openFile(name string) (*os.File, fileStamp, error) {
	root, err := d.openRoot()
	if err != nil {
		return nil, fileStamp{}, err
	}
	return openInLayout(root, name)
}

// openInLayout opens a file of a layout. What is no regular file is not there.
func openInLayout(root *os.Root, name string) (f *os.File, stamp fileStamp, err error) {
	err = cas.WhileBusy(func() error {
		f, err = foreign.OpenIn(root, filepath.FromSlash(name))
		return err
	})
	if errors.Is(err, foreign.ErrNotRegular) {
		err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	if err != nil {
		return nil, stamp, inDir(root, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, stamp, err
	}
	return f, stampOf(info), nil
}

func stampOf(info fs.FileInfo) fileStamp { return fileStamp{info.Size(), info.ModTime(), 0} }

// inDir says in which directory a name is that an error has.
func inDir(root *os.Root, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && !filepath.IsAbs(p.Path) {
		p.Path = filepath.Join(root.Name(), p.Path)
	}
	return err
}

func (d *dirFiles) stat(name string) (fileStamp, error) {
	root, err := d.openRoot()
	if err != nil {
		return fileStamp{}, err
	}
	info, err := root.Stat(filepath.FromSlash(name))
	if err != nil {
		return fileStamp{}, inDir(root, err)
	}
	if !info.Mode().IsRegular() {
		return fileStamp{}, fmt.Errorf("%s is no regular file: %w", filepath.Join(d.dir, name), fs.ErrNotExist)
	}
	return stampOf(info), nil
}

func (d *dirFiles) list(dir string) ([]string, error) {
	root, err := d.openRoot()
	if err != nil {
		return nil, err
	}
	names, err := foreign.ListIn(root, filepath.FromSlash(dir), -1)
	return names, inDir(root, err)
}

func (d *dirFiles) create(name string, write func(io.Writer) error) (err error) {
	root, err := d.makeRoot()
	if err != nil {
		return err
	}
	f, tmp, err := createTemp(root, path.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(filepath.FromSlash(path.Dir(name)), 0o755); err != nil {
			return inDir(root, err)
		}
		f, tmp, err = createTemp(root, path.Dir(name))
	}
	if err != nil {
		return inDir(root, err)
	}
	defer func() {
		if err != nil {
			_ = root.Remove(tmp)
		}
	}()
	err = write(f)
	if err == nil && name == ocispec.ImageIndexFile {
		err = f.Sync() // without it no tool can read anything
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return rename(root, tmp, filepath.FromSlash(name))
}

// createTemp makes a new file in a directory of a layout.
func createTemp(root *os.Root, dir string) (f *os.File, name string, err error) {
	for {
		name = filepath.Join(filepath.FromSlash(dir), tempPrefix+rand.Text())
		f, err = root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if !errors.Is(err, fs.ErrExist) {
			return f, name, err
		}
	}
}

// rename moves a file within a directory, replacing another.
func rename(root *os.Root, from, to string) error {
	return cas.WhileBusy(func() error { return root.Rename(from, to) })
}

func (d *dirFiles) remove(name string) error {
	root, err := d.openRoot()
	if err != nil {
		return err
	}
	return inDir(root, root.Remove(filepath.FromSlash(name)))
}

func (d *dirFiles) lock(ctx context.Context) (func(), error) {
	if _, err := d.makeRoot(); err != nil {
		return nil, err
	}
	return lockDir(ctx, d.dir)
}

// publish removes what killed processes have left; all else is in its place.
func (d *dirFiles) publish(context.Context) error {
	root, err := d.openRoot()
	if err != nil {
		return err
	}
	for _, dir := range []string{".", tagsDir, ocispec.ImageBlobsDir + "/sha256"} {
		names, err := d.list(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, name := range names {
			if !strings.HasPrefix(name, tempPrefix) {
				continue
			}
			name = filepath.Join(filepath.FromSlash(dir), name)
			if info, err := root.Lstat(name); err == nil && time.Since(info.ModTime()) > tempAge {
				if err := root.RemoveAll(name); err != nil {
					return inDir(root, err)
				}
			}
		}
	}
	return nil
}

func (d *dirFiles) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return nil
	}
	err := d.root.Close()
	d.root = nil
	return err
}
