package rootfs

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/layers"
)

// points are the mount points that one run needs in one file system: its root's, or a cache's. What is missing is
// made before the run, and nothing of that may be seen in the step's result.
type points struct {
	root RootDir
	made []madePoint

	// seen has the directories that making has copied up, as they were before, by path ("" is the root); those that
	// were made are there with nil.
	seen map[string]*dirAttrs
}

// A madePoint is a file or directory that was made to be mounted on, or to lead there.
type madePoint struct {
	parent int // its directory, held open: the process may rename it
	name   string
	stat   unix.Stat_t
}

// ensure makes sure that there is a directory or a file at a place. target is what the spec calls it.
func (p *points) ensure(at place, target string, dir bool) error {
	isDir := at.stat.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case len(at.missing) > 0:
		return p.make(at, dir)
	case dir && !isDir:
		return startError("cannot mount a directory on %s: it is not one", target)
	case !dir && isDir:
		return startError("cannot mount a file on %s: it is a directory", target)
	}
	return nil
}

// make makes what is missing of a place.
func (p *points) make(at place, dir bool) error {
	if err := p.remember(at.found); err != nil {
		return err
	}
	defer clear(p.root.known)
	parent := at.found
	for i, name := range at.missing {
		fd, err := p.root.openAt(parent, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("make mount point /%s: %w", at.path(), err)
		}
		made, err := makeIn(fd, name, dir || i < len(at.missing)-1)
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("make mount point /%s: %w", at.path(), err)
		}
		if made == nil {
			unix.Close(fd)
		} else {
			p.made = append(p.made, *made)
		}
		parent = path.Join(parent, name)
		p.seen[parent] = nil
	}
	return nil
}

// makeIn makes one mount point, and leaves the times of its directory as they were; nil if somebody who shares the cache was faster.
func makeIn(parent int, name string, dir bool) (*madePoint, error) {
	m := &madePoint{parent: parent, name: name}
	var before unix.Stat_t
	if err := unix.Fstat(parent, &before); err != nil {
		return nil, err
	}
	if err := makePoint(parent, name, dir); errors.Is(err, unix.EEXIST) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := unix.Fstatat(parent, name, &m.stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	return m, setTimes(ProcFD(parent), before.Atim, before.Mtim)
}

// makePoint makes a directory or an empty file. Others may write to the directory that it is made in, if that is of a shared cache: what the new
// name leads to a moment later is looked at through a descriptor.
func makePoint(parent int, name string, dir bool) error {
	if !dir {
		fd, err := unix.Openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, 0o755) // whatever the umask
}

// remember notes how a directory and those above it are before something is made in it.
func (p *points) remember(dir string) error {
	if p.seen == nil {
		p.seen = map[string]*dirAttrs{}
	}
	for ; ; dir = parentOf(dir) {
		if _, ok := p.seen[dir]; ok {
			return nil
		}
		fd, err := p.root.openAt(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("open /%s: %w", dir, err)
		}
		a, err := attrsOf(fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("stat /%s: %w", dir, err)
		}
		p.seen[dir] = &a
		if dir == "" {
			return nil
		}
	}
}

func parentOf(dir string) string {
	if d := path.Dir(dir); d != "." {
		return d
	}
	return ""
}

// forget leaves what make made.
func (p *points) forget() {
	for _, m := range p.made {
		unix.Close(m.parent)
	}
	p.made = nil
}

// remove takes away what make made, as far as it is still empty and unchanged, and puts back the times of the directories.
func (p *points) remove() error {
	var errs []error
	for _, m := range slices.Backward(p.made) {
		if err := m.remove(); err != nil {
			errs = append(errs, fmt.Errorf("remove mount point %s: %w", m.name, err))
		}
		unix.Close(m.parent)
	}
	p.made = nil
	return errors.Join(errs...)
}

func (m madePoint) remove() error {
	var dir, now unix.Stat_t
	if err := unix.Fstat(m.parent, &dir); err != nil {
		return err
	}
	if err := unix.Fstatat(m.parent, m.name, &now, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil // gone, as the process wished; or never made
	}
	if now.Mode != m.stat.Mode || now.Uid != m.stat.Uid || now.Gid != m.stat.Gid {
		return nil
	}
	flags := 0
	if now.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	} else if now.Size != 0 || now.Mtim != m.stat.Mtim {
		return nil
	}
	switch err := unix.Unlinkat(m.parent, m.name, flags); {
	case errors.Is(err, unix.ENOTEMPTY):
		return nil
	case err != nil:
		return err
	}
	return setTimes(ProcFD(m.parent), dir.Atim, dir.Mtim)
}

// prune removes the directories from an upper directory that are there only because mount points were made in them or
// below them. The overlay must be unmounted.
func (p *points) prune(upper string) error {
	dirs := make([]string, 0, len(p.seen))
	for d, before := range p.seen {
		if d != "" && before != nil {
			dirs = append(dirs, d)
		}
	}
	slices.SortFunc(dirs, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") }) // deepest first
	for _, d := range dirs {
		if err := pruneDir(upper, d, *p.seen[d]); err != nil {
			return fmt.Errorf("clean up /%s after mounting: %w", d, err)
		}
	}
	p.seen = nil
	return nil
}

func pruneDir(upper, name string, before dirAttrs) error {
	r, err := openRoot(upper)
	if err != nil {
		return err
	}
	defer unix.Close(r.FD)
	fd, err := r.openAt(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if opaque, err := isOpaque(fd); err != nil || opaque {
		return err
	}
	if empty, err := isEmpty(ProcFD(fd)); err != nil || !empty {
		return err
	}
	if now, err := attrsOf(fd); err != nil || !now.equal(before) {
		return err
	}
	parent, err := r.openAt(parentOf(name), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	var was unix.Stat_t
	if err := unix.Fstat(parent, &was); err != nil {
		return err
	}
	if err := unix.Unlinkat(parent, path.Base(name), unix.AT_REMOVEDIR); err != nil {
		return err
	}
	return setTimes(ProcFD(parent), was.Atim, was.Mtim)
}

func isOpaque(fd int) (bool, error) {
	var v [1]byte
	n, err := unix.Getxattr(ProcFD(fd), layers.OverlayXattr("opaque"), v[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return n == 1 && v[0] == 'y', err
}

func openRoot(dir string) (RootDir, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return RootDir{}, fmt.Errorf("open %s: %w", dir, err)
	}
	return RootDir{FD: fd}, nil
}
