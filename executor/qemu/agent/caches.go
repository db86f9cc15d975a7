//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// caches are those of one run. The host has their generations and locks; here are copies to look at, and what changes
// goes back.
type caches struct {
	image     string // where the image with their directories is mounted; "" if they are all new
	partition int32
	list      []wire.Cache
	shared    map[int]*sharedCache // by number
}

// A sharedCache is one directory for all mounts of a cache in a run.
type sharedCache struct {
	dir string // on the scratch disk: upper, work, merged
}

func (s *sharedCache) upper() string  { return filepath.Join(s.dir, "upper") }
func (s *sharedCache) merged() string { return filepath.Join(s.dir, "merged") }

func (c *caches) begin(list []wire.Cache) {
	c.list, c.shared = list, map[int]*sharedCache{}
}

// openCache is what overlay calls for each mount.
func (s *server) openCache(ctx context.Context, which executor.Cache) (*rootfs.CacheUse, error) {
	n := slices.IndexFunc(s.caches.list, func(c wire.Cache) bool { return c.Cache == which })
	if n < 0 {
		return nil, errors.New("the host has not sent it")
	}
	var lower []string
	for _, d := range s.caches.list[n].Dirs {
		lower = append(lower, filepath.Join(s.caches.image, strconv.Itoa(d)))
	}
	use := &rootfs.CacheUse{
		Lower: lower,
		Close: func() error { return nil },
		Commit: func(upper string) error {
			if err := wire.WriteJSON(s.control, wire.KindCache, wire.CacheChange{Number: n}); err != nil {
				return err
			}
			return s.send(ctx, upper)
		},
	}
	if which.Sharing != "shared" && which.Sharing != "locked" {
		return use, nil
	}
	use.Lower, use.Commit = nil, nil
	if s.caches.shared[n] == nil {
		c, err := s.mountShared(lower)
		if err != nil {
			return nil, err
		}
		s.caches.shared[n] = c
	}
	use.Shared = s.caches.shared[n].merged()
	return use, nil
}

func (s *server) mountShared(lower []string) (*sharedCache, error) {
	dir, err := os.MkdirTemp(s.at.scratch, "shared-")
	if err != nil {
		return nil, err
	}
	c := &sharedCache{dir: dir}
	for _, d := range []string{"empty", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if len(lower) == 0 {
		lower = []string{filepath.Join(dir, "empty")}
	}
	if err := layers.MakeUpper(c.upper(), lower[0]); err != nil {
		return nil, err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off,index=off,xino=off,volatile", lower[0], c.upper(), filepath.Join(dir, "work"))
	if err := unix.Mount("overlay", c.merged(), "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mount a shared cache: %w", err)
	}
	return c, nil
}

// closeCaches sends what has changed in shared caches, and lets go of all.
func (s *server) closeCaches(ctx context.Context) error {
	var errs []error
	for n := range s.caches.list {
		c := s.caches.shared[n]
		if c == nil {
			continue
		}
		err := unix.Unmount(c.merged(), unix.MNT_DETACH)
		if err == nil {
			err = wire.WriteJSON(s.control, wire.KindCache, wire.CacheChange{Number: n})
		}
		if err == nil {
			err = s.send(ctx, c.upper())
		}
		errs = append(errs, err, os.RemoveAll(c.dir))
	}
	if s.caches.image != "" {
		errs = append(errs, unix.Unmount(s.caches.image, unix.MNT_DETACH))
		// The supervisor may still be about to let go of it. A number is never used twice, so that does not matter.
		_ = changePartition(s.disk, unix.BLKPG_DEL_PARTITION, partition{number: s.caches.partition})
	}
	s.caches = caches{}
	return errors.Join(errs...)
}
