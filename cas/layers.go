package cas

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	layerRoot = "fs"    // the files of a layer
	epochFile = "epoch" // when it was committed; marked when durable
	sizeFile  = "size"  // bytes of disk that it takes, once somebody has asked
)

// LayerPath is the root of a layer's files: STORE/layers/NAME/fs. It does not look whether it exists.
func (s *Store) LayerPath(name string) string { return s.path(layersDir, name, layerRoot) }

// HasLayer reports whether a layer directory is there. One that is there stays until Close.
func (s *Store) HasLayer(name string) bool {
	if !s.layerIsValid(name) {
		return false
	}
	if s.isLeased(layerRef(name)) {
		return true
	}
	err := s.commit([]string{layerRef(name)}, func() error {
		if !s.layerIsValid(name) {
			return ErrNotFound
		}
		return nil
	})
	return err == nil
}

// layerIsValid reports whether a layer directory is what was committed, as far as epochs tell.
func (s *Store) layerIsValid(name string) bool {
	if !validName(name) {
		return false
	}
	path := s.path(layersDir, name, epochFile)
	info, err := os.Lstat(path)
	if err != nil {
		return false
	}
	if isMarked(info) {
		return true
	}
	b, err := readFile(path)
	return err == nil && s.isValid(false, string(b))
}

// CommitLayer makes the directory dir (in TempDir, holding an `fs` directory) visible as layers/NAME by one rename.
// If NAME exists, dir goes to the trash and that is no error. An empty name asks for a fresh unique one. The name is
// returned. The layer stays until Close, or for as long as a result refers to it.
func (s *Store) CommitLayer(dir, name string) (string, error) {
	if name == "" {
		name = s.fresh()
	}
	if err := s.commitLayer(dir, name); err != nil {
		return "", fmt.Errorf("commit layer %s: %w", name, err)
	}
	return name, s.settle()
}

func (s *Store) commitLayer(dir, name string) error {
	if !validName(name) {
		return fmt.Errorf("%q cannot name a layer", name)
	}
	if !strings.HasPrefix(dir, s.TempDir()+string(filepath.Separator)) {
		return fmt.Errorf("%s is not in %s", dir, s.TempDir())
	}
	if info, err := os.Lstat(filepath.Join(dir, layerRoot)); err != nil {
		return err
	} else if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", filepath.Join(dir, layerRoot))
	}
	if s.HasLayer(name) {
		return s.discard(dir)
	}
	epochPath := filepath.Join(dir, epochFile)
	if err := os.RemoveAll(epochPath); err != nil { // of an earlier try that failed
		return err
	}
	if err := writeFile(epochPath, []byte(s.epoch)); err != nil {
		return err
	}
	if s.epoch == "" { // others would take it for spoiled until it has the mark
		if err := s.seal(epochPath); err != nil {
			return err
		}
	}
	path := s.path(layersDir, name)
	for try := 0; ; try++ {
		err := s.commit([]string{layerRef(name)}, func() error {
			if err := s.note(filepath.Join(path, epochFile)); err != nil {
				return err
			}
			return Rename(dir, path)
		})
		if err == nil {
			return nil
		}
		if s.HasLayer(name) {
			return s.discard(dir)
		}
		// Others may come and go at the same time, but not for ever.
		if _, statErr := os.Lstat(path); try == 100 || statErr != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := s.discardSpoiled(name); err != nil {
			return err
		}
	}
}

// seal makes a layer durable that is not in its place yet, and marks it.
func (s *Store) seal(epochPath string) error {
	f, err := os.Open(epochPath)
	if err != nil {
		return err
	}
	defer f.Close()
	return cmp.Or(s.flush([]*os.File{f}), mark(f))
}

// discardSpoiled makes way for a layer whose directory is there, but was not durable when its epoch ended. Without
// the lock, it might discard what another process has just put in its place.
func (s *Store) discardSpoiled(name string) error {
	lock, err := acquire(context.Background(), s.path(gcLock), true)
	if err != nil {
		return err
	}
	if !s.layerIsValid(name) {
		err = s.discard(s.path(layersDir, name))
	}
	return errors.Join(err, lock.Close())
}
