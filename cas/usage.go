package cas

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Usage is what the store holds, in bytes of disk.
type Usage struct {
	Blobs, Layers, Caches, Other int64
	Kept                         int64 // what others than this package keep in the store, in the directories that Usage was asked about
	Trash                        int64 // evicted, and deleted when there is time
	Results                      int
	Odd                          []error // what could not be looked at, and does not count
}

// Usage measures the store, with directories below it that others than this package keep there. Layer directories are walked once; their
// sizes are remembered.
func (s *Store) Usage(ctx context.Context, kept ...string) (Usage, error) {
	var u Usage
	sz, err := s.measure(ctx)
	if err != nil {
		return u, fmt.Errorf("usage of %s: %w", s.dir, err)
	}
	u.Blobs, u.Layers, u.Caches, u.Odd = sum(sz.blobs), sum(sz.layers), sum(sz.caches), sz.odd
	size := func(dir string) int64 {
		n, err := diskSize(ctx, s.path(dir))
		if err != nil {
			u.Odd = append(u.Odd, err)
		}
		return n
	}
	for _, d := range kept {
		u.Kept += size(d)
	}
	var odd []error
	u.Trash, odd = s.trashSize(ctx)
	u.Odd = append(u.Odd, odd...)
	for _, d := range []string{resultsDir, locksDir, leasesDir, deadDir, unsyncedDir, hashesDir, tmpDir} {
		u.Other += size(d)
	}
	if ctx.Err() != nil {
		return u, fmt.Errorf("usage of %s: %w", s.dir, context.Cause(ctx))
	}
	for _, err := range s.Results() {
		if err == nil {
			u.Results++
		} else {
			u.Odd = append(u.Odd, err)
		}
	}
	return u, nil
}

// trashSize is what is in the trash. The directory itself is there always, and does not count.
func (s *Store) trashSize(ctx context.Context) (total int64, odd []error) {
	for path, err := range filesBelow(s.path(trashDir), 1) {
		if err == nil {
			var n int64
			n, err = diskSize(ctx, path)
			total += n
		}
		if err != nil {
			odd = append(odd, err)
		}
	}
	return total, odd
}

// sizes are bytes of disk: of blobs by the hex of their digest, of layers by name, of caches by path.
type sizes struct {
	blobs, layers, caches map[string]int64
	odd                   []error // what could not be looked at
}

func sum(m map[string]int64) int64 {
	var n int64
	for _, v := range m {
		n += v
	}
	return n
}

// measure looks at all bytes that can be evicted. What cannot be looked at is told, and does not stop it.
func (s *Store) measure(ctx context.Context) (sizes, error) {
	sz := sizes{blobs: map[string]int64{}, layers: map[string]int64{}, caches: map[string]int64{}}
	var mu sync.Mutex
	note := func(err error) {
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			sz.odd = append(sz.odd, err)
		}
	}
	for path, err := range filesBelow(s.path(blobsDir, "sha256"), 1) {
		note(err)
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			sz.blobs[filepath.Base(path)] = diskUse(info)
		}
	}
	var g errgroup.Group
	g.SetLimit(2 * runtime.GOMAXPROCS(0)) // walking waits for the disk as much as for the processor
	each := func(sizes map[string]int64, name string, size func() (int64, error)) {
		g.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			n, err := size()
			note(err)
			mu.Lock()
			defer mu.Unlock()
			sizes[name] = n
			return nil
		})
	}
	for path, err := range filesBelow(s.path(layersDir), 1) {
		if err != nil {
			note(err)
			continue
		}
		name := filepath.Base(path)
		each(sz.layers, name, func() (int64, error) { return s.layerSize(ctx, name) })
	}
	for path, err := range filesBelow(s.path(cachesDir), 2) {
		if err != nil {
			note(err)
			continue
		}
		each(sz.caches, path, func() (int64, error) { return diskSize(ctx, path) })
	}
	_ = g.Wait()
	if ctx.Err() != nil {
		return sz, context.Cause(ctx)
	}
	return sz, nil
}

// layerSize is the size of a layer directory, which does not change. With an error, it is what could be looked at.
func (s *Store) layerSize(ctx context.Context, name string) (int64, error) {
	path := s.path(layersDir, name, sizeFile)
	if b, err := readFile(path); err == nil {
		// A file that a power cut has emptied is no number.
		if n, err := strconv.ParseInt(string(b), 10, 64); err == nil && n >= 0 {
			return n, nil
		}
	}
	n, err := diskSize(ctx, s.path(layersDir, name))
	if err != nil {
		return n, err
	}
	// Only to save time: without it, the layer is walked again.
	tmp := s.temp(sizeFile)
	if err := writeFile(tmp, strconv.AppendInt(nil, n, 10)); err == nil {
		if err := Rename(tmp, path); err != nil {
			_ = os.Remove(tmp)
		}
	}
	return n, nil
}
