package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
)

// dirFiles is a layout in a directory.
type dirFiles struct{ dir string }

const (
	tempPrefix = ".tmp-"
	tempAge    = 24 * time.Hour // older ones belong to processes that were killed
)

// checkLayoutDir refuses a directory that holds something else: it would be filled with blobs.
func checkLayoutDir(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, ocispec.ImageLayoutFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.Readdirnames(1); err == io.EOF {
		return nil
	} else if err != nil {
		return err
	}
	return fmt.Errorf("%s is no OCI layout, nor is it empty: it has no file %s", dir, ocispec.ImageLayoutFile)
}

func (d *dirFiles) path(name string) string { return filepath.Join(d.dir, filepath.FromSlash(name)) }

func (d *dirFiles) open(name string) (io.ReadCloser, fileStamp, error) {
	stamp, err := d.stat(name) // first: opening a pipe would wait
	if err != nil {
		return nil, stamp, err
	}
	f, err := cas.OpenFile(d.path(name))
	if err != nil {
		return nil, stamp, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, stamp, err
	}
	return f, fileStamp{info.Size(), info.ModTime(), 0}, nil
}

func (d *dirFiles) stat(name string) (fileStamp, error) {
	info, err := os.Stat(d.path(name))
	if err != nil {
		return fileStamp{}, err
	}
	if !info.Mode().IsRegular() {
		return fileStamp{}, fmt.Errorf("%s is no regular file: %w", d.path(name), fs.ErrNotExist)
	}
	return fileStamp{info.Size(), info.ModTime(), 0}, nil
}

func (d *dirFiles) list(dir string) ([]string, error) {
	f, err := os.Open(d.path(dir))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (d *dirFiles) create(name string, write func(io.Writer) error) (err error) {
	to := d.path(name)
	f, err := os.CreateTemp(filepath.Dir(to), tempPrefix+"*")
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		f, err = os.CreateTemp(filepath.Dir(to), tempPrefix+"*")
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = write(f)
	if err == nil && name == ocispec.ImageIndexFile {
		err = f.Sync() // without it no tool can read anything
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return cas.Rename(f.Name(), to)
}

func (d *dirFiles) remove(name string) error { return os.Remove(d.path(name)) }

func (d *dirFiles) lock(ctx context.Context) (func(), error) { return lockDir(ctx, d.dir) }

// publish removes what killed processes have left; all else is in its place.
func (d *dirFiles) publish(context.Context) error {
	for _, dir := range []string{".", tagsDir, ocispec.ImageBlobsDir + "/sha256"} {
		names, err := d.list(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, name := range names {
			if !strings.HasPrefix(name, tempPrefix) {
				continue
			}
			path := filepath.Join(d.path(dir), name)
			if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > tempAge {
				if err := os.RemoveAll(path); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (d *dirFiles) close() error { return nil }
