package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

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

// A MountCache is a Cache through which cache mounts travel too.
type MountCache interface {
	Name() string
	FindMount(ctx context.Context, name string) (layers.Layer, error)
	FetchMount(ctx context.Context, l layers.Layer, p registry.Progress) (layers.Layer, error)
	PushMount(ctx context.Context, name string, l layers.Layer) (sent int64, err error)
}

// A mountShare is one cache mount that travels, in one run.
type mountShare struct {
	*run
	name string
	how  Sharing
	used bool          // by a step that ran; guarded by run.mu
	seen digest.Digest // diff id of the shared content that is in the one here
}

// mount is the share of a cache mount, once it has been brought here; nil if it does not travel.
func (r *run) mount(ctx context.Context, name string) (*mountShare, error) {
	how, ok := r.ShareMounts[name]
	if !ok || len(r.Caches) == 0 {
		return nil, nil
	}
	r.mu.Lock()
	f, begun := r.mounts[name]
	if !begun {
		f = &future[*mountShare]{done: make(chan struct{})}
		r.mounts[name] = f
	}
	r.mu.Unlock()
	if begun {
		return f.wait(ctx)
	}
	f.value = &mountShare{run: r, name: name, how: how}
	f.err = f.value.pull(ctx)
	close(f.done)
	return f.value, f.err
}

// pull takes the content of the first cache that has one. What is lost or broken there is as good as none.
func (m *mountShare) pull(ctx context.Context) error {
	for _, c := range m.Caches {
		mc, ok := c.(MountCache)
		if !ok {
			continue
		}
		l, err := mc.FindMount(ctx, m.name)
		if err != nil {
			return err
		}
		if l.IsZero() {
			continue
		}
		if err := m.take(ctx, mc, l); errors.Is(err, registry.ErrGone) {
			m.warn(nil, "cache %s: cache mount %s: %v", mc.Name(), m.name, err)
			continue
		} else if err != nil {
			return fmt.Errorf("bring cache mount %s here: %w", m.name, err)
		}
		return nil
	}
	return nil
}

// take makes shared content the newest generation of the mount here.
func (m *mountShare) take(ctx context.Context, c MountCache, l layers.Layer) error {
	use, err := m.Store.OpenCache(ctx, m.domains()[0], m.mountName(m.name), "")
	if err != nil {
		return err
	}
	defer use.Close()
	if len(use.Lower) > 0 && m.how != Union {
		return nil
	}
	l, err = c.FetchMount(ctx, l, func(d digest.Digest, done, total int64) {
		m.emit(Event{Kind: Pulling, Blob: d.String(), Bytes: done, Total: total})
	})
	if err != nil {
		return err
	}
	m.seen = l.DiffID
	upper, err := m.scratch()
	if err != nil {
		return err
	}
	if err := layers.FlattenBaseDirs(ctx, upper, []string{m.Store.LayerPath(l.Dir)}); err != nil {
		return err
	}
	return use.Commit(upper, flattenBase(ctx))
}

// scratch is a path for a new directory.
func (m *mountShare) scratch() (string, error) {
	dir, err := os.MkdirTemp(m.Store.TempDir(), "mount-")
	return filepath.Join(dir, "fs"), err
}

func flattenBase(ctx context.Context) func(dst string, dirs []string) error {
	return func(dst string, dirs []string) error { return layers.FlattenBaseDirs(ctx, dst, dirs) }
}

// push publishes what the build has left in the mount, if a step that ran had it.
func (m *mountShare) push(ctx context.Context) error {
	c, ok := m.Caches[0].(MountCache)
	if !ok || !m.used {
		return nil
	}
	if m.how == Union { // what others have added meanwhile stays
		l, err := c.FindMount(ctx, m.name)
		if err != nil {
			return err
		}
		if !l.IsZero() && l.DiffID != m.seen {
			if err := m.take(ctx, c, l); err != nil && !errors.Is(err, registry.ErrGone) {
				return err
			}
		}
	}
	use, err := m.Store.OpenCache(ctx, m.domains()[0], m.mountName(m.name), "")
	if err != nil {
		return err
	}
	defer use.Close()
	if len(use.Lower) == 0 {
		return nil
	}
	dir, err := m.scratch()
	if err != nil {
		return err
	}
	if err := layers.FlattenBaseDirs(ctx, dir, use.Lower); err != nil {
		return err
	}
	name, err := m.Store.CommitLayer(filepath.Dir(dir), "")
	if err != nil {
		return err
	}
	l, err := layers.Pack(ctx, m.Store, layers.Layer{Dir: name}, m.Compression)
	if err != nil || l.DiffID == m.seen {
		return err
	}
	sent, err := c.PushMount(ctx, m.name, l)
	m.mu.Lock()
	m.report.PushedBytes += sent
	m.mu.Unlock()
	return err
}

// bringMounts brings the cache mounts of a step here that travel.
func (r *run) bringMounts(ctx context.Context, op *spec.Run) error {
	for _, c := range op.Caches {
		m, err := r.mount(ctx, c.ID)
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

// pushMounts publishes the cache mounts that steps of the run have had.
func (r *run) pushMounts(ctx context.Context) error {
	for _, f := range r.mounts {
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
