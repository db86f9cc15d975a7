package images

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/internal/oci"
)

// A Lockfile pins names to digests: JSON, sorted, made if missing. Safe for concurrent use.
type Lockfile struct {
	path string

	mu     sync.Mutex
	images []resolution // sorted
	added  bool
}

const lockfileVersion = 1

type lockfile struct {
	Version int          `json:"version"`
	Images  []resolution `json:"images"`
}

// OpenLockfile reads a lock file. A missing one is empty.
func OpenLockfile(path string) (*Lockfile, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Lockfile{path: path}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read lock file: %w", err)
	}
	images, err := parseLockfile(b)
	if err != nil {
		return nil, fmt.Errorf("lock file %s: %w", path, err)
	}
	return &Lockfile{path: path, images: images}, nil
}

func parseLockfile(b []byte) ([]resolution, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var f lockfile
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("it is no JSON, or cut short: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("there is more after the JSON value")
	}
	if f.Version != lockfileVersion {
		return nil, fmt.Errorf("version %d is not supported, only %d", f.Version, lockfileVersion)
	}
	for _, i := range f.Images {
		if n, err := Normalize(i.Name); err != nil {
			return nil, err
		} else if n != i.Name {
			return nil, fmt.Errorf("image name %q: it has to be written %q", i.Name, n)
		}
		if err := oci.CheckDigest(i.Digest); err != nil {
			return nil, fmt.Errorf("%s: %w", i.Name, err)
		}
		for _, p := range []ocispec.Platform{i.For, i.Platform} {
			if p.OS == "" || p.Architecture == "" || oci.PlatformString(oci.NormalizePlatform(p)) != oci.PlatformString(p) {
				return nil, fmt.Errorf("%s: %q is no platform", i.Name, oci.PlatformString(p))
			}
		}
	}
	slices.SortFunc(f.Images, compareResolutions)
	for i := 1; i < len(f.Images); i++ {
		if compareResolutions(f.Images[i-1], f.Images[i]) == 0 {
			return nil, fmt.Errorf("%s for %s stands there twice", f.Images[i].Name, oci.PlatformString(f.Images[i].For))
		}
	}
	return f.Images, nil
}

func (l *Lockfile) lookup(name string, p ocispec.Platform) (resolution, bool) {
	if l == nil {
		return resolution{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := slices.BinarySearchFunc(l.images, resolution{Name: name, For: p}, compareResolutions)
	if !ok {
		return resolution{}, false
	}
	return l.images[i], true
}

func (l *Lockfile) add(img resolution) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := slices.BinarySearchFunc(l.images, img, compareResolutions)
	if ok {
		return
	}
	l.images = slices.Insert(l.images, i, img)
	l.added = true
}

// Save writes it back by one rename if a name was added.
func (l *Lockfile) Save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.added {
		return nil
	}
	if err := writeFile(l.path, l.encode()); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	l.added = false
	return nil
}

func (l *Lockfile) encode() []byte {
	b, err := json.MarshalIndent(lockfile{Version: lockfileVersion, Images: l.images}, "", "  ")
	if err != nil {
		panic(err) // strings only
	}
	return append(b, '\n')
}

// writeFile replaces a file by one rename.
func writeFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	err = cmp.Or(err, f.Chmod(0o644), f.Sync())
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return cas.Rename(f.Name(), path)
}
