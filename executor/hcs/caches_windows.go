package hcs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
)

// A cacheMount is one cache directory in one run: the directory itself if it is shared, else a copy of its newest
// generation, for Windows has no overlays.
type cacheMount struct {
	use *cas.CacheMount
	dir string
}

// openCache begins a use. Where it has to copy, it copies to dir, which does not exist and is on the file system of the store.
func openCache(ctx context.Context, st *cas.Store, which executor.Cache, dir string) (*cacheMount, error) {
	use, err := st.OpenCache(ctx, which.Domain, which.Name, which.Sharing)
	if err != nil {
		return nil, err
	}
	if use.Shared != "" {
		return &cacheMount{use, use.Shared}, nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, errors.Join(err, use.Close())
	}
	// Each generation is whole: the newest directory has all.
	if n := len(use.Lower); n > 0 {
		if err := copyDir(ctx, dir, use.Lower[n-1]); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir), use.Close())
		}
	}
	return &cacheMount{use, dir}, nil
}

// copyDir copies files and directories into an existing directory. Links of a cache are left out: what they lead to is
// not the same outside of the container.
func copyDir(ctx context.Context, dst, src string) error {
	return filepath.WalkDir(src, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(src, name)
		if err != nil || rel == "." {
			return err
		}
		to := filepath.Join(dst, rel)
		switch {
		case d.IsDir():
			return os.Mkdir(to, 0o755)
		case d.Type().IsRegular():
			return copyFile(to, name)
		}
		return nil
	})
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Chtimes(dst, info.ModTime(), info.ModTime())
}

// close ends the use. With keep, what the process has left becomes the next generation, unless somebody else was first.
func (c *cacheMount) close(keep bool) error {
	var errs []error
	if keep && c.use.Shared == "" {
		errs = append(errs, c.use.Commit(c.dir, func(dst string, dirs []string) error {
			return os.Rename(dirs[len(dirs)-1], dst)
		}))
	}
	if c.use.Shared == "" {
		errs = append(errs, os.RemoveAll(c.dir)) // nothing, if it was kept
	}
	return errors.Join(append(errs, c.use.Close())...)
}
