package rootfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// A cacheMount is one cache directory in one run: an overlay on its newest generation, or the directory itself if it is shared.
type cacheMount struct {
	which  executor.Cache
	target string // as the process names it
	points points // mount points inside it
	given  bool   // another process may have files of it open

	use    *CacheUse // nil for one that a step mounts twice and that is locked already
	lower  []string
	shared string // the directory itself; "" if it is copied on write
	dir    string // directory in the store's TempDir; in it "fs" is what changes; "" if shared
	work   string
	mount  *os.File // the overlay, or another mount of the shared directory
	new    dirOwner
}

// dirOwner is whom a cache's root belongs to while a step uses it.
type dirOwner struct{ uid, gid int }

// A cacheSet is all caches of one run, those mounted inside others after them.
type cacheSet struct {
	mc   *Machine
	list []*cacheMount
}

// openCaches begins the use of all caches of a process.
func (mc *Machine) openCaches(ctx context.Context, p executor.Process) (*cacheSet, error) {
	wanted := p.Caches()
	set := &cacheSet{mc: mc}
	for i, m := range wanted {
		c := &cacheMount{which: *m.Cache, target: m.Target, new: dirOwner{p.UID, p.GID}, given: mayGive(p)}
		if i > 0 && *wanted[i-1].Cache == *m.Cache && m.Cache.Sharing == "locked" {
			c.shared = set.list[i-1].shared
		}
		set.list = append(set.list, c)
		if err := c.open(ctx, mc, *m.Cache); err != nil {
			return nil, errors.Join(fmt.Errorf("cache %q: %w", m.Cache.Name, err), set.close(false))
		}
	}
	slices.SortStableFunc(set.list, func(a, b *cacheMount) int {
		return cmp.Compare(strings.Count(a.target, "/"), strings.Count(b.target, "/"))
	})
	return set, nil
}

func (c *cacheMount) open(ctx context.Context, mc *Machine, which executor.Cache) (err error) {
	if c.shared == "" {
		if c.use, err = mc.OpenCache(ctx, which); err != nil {
			return err
		}
		c.shared = c.use.Shared
	}
	if c.shared != "" {
		if err := c.own(c.shared); err != nil {
			return err
		}
		c.mount, err = cloneMount(c.shared)
	} else {
		err = c.overlay(mc)
	}
	if err == nil {
		c.points.root = RootDir{FD: int(c.mount.Fd())}
	}
	return err
}

// own makes the step's user the owner of the cache's root.
func (c *cacheMount) own(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if int(st.Uid) == c.new.uid && int(st.Gid) == c.new.gid {
		return nil
	}
	return os.Lchown(dir, c.new.uid, c.new.gid)
}

func (c *cacheMount) overlay(mc *Machine) (err error) {
	c.lower = c.use.Lower
	if len(c.lower) == 0 {
		c.lower = []string{mc.Mounter.empty}
	}
	if c.dir, err = os.MkdirTemp(mc.tmp, "cache-"); err != nil {
		return err
	}
	c.work = filepath.Join(c.dir, "work")
	if err := os.Mkdir(c.work, 0o700); err != nil {
		return err
	}
	if err := layers.MakeUpper(c.upper(), c.below()); err != nil {
		return err
	}
	if err := c.own(c.upper()); err != nil {
		return err
	}
	c.mount, err = mc.Mounter.Mount(OverlayMount{Lower: c.lower, Upper: c.upper(), Work: c.work})
	return err
}

func (c *cacheMount) upper() string { return filepath.Join(c.dir, "fs") }
func (c *cacheMount) below() string { return c.lower[len(c.lower)-1] }

// mounts are those of the caches, in their order.
func (s *cacheSet) mounts() []*os.File {
	files := make([]*os.File, len(s.list))
	for i, c := range s.list {
		files[i] = c.mount
	}
	return files
}

// close ends the use of all caches. With keep, what the process has changed becomes their next generation, unless somebody else was
// first.
func (s *cacheSet) close(keep bool) error {
	var errs []error
	for _, c := range s.list {
		if err := c.close(s.mc, keep); err != nil {
			errs = append(errs, fmt.Errorf("cache mounted on %s: %w", c.target, err))
		}
	}
	return errors.Join(errs...)
}

func (c *cacheMount) close(mc *Machine, keep bool) error {
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	if c.which.Sharing != "shared" {
		add(c.points.remove())
	}
	if c.mount != nil {
		if c.dir != "" && c.given {
			err := endWrites(c.mount)
			keep = keep && err == nil
			add(err)
		}
		add(c.mount.Close())
	}
	if c.dir != "" {
		if keep {
			add(c.commit())
		}
		add(mc.store.Trash(c.dir))
	}
	if c.use != nil {
		add(c.use.Close())
	}
	if len(c.points.made) > 0 {
		add(c.removeShared(mc))
	}
	return errors.Join(errs...)
}

// removeShared removes the mount points in a directory that steps share, if no other step has it: the kernel would take away what that has mounted
// on them. Else they stay, empty.
func (c *cacheMount) removeShared(mc *Machine) error {
	defer c.points.forget()
	once, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	alone := c.which
	alone.Sharing = "locked"
	use, err := mc.OpenCache(once, alone)
	if err != nil {
		return nil
	}
	return errors.Join(c.points.remove(), use.Close())
}

func (c *cacheMount) commit() error {
	if err := c.points.prune(c.upper()); err != nil {
		return err
	}
	return c.use.Commit(c.upper())
}

// StoreCache begins a use of a cache mount of a store.
func StoreCache(ctx context.Context, st *cas.Store, c executor.Cache) (*CacheUse, error) {
	m, err := st.OpenCache(ctx, c.Domain, c.Name, c.Sharing)
	if err != nil {
		return nil, err
	}
	return &CacheUse{
		Lower:  m.Lower,
		Shared: m.Shared,
		Close:  m.Close,
		Commit: func(upper string) error {
			return m.Commit(upper, func(dst string, dirs []string) error {
				return layers.FlattenBaseDirs(context.Background(), dst, dirs)
			})
		},
	}, nil
}
