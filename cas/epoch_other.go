//go:build !linux

package cas

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// epoch cannot tell boots and mounts apart here: each commit is made durable at once.
func epoch(string, string) (boot, epoch string) { return "", "" }

// MountOf names nothing.
func MountOf(string) string { return "" }

// flush makes durable what was written to the store: each of files, and what it stands for.
func (s *Store) flush(files []*os.File) error {
	for _, f := range files {
		if err := s.flushOne(f.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) flushOne(path string) error {
	top, _, _ := strings.Cut(s.rel(path), "/")
	if top != layersDir && top != cachesDir && filepath.Base(path) != epochFile {
		return syncFile(path)
	}
	return filepath.WalkDir(filepath.Dir(path), func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			err = syncFile(p)
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile: a pruned layer
			return nil
		}
		return err
	})
}

func syncFile(path string) error {
	// Windows syncs only what is open for writing.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		if f, err = openFile(path, os.O_RDONLY); err != nil {
			return err
		}
		defer f.Close()
		_ = f.Sync() // read-only: nobody has written it since it was made so
		return nil
	}
	return errors.Join(f.Sync(), f.Close())
}

func dirtyBytes() int64 { return 0 }

func placeWarnings(string) []string { return nil }
