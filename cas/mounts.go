package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrInUse says that something stays since it is in use.
var ErrInUse = errors.New("in use")

// A MountInfo is one cache mount.
type MountInfo struct {
	Domain, Name string
	Bytes        int64
	LastUsed     time.Time
}

// Mounts lists the cache mounts. What could not be looked at is told in odd, and the rest is listed.
func (s *Store) Mounts(ctx context.Context) (all []MountInfo, odd []error) {
	for path, err := range filesBelow(s.path(cachesDir), 2) {
		if ctx.Err() != nil {
			return all, append(odd, context.Cause(ctx))
		}
		if err != nil {
			odd = append(odd, err)
			continue
		}
		info, err := os.Lstat(filepath.Join(path, cacheLock))
		if errors.Is(err, fs.ErrNotExist) {
			info, err = os.Lstat(path)
		}
		if err != nil {
			continue // removed since it was listed
		}
		n, err := diskSize(ctx, path)
		if err != nil {
			odd = append(odd, err)
		}
		all = append(all, MountInfo{
			Domain: unescape(filepath.Base(filepath.Dir(path))), Name: unescape(filepath.Base(path)), Bytes: n, LastUsed: info.ModTime(),
		})
	}
	return all, odd
}

// RemoveMount removes a cache mount, as Mounts names it. It is ErrNotFound if there is none, and ErrInUse while a step has it.
func (s *Store) RemoveMount(ctx context.Context, domain, name string) error {
	dir := s.mountDir(domain, name)
	if _, err := os.Lstat(dir); err != nil {
		return fmt.Errorf("cache mount %s in %s: %w", name, domain, notFound(err))
	}
	free, err := s.discardCache(dir, false)
	if err == nil && !free {
		err = ErrInUse
	}
	if err != nil {
		return fmt.Errorf("remove cache mount %s of %s: %w", name, domain, err)
	}
	return s.emptyTrash(ctx)
}

// mountDir is where a mount is. A name that was cut stands for itself: its escape cannot be undone.
func (s *Store) mountDir(domain, name string) string {
	if strings.Contains(name, "%-") && validName(name) {
		return s.path(cachesDir, escape(domain), name)
	}
	return s.path(cachesDir, escape(domain), escape(name))
}

// unescape undoes escape, but for names that were cut.
func unescape(e string) string {
	switch {
	case e == "%":
		return ""
	case strings.Contains(e, "%-"):
		return e
	}
	s, err := url.PathUnescape(e)
	if err != nil {
		return e
	}
	return s
}
