package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/cachedir"
	"github.com/ocurrent/obx/executor/qemu/layerdisk"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// A cacheSet is all caches of one run, each once: the machine sees what they have as directories of an image, and sends
// back what has changed.
//
// A cache that is shared or locked is one directory on the host. A machine cannot mount it: it sees a snapshot of it, of when the step
// began, and what the step has changed is put into it at its end.
type cacheSet struct {
	e      *Executor
	list   []*cacheUse
	m      *vm.Machine
	offset int64     // of the image on the machine's disk
	filled *cacheUse // whose change is coming
	in     *receiver
}

type cacheUse struct {
	which executor.Cache
	use   *rootfs.CacheUse
	times int      // how often it is mounted
	from  []string // directories in overlay form with what it has, base first
	dirs  []int    // their numbers in the image
	seen  string   // the snapshot; "" if there is none
	tars  []string // directories with what has changed, of each mount of it
}

// openCaches begins the use of all caches of a process.
func (e *Executor) openCaches(ctx context.Context, m *vm.Machine, p executor.Process) (*cacheSet, error) {
	set := &cacheSet{e: e, m: m}
	for _, m := range p.Caches() {
		c := *m.Cache
		if i := slices.IndexFunc(set.list, func(u *cacheUse) bool { return u.which == c }); i >= 0 {
			set.list[i].times++
			continue
		}
		use, err := rootfs.StoreCache(ctx, e.options.Store, c)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cache %q: %w", c.Name, err), set.close(false))
		}
		set.list = append(set.list, &cacheUse{which: c, use: use, times: 1})
	}
	return set, nil
}

// show shows the machine what the caches have.
func (c *cacheSet) show(ctx context.Context, p executor.Process) error {
	for _, u := range c.list {
		u.from = u.use.Lower
		if u.use.Shared != "" {
			dir, err := os.MkdirTemp(c.e.tmp, "cache-")
			if err != nil {
				return fmt.Errorf("cache %q: %w", u.which.Name, err)
			}
			u.seen = dir
			u.from = []string{filepath.Join(dir, "fs")}
			if err := cachedir.Snapshot(u.from[0], u.use.Shared); err != nil {
				return fmt.Errorf("cache %q: %w", u.which.Name, err)
			}
		}
	}
	if c.m.Agent.Plain() {
		return c.send(ctx, p)
	}
	return c.attach(ctx)
}

// attach shows them as an image.
func (c *cacheSet) attach(ctx context.Context) error {
	var list []*layerdisk.Layer
	for _, u := range c.list {
		for _, d := range u.from {
			l, err := layerdisk.ReadLayer(d)
			if err != nil {
				return fmt.Errorf("cache %q: %w", u.which.Name, err)
			}
			l.Changing = u.seen != ""
			u.dirs = append(u.dirs, len(list))
			list = append(list, l)
		}
	}
	if len(list) == 0 {
		return nil
	}
	var err error
	c.offset, err = attachImage(ctx, c.m, list, wire.Attach{})
	return err
}

// send sends them to an agent that cannot mount them: for each mount, all files.
func (c *cacheSet) send(ctx context.Context, p executor.Process) error {
	mounts := p.Caches()
	slices.SortStableFunc(mounts, func(a, b executor.Mount) int { // what is mounted inside another comes after it
		return cmp.Compare(strings.Count(a.Target, "/"), strings.Count(b.Target, "/"))
	})
	for _, m := range mounts {
		n := slices.IndexFunc(c.list, func(u *cacheUse) bool { return u.which == *m.Cache })
		dirs := c.list[n].from
		if len(dirs) == 0 {
			dirs = []string{c.e.empty}
		}
		req := wire.Unpack{Dir: m.Target, Cache: &wire.CacheMount{Number: n, UID: p.UID, GID: p.GID}}
		for _, d := range dirs {
			reply, err := c.m.Agent.Unpack(ctx, req, d)
			if err == nil && reply.Start != "" {
				err = &executor.StartError{Msg: reply.Start}
			}
			if err != nil {
				return fmt.Errorf("cache %q: %w", m.Cache.Name, err)
			}
			req.Cache = nil
		}
	}
	return nil
}

func (c *cacheSet) wire() []wire.Cache {
	list := make([]wire.Cache, len(c.list))
	for i, u := range c.list {
		list[i] = wire.Cache{Cache: u.which, Dirs: u.dirs}
	}
	return list
}

// frame takes what the machine sends of a change.
func (c *cacheSet) frame(ctx context.Context, k wire.Kind, b []byte) error {
	switch {
	case k == wire.KindCache && c.in == nil:
		var change wire.CacheChange
		if err := json.Unmarshal(b, &change); err != nil || change.Number < 0 || change.Number >= len(c.list) {
			return errors.New("the machine's agent speaks of an unknown cache")
		}
		if u := c.list[change.Number]; len(u.tars) == u.times {
			return fmt.Errorf("cache %q: the machine's agent sends more changes than there are mounts", u.which.Name)
		}
		in, err := c.e.receive(ctx)
		if err != nil {
			return err
		}
		c.filled, c.in = c.list[change.Number], in
		return nil
	case k == wire.KindTar && c.in != nil:
		ended, err := c.in.frame(b)
		if err != nil {
			return fmt.Errorf("cache %q: %w", c.filled.which.Name, err)
		}
		if ended {
			c.filled.tars = append(c.filled.tars, c.in.dir)
			c.in = nil
		}
		return nil
	}
	return fmt.Errorf("the machine's agent sends %q out of place", k)
}

// close ends the use of all caches. With keep, what has changed is kept.
func (c *cacheSet) close(keep bool) error {
	var errs []error
	if c.in != nil {
		c.in.abort(c.e)
	}
	if c.offset > 0 {
		c.m.Layers.Remove(c.offset)
	}
	for _, u := range c.list {
		for _, dir := range u.tars {
			if keep {
				if err := u.keep(dir + "/fs"); err != nil {
					errs = append(errs, fmt.Errorf("cache %q: %w", u.which.Name, err))
				}
			}
			errs = append(errs, c.e.options.Store.Trash(dir))
		}
		if u.seen != "" {
			errs = append(errs, c.e.options.Store.Trash(u.seen))
		}
		errs = append(errs, u.use.Close())
	}
	return errors.Join(errs...)
}

// keep puts a change into the cache.
func (u *cacheUse) keep(upper string) error {
	if u.use.Shared == "" {
		return u.use.Commit(upper)
	}
	return cachedir.Apply(context.Background(), u.use.Shared, upper) // what a step has left is kept although it was cancelled
}
