package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// A Sharing says how a cache mount travels through the caches.
type Sharing string

const (
	// LastWins takes the shared content where there is none here, and replaces it by what the build leaves.
	LastWins Sharing = "last-wins"
	// Union adds the files of the shared content to those here, and those here to it: right for directories whose
	// files are named by their content, as opam's and dune's caches are.
	Union Sharing = "union"
)

// A mountID is a cache mount of the store. What private uses have and what the others have are two; they travel as one.
type mountID struct {
	name string
	dir  bool // the directory of sharing shared and locked
}

// A mountShare is one cache mount that travels, in one run.
type mountShare struct {
	*run
	mountID
	how   Sharing
	used  bool           // by a step that ran; guarded by run.mu
	there registry.Mount // what the first cache had when the run looked
}

// sharing is how a step shares a cache mount with others: "", "shared" or "locked".
func sharing(m spec.Mount) (how string) {
	for _, o := range m.Options {
		if o.Key == "sharing" && o.Value != "private" {
			how = o.Value
		}
	}
	return how
}

// mount is the share of a cache mount, once it has been brought here; nil if it does not travel.
func (r *run) mount(ctx context.Context, id mountID) (*mountShare, error) {
	how, ok := r.ShareMounts[id.name]
	if !ok || len(r.Caches) == 0 {
		return nil, nil
	}
	r.mu.Lock()
	f, begun := r.mounts[id]
	if !begun {
		f = &future[*mountShare]{done: make(chan struct{})}
		r.mounts[id] = f
	}
	r.mu.Unlock()
	if begun {
		return f.wait(ctx)
	}
	f.value = &mountShare{run: r, mountID: id, how: how}
	f.err = f.value.pull(ctx)
	close(f.done)
	return f.value, f.err
}

// pull takes the content of the first cache that has one. What is lost or broken there is as good as none.
func (m *mountShare) pull(ctx context.Context) error {
	for i, c := range m.Caches {
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
			m.warn(nil, "cache %s: cache mount %s: %v", c.Name(), m.name, err)
		case errors.Is(err, errBusy):
			m.warn(nil, "cache mount %s: what is shared is not brought here: %v", m.name, err)
			return nil
		case err != nil:
			return fmt.Errorf("bring cache mount %s here: %w", m.name, err)
		default:
			return nil
		}
	}
	return nil
}

func (m *mountShare) open(ctx context.Context, sharing string) (*cas.CacheMount, error) {
	return m.Store.OpenCache(ctx, m.domains()[0], m.places.MountName(m.name), sharing)
}

func (m *mountShare) fetch(ctx context.Context, c *registry.Cache, found registry.Mount) (dir string, err error) {
	l, err := c.FetchMount(ctx, found, m.pulling(nil))
	return m.Store.LayerPath(l.Dir), err
}

// take makes shared content the newest generation of the mount here.
func (m *mountShare) take(ctx context.Context, c *registry.Cache, found registry.Mount) error {
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
func (m *mountShare) scratch() (string, error) {
	dir, err := os.MkdirTemp(m.Store.TempDir(), "mount-")
	return filepath.Join(dir, "fs"), err
}

// dirPatience is for how long a directory that steps share is waited for: steps of other processes may have it for hours, and what a
// mount holds is not worth that.
const dirPatience = 10 * time.Second

var errBusy = errors.New("it is in use by steps of other builds")

// openDir opens the directory of sharing shared and locked while no step has it, or, with sharing shared, none for itself.
func (m *mountShare) openDir(ctx context.Context, sharing string) (*cas.CacheMount, error) {
	patience, cancel := context.WithTimeout(ctx, dirPatience)
	defer cancel()
	use, err := m.open(patience, sharing)
	if err != nil && patience.Err() != nil && ctx.Err() == nil {
		return nil, errBusy
	}
	return use, err
}

// takeIntoDir adds shared content to the directory, if it is empty or a union. Files there are written to in place, so they are copies.
func (m *mountShare) takeIntoDir(ctx context.Context, c *registry.Cache, found registry.Mount) error {
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
	defer m.Store.Trash(filepath.Dir(content))
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
func (m *mountShare) copyDir(ctx context.Context, dir string) (string, error) {
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

// push publishes what the build has left in the mount, if a step that ran had it.
func (m *mountShare) push(ctx context.Context) error {
	if !m.used {
		return nil
	}
	for n := 1; ; n++ {
		if err := m.pushOnce(ctx, m.Caches[0]); !errors.Is(err, registry.ErrMountMoved) || n == maxMerges {
			return err
		}
	}
}

func (m *mountShare) pushOnce(ctx context.Context, c *registry.Cache) error {
	dirs, done, err := m.content(ctx)
	if err != nil {
		return err
	}
	defer done()
	if len(dirs) == 0 {
		return nil
	}
	there := m.there
	var over *registry.Mount
	if m.how == Union { // what others have added meanwhile stays
		if there, err = c.FindMount(ctx, m.name); err != nil {
			return err
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
				return err
			}
		}
	}
	dir, err := m.scratch()
	if err != nil {
		return err
	}
	if err := layers.FlattenBaseDirs(ctx, dir, dirs); err != nil {
		return err
	}
	name, err := m.Store.CommitLayer(filepath.Dir(dir), "")
	if err != nil {
		return err
	}
	l, err := layers.Pack(ctx, m.Store, layers.Layer{Dir: name}, m.Compression)
	if err != nil {
		return err
	}
	if l.DiffID == there.DiffID {
		c.TouchMount(ctx, m.name, there)
		return nil
	}
	sent, err := c.PushMount(ctx, m.name, l, over)
	m.mu.Lock()
	m.report.PushedBytes += sent
	m.mu.Unlock()
	return err
}

// content gives the directories of the mount as it is, base first, until done is called; none for a mount that has never been written to.
func (m *mountShare) content(ctx context.Context) (dirs []string, done func(), err error) {
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
	return []string{dir}, func() { _ = m.Store.Trash(filepath.Dir(dir)) }, nil
}

// bringMounts brings the cache mounts of a step here that travel.
func (r *run) bringMounts(ctx context.Context, op *spec.Run) error {
	for _, c := range op.Caches {
		m, err := r.mount(ctx, mountID{c.ID, sharing(c) != ""})
		if err != nil {
			return err
		}
		if m != nil {
			r.mu.Lock()
			m.used = true
			r.mu.Unlock()
		}
	}
	return nil
}

// checkShares tells of cache mounts that are to travel and that no step has.
func (r *run) checkShares() {
	var have []string
	for _, s := range r.plan.Steps {
		if op, ok := s.Op.(*spec.Run); ok {
			for _, c := range op.Caches {
				have = append(have, c.ID)
			}
		}
	}
	slices.Sort(have)
	has := "there is none"
	if len(have) > 0 {
		has = "there is " + strings.Join(slices.Compact(have), ", ")
	}
	for _, name := range slices.Sorted(maps.Keys(r.ShareMounts)) {
		if !slices.Contains(have, name) {
			r.warn(nil, "no step has the cache mount %s that is to be shared: %s", name, has)
		}
	}
}

// pushMounts publishes the cache mounts that steps of the run have had. If a name has been used in both ways, what is in the
// directory wins.
func (r *run) pushMounts(ctx context.Context) error {
	order := func(a, b mountID) int {
		if a.name == b.name && a.dir != b.dir {
			if b.dir {
				return -1
			}
			return 1
		}
		return strings.Compare(a.name, b.name)
	}
	for _, id := range slices.SortedFunc(maps.Keys(r.mounts), order) {
		f := r.mounts[id]
		if f.err != nil {
			continue
		}
		if err := f.value.push(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			err = fmt.Errorf("share cache mount %s: %w", f.value.name, err)
			if r.Push == PushRequire {
				return err
			}
			r.warn(nil, "%v", err)
		}
	}
	return nil
}
