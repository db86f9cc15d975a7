package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// An undoing takes away what was put up, the last first.
type undoing []func() error

func (u undoing) undo() error {
	var errs []error
	for _, f := range slices.Backward(u) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// makeWay makes the directories that lead to a mount point, and gives what takes them away again, those in which the process has left nothing.
func makeWay(target string) (undo func() error, err error) {
	if filepath.Dir(target) == target {
		return nil, &executor.StartError{Msg: fmt.Sprintf("cannot mount on %q", target)}
	}
	var made []string // the deepest first
	for dir := filepath.Dir(target); ; dir = filepath.Dir(dir) {
		_, err := os.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		made = append(made, dir)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return nil, &executor.StartError{Msg: fmt.Sprintf("cannot mount on %q: %v", target, err)}
	}
	return func() error {
		for _, dir := range made {
			_ = os.Remove(dir) // what is not empty stays
		}
		return nil
	}, nil
}

// mountSecrets puts secrets in their places.
func mountSecrets(list []executor.Mount) (all undoing, err error) {
	for i, m := range list {
		if m.Secret == nil {
			continue
		}
		target := local(m.Target)
		undo, err := makeWay(target)
		if err != nil {
			return all, err
		}
		all = append(all, undo)
		undo, err = mountSecret(i, target, m.Secret)
		if err != nil {
			return all, err
		}
		all = append(all, undo)
	}
	return all, nil
}

// A plainCache is a cache whose files are put into their place for one process, since they cannot be mounted there. Afterwards, the host is sent
// what has changed.
type plainCache struct {
	wire.CacheMount
	dir    string
	undo   undoing
	before map[string]seen
}

// A seen file is what is looked at to see whether it has changed.
type seen struct {
	size     int64
	mode     fs.FileMode
	modified time.Time
	state    state
}

// mountCache makes the directory that a cache is unpacked into.
func (s *plainServer) mountCache(u wire.Unpack) error {
	c := &plainCache{CacheMount: *u.Cache, dir: local(u.Dir)}
	undo, err := makeWay(c.dir)
	if err != nil {
		return err
	}
	c.undo = append(c.undo, undo)
	if i, err := os.Lstat(c.dir); err == nil {
		if !i.IsDir() {
			return &executor.StartError{Msg: fmt.Sprintf("cannot mount a cache on %s: it is no directory", u.Dir)}
		}
		aside := c.dir + ".obx-" + strconv.Itoa(len(s.caches))
		if err := os.Rename(c.dir, aside); err != nil {
			return &executor.StartError{Msg: fmt.Sprintf("cannot put a cache in the place of %s: %v", u.Dir, err)}
		}
		c.undo = append(c.undo, func() error { return os.Rename(aside, c.dir) })
	}
	c.undo = append(c.undo, func() error { return os.RemoveAll(c.dir) })
	s.caches = append(s.caches, c)
	return os.Mkdir(c.dir, 0o755)
}

// isCache reports whether the next process has a cache there.
func (s *plainServer) isCache(dir string) bool {
	return slices.ContainsFunc(s.caches, func(c *plainCache) bool { return c.dir == local(dir) })
}

// unmountCaches sends what has changed, if the process has ended by itself, and puts back what was there before.
func (s *plainServer) unmountCaches(ended bool) error {
	var errs []error
	for _, c := range slices.Backward(s.caches) {
		if ended {
			errs = append(errs, s.sendChange(c))
		}
		errs = append(errs, c.undo.undo())
	}
	s.caches = nil
	return errors.Join(errs...)
}

// begin remembers what a cache has when its process begins, to whose user it belongs.
func (c *plainCache) begin() (err error) {
	if err := setUser(c.dir, c.UID, c.GID); err != nil {
		return err
	}
	c.before, err = look(c.dir)
	return err
}

// look looks at all files in a directory.
func look(dir string) (map[string]seen, error) {
	all := map[string]seen{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		f := seen{mode: i.Mode(), modified: i.ModTime()}
		if f.state, err = stateOf(name); err != nil {
			return err
		}
		if !i.IsDir() {
			f.size = i.Size()
		}
		all[filepath.ToSlash(rel)] = f
		return nil
	})
	return all, err
}

func (s *plainServer) sendChange(c *plainCache) error {
	if err := wire.WriteJSON(s.out, wire.KindCache, wire.CacheChange{Number: c.Number}); err != nil {
		return err
	}
	if err := writeChange(context.Background(), wire.FrameWriter{W: s.out, Kind: wire.KindTar}, c.dir, c.before); err != nil {
		return err
	}
	return wire.Write(s.out, wire.KindTar, nil)
}

// writeChange writes the tar of a layer: what a directory has now and had not before, with a mark for each name that is gone.
func writeChange(ctx context.Context, w io.Writer, dir string, before map[string]seen) error {
	after, err := look(dir)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, name := range slices.Sorted(keysOf(before, after)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		now, there := after[name]
		was, before := before[name]
		parent, ok := after[path.Dir(name)]
		switch {
		case there && (now != was || !before || now.mode.IsDir()):
			err = writeFile(t, filepath.Join(dir, filepath.FromSlash(name)), name)
		case !there && ok && parent.mode.IsDir():
			err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteout+path.Base(name)), Mode: 0o644})
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return t.Close()
}

// keysOf are the names in either.
func keysOf(a, b map[string]seen) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range a {
			if !yield(k) {
				return
			}
		}
		for k := range b {
			if _, ok := a[k]; !ok && !yield(k) {
				return
			}
		}
	}
}

// writeFile writes one file to a tar, without its other names. Sockets and devices are left out.
func writeFile(t *tar.Writer, at, name string) error {
	i, err := os.Lstat(at)
	if err != nil {
		return err
	}
	link := ""
	switch i.Mode().Type() {
	case 0, fs.ModeDir, fs.ModeNamedPipe:
	case fs.ModeSymlink:
		if link, err = os.Readlink(at); err != nil {
			return err
		}
	default:
		return nil
	}
	h, err := tar.FileInfoHeader(namelessInfo{i}, filepath.ToSlash(link))
	if err != nil {
		return err
	}
	h.Name, h.Mode, h.Format = name, portableMode(h), tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if err := t.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t, f)
	return err
}
