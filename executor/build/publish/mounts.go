package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// A Travel says how a cache mount travels through the caches.
type Travel string

const (
	// LastWins takes the content in the cache where there is none here, and replaces it by what the build leaves.
	LastWins Travel = "last-wins"
	// Union adds the files of the content in the cache to those here, and those here to it: right for directories whose
	// files are named by their content, as opam's and dune's caches are.
	Union Travel = "union"
)

// Mounts are the cache mounts that travel, in one run.
type Mounts struct {
	places      *results.Places
	travels     map[string]Travel // by name
	compression layers.Compression
	progress    layers.Progress

	bring cas.Once[mountID, struct{}]
	mu    sync.Mutex
	used  []*mount // that were brought here
}

// NewMounts has the cache mounts travel that travels names.
func NewMounts(places *results.Places, travels map[string]Travel, c layers.Compression, progress layers.Progress) *Mounts {
	return &Mounts{places: places, travels: travels, compression: c, progress: progress}
}

// A mountID is a cache mount of the store. What private uses have and what the others have are two; they travel as one.
type mountID struct {
	name string
	dir  bool // the directory of sharing shared and locked
}

// A mount is one cache mount that travels.
type mount struct {
	*Mounts
	mountID
	how   Travel
	there registry.Mount // what the first cache had when the run looked
}

// Bring brings a cache mount here if it travels, once, for a step that has it: the directory that steps share, or what each has for itself.
func (m *Mounts) Bring(ctx context.Context, name string, shared bool) error {
	how, ok := m.travels[name]
	if !ok || len(m.places.Caches) == 0 {
		return nil
	}
	id := mountID{name, shared}
	_, err := m.bring.Do(ctx, id, func(ctx context.Context) (none struct{}, err error) {
		b := &mount{Mounts: m, mountID: id, how: how}
		if err := b.pull(ctx); err != nil {
			return none, err
		}
		m.mu.Lock()
		m.used = append(m.used, b)
		m.mu.Unlock()
		return none, nil
	})
	return err
}

// Push publishes the cache mounts that were brought here, as they are now. Those that cannot be are told to failed, which may end it
// with an error. If a name has been used in both ways, what is in the directory wins.
func (m *Mounts) Push(ctx context.Context, failed func(error) error) (sent int64, err error) {
	slices.SortFunc(m.used, func(a, b *mount) int {
		if a.name == b.name && b.dir {
			return -1
		}
		return cmp.Or(strings.Compare(a.name, b.name), 1)
	})
	for _, b := range m.used {
		n, err := b.push(ctx)
		sent += n
		if err != nil && ctx.Err() != nil {
			return sent, context.Cause(ctx)
		}
		if err != nil {
			if err := failed(fmt.Errorf("share cache mount %s: %w", b.name, err)); err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}

// pull takes the content of the first cache that has one. What is lost or broken there is as good as none.
func (m *mount) pull(ctx context.Context) error {
	for i, c := range m.places.Caches {
		found, err := c.FindMount(ctx, m.name)
		if err != nil {
			return err
		}
		if i == 0 {
			m.there = found
		}
		if found.IsZero() {
			continue
		}
		take := m.take
		if m.dir {
			take = m.takeIntoDir
		}
		switch err := take(ctx, c, found); {
		case errors.Is(err, registry.ErrGone):
			if i == 0 {
				m.there.Layer = layers.Layer{}
			}
			m.places.Warn("cache %s: cache mount %s: %v", c.Name(), m.name, err)
		case errors.Is(err, errBusy):
			m.places.Warn("cache mount %s: what is shared is not brought here: %v", m.name, err)
			return nil
		case err != nil:
			return fmt.Errorf("bring cache mount %s here: %w", m.name, err)
		default:
			return nil
		}
	}
	return nil
}

func (m *mount) open(ctx context.Context, sharing string) (*cas.CacheMount, error) {
	return m.places.Store.OpenCache(ctx, m.places.Domains[0], m.places.MountName(m.name), sharing)
}

func (m *mount) fetch(ctx context.Context, c *registry.Cache, found registry.Mount) (dir string, err error) {
	l, err := c.FetchMount(ctx, found, m.progress)
	return m.places.Store.LayerPath(l.Dir), err
}

// take makes shared content the newest generation of the mount here.
func (m *mount) take(ctx context.Context, c *registry.Cache, found registry.Mount) error {
	use, err := m.open(ctx, "")
	if err != nil {
		return err
	}
	defer use.Close()
	if len(use.Lower) > 0 && m.how != Union {
		return nil
	}
	dir, err := m.fetch(ctx, c, found)
	if err != nil {
		return err
	}
	upper, err := m.scratch()
	if err != nil {
		return err
	}
	if err := layers.FlattenBaseDirs(ctx, upper, []string{dir}); err != nil {
		return err
	}
	return use.Commit(upper, func(dst string, dirs []string) error { return layers.FlattenBaseDirs(ctx, dst, dirs) })
}

// scratch is a path for a new directory.
func (m *mount) scratch() (string, error) {
	dir, err := os.MkdirTemp(m.places.Store.TempDir(), "mount-")
	return filepath.Join(dir, "fs"), err
}

// dirPatience is for how long a directory that steps share is waited for: steps of other processes may have it for hours, and what a
// mount holds is not worth that.
const dirPatience = 10 * time.Second

var errBusy = errors.New("it is in use by steps of other builds")

// openDir opens the directory of sharing shared and locked while no step has it, or, with sharing shared, none for itself.
func (m *mount) openDir(ctx context.Context, sharing string) (*cas.CacheMount, error) {
	patience, cancel := context.WithTimeout(ctx, dirPatience)
	defer cancel()
	use, err := m.open(patience, sharing)
	if err != nil && patience.Err() != nil && ctx.Err() == nil {
		return nil, errBusy
	}
	return use, err
}

// takeIntoDir adds shared content to the directory, if it is empty or a union. Files there are written to in place, so they are copies.
func (m *mount) takeIntoDir(ctx context.Context, c *registry.Cache, found registry.Mount) error {
	wanted := func(use *cas.CacheMount) (bool, error) {
		if m.how == Union {
			return true, nil
		}
		entries, err := os.ReadDir(use.Shared)
		return len(entries) == 0, err
	}
	use, err := m.openDir(ctx, "shared")
	if err != nil {
		return err
	}
	ok, err := wanted(use)
	if err := errors.Join(err, use.Close()); !ok || err != nil {
		return err
	}
	dir, err := m.fetch(ctx, c, found)
	if err != nil {
		return err
	}
	content, err := m.copyDir(ctx, dir)
	if err != nil {
		return err
	}
	defer m.places.Store.Trash(filepath.Dir(content))
	if use, err = m.openDir(ctx, "locked"); err != nil {
		return err
	}
	defer use.Close()
	if ok, err := wanted(use); !ok || err != nil {
		return err
	}
	old, err := os.ReadDir(use.Shared)
	if err != nil {
		return err
	}
	if err := addFiles(ctx, content, use.Shared); err != nil || len(old) > 0 {
		return err
	}
	return likeDir(content, use.Shared)
}

// copyDir copies a directory that nobody writes to now, for good.
func (m *mount) copyDir(ctx context.Context, dir string) (string, error) {
	content, err := m.scratch()
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(content, 0o755); err != nil {
		return "", err
	}
	tree, err := layers.DirTree(dir)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	if err := layers.CopyTree(ctx, content, tree); err != nil {
		return "", err
	}
	return content, likeDir(dir, content)
}

// likeDir gives a directory the mode and time of another: equal mounts are equal layers. Its owner is the user of the next step anyway.
func likeDir(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	return errors.Join(os.Chmod(to, info.Mode()), os.Chtimes(to, time.Time{}, info.ModTime()))
}

// addFiles moves what to has not from one directory into it. Each file, or directory that is new, appears by one rename: a crash
// leaves no half file. Links are never followed.
func addFiles(ctx context.Context, from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch info, err := os.Lstat(dst); {
		case errors.Is(err, fs.ErrNotExist):
			if err := os.Rename(src, dst); err != nil {
				return err
			}
		case err != nil:
			return err
		case info.IsDir() && e.IsDir():
			if err := addFiles(ctx, src, dst); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxMerges is how often a union is merged again because somebody else has published meanwhile.
const maxMerges = 5

// push publishes what the build has left in the mount.
func (m *mount) push(ctx context.Context) (sent int64, err error) {
	for n := 1; ; n++ {
		more, err := m.pushOnce(ctx, m.places.Caches[0])
		sent += more
		if !errors.Is(err, registry.ErrMountMoved) || n == maxMerges {
			return sent, err
		}
	}
}

func (m *mount) pushOnce(ctx context.Context, c *registry.Cache) (sent int64, err error) {
	dirs, done, err := m.content(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	if len(dirs) == 0 {
		return 0, nil
	}
	there := m.there
	var over *registry.Mount
	if m.how == Union { // what others have added meanwhile stays
		if there, err = c.FindMount(ctx, m.name); err != nil {
			return 0, err
		}
		over = &there
		if !there.IsZero() {
			dir, err := m.fetch(ctx, c, there)
			switch {
			case err == nil:
				dirs = append(dirs, dir)
			case errors.Is(err, registry.ErrGone):
				there.Layer = layers.Layer{}
			default:
				return 0, err
			}
		}
	}
	l, err := m.layer(ctx, dirs)
	if err != nil {
		return 0, err
	}
	if l.DiffID == there.DiffID {
		c.TouchMount(ctx, m.name, there)
		return 0, nil
	}
	return c.PushMount(ctx, m.name, l, over)
}

// layer makes one packed layer of directories, base first.
func (m *mount) layer(ctx context.Context, dirs []string) (l layers.Layer, err error) {
	dir, err := m.scratch()
	if err != nil {
		return l, err
	}
	if err := layers.FlattenBaseDirs(ctx, dir, dirs); err != nil {
		return l, err
	}
	if l.Dir, err = m.places.Store.CommitLayer(filepath.Dir(dir), ""); err != nil {
		return l, err
	}
	return layers.Pack(ctx, m.places.Store, l, m.compression)
}

// content gives the directories of the mount as it is, base first, until done is called; none for a mount that has never been written to.
func (m *mount) content(ctx context.Context) (dirs []string, done func(), err error) {
	if !m.dir {
		use, err := m.open(ctx, "")
		if err != nil {
			return nil, nil, err
		}
		return use.Lower, func() { _ = use.Close() }, nil
	}
	use, err := m.openDir(ctx, "locked")
	if err != nil {
		return nil, nil, err
	}
	dir, err := m.copyDir(ctx, use.Shared)
	if err := errors.Join(err, use.Close()); err != nil {
		return nil, nil, err
	}
	return []string{dir}, func() { _ = m.places.Store.Trash(filepath.Dir(dir)) }, nil
}
