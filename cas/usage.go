package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Usage is what the store holds, in bytes of disk.
type Usage struct {
	Blobs, Layers, Caches, Machines, Other int64
	Results                                int
}

// Usage measures the store. Layer directories are walked once; their sizes are remembered.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	sz, err := s.measure(ctx)
	if err != nil {
		return u, fmt.Errorf("usage of %s: %w", s.dir, err)
	}
	u.Blobs, u.Layers, u.Caches = sum(sz.blobs), sum(sz.layers), sum(sz.caches)
	if u.Machines, err = diskSize(ctx, s.path(machinesDir)); err != nil {
		return u, fmt.Errorf("usage of %s: %w", s.dir, err)
	}
	for _, d := range []string{resultsDir, locksDir, leasesDir, deadDir, unsyncedDir, hashesDir, tmpDir, trashDir} {
		n, err := diskSize(ctx, s.path(d))
		if err != nil {
			return u, fmt.Errorf("usage of %s: %w", s.dir, err)
		}
		u.Other += n
	}
	for _, err := range s.Results() {
		if err == nil {
			u.Results++
		}
	}
	return u, nil
}

// sizes are bytes of disk: of blobs by the hex of their digest, of layers by name, of caches by path.
type sizes struct{ blobs, layers, caches map[string]int64 }

func sum(m map[string]int64) int64 {
	var n int64
	for _, v := range m {
		n += v
	}
	return n
}

// measure looks at all bytes that can be evicted.
func (s *Store) measure(ctx context.Context) (sizes, error) {
	sz := sizes{blobs: map[string]int64{}, layers: map[string]int64{}, caches: map[string]int64{}}
	for path, err := range filesBelow(s.path(blobsDir, "sha256"), 1) {
		if err != nil {
			return sz, err
		}
		if info, err := os.Lstat(path); err == nil {
			sz.blobs[filepath.Base(path)], _, _ = diskUse(info)
		}
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.GOMAXPROCS(0)) // walking waits for the disk as much as for the processor
	for path, err := range filesBelow(s.path(layersDir), 1) {
		if err != nil {
			return sz, errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			n, err := s.layerSize(ctx, filepath.Base(path))
			mu.Lock()
			defer mu.Unlock()
			sz.layers[filepath.Base(path)] = n
			return err
		})
	}
	for path, err := range filesBelow(s.path(cachesDir), 2) {
		if err != nil {
			return sz, errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			n, err := diskSize(ctx, path)
			mu.Lock()
			defer mu.Unlock()
			sz.caches[path] = n
			return err
		})
	}
	return sz, g.Wait()
}

// layerSize is the size of a layer directory, which does not change.
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
		return 0, err
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

// diskSize is what dir and all below it take on disk. What vanishes meanwhile counts for nothing.
func diskSize(ctx context.Context, dir string) (int64, error) {
	var total int64
	seen := map[inode]bool{}
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var info fs.FileInfo
		if err == nil {
			info, err = e.Info()
		}
		if errors.Is(err, fs.ErrNotExist) || isBusy(err) { // others move it away
			return nil
		}
		if errors.Is(err, fs.ErrPermission) {
			return fs.SkipDir // not root, and the layer's own modes
		}
		if err != nil {
			return err
		}
		bytes, id, shared := diskUse(info)
		if shared {
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		total += bytes
		return nil
	})
	return total, err
}
