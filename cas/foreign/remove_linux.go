package foreign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// RemoveAll deletes path and all below it, whatever the depth, and the modes and kinds of files. It follows no link, and does not
// enter other mounts: those it leaves, with the directories above them, deletes the rest, and fails. It is no error if there is nothing,
// or if somebody else deletes the same.
func RemoveAll(ctx context.Context, path string) error {
	parent, err := openDir(unix.AT_FDCWD, filepath.Dir(path), 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	if err := RemoveAt(ctx, parent, filepath.Base(path)); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// RemoveAt is RemoveAll for a name in an open directory.
func RemoveAt(ctx context.Context, dir int, name string) error {
	r := remover{ctx: ctx}
	return r.remove(dir, name, 0)
}

// maxDepth bounds the directories that are open at a time. What is deeper is first moved up.
const maxDepth = 64

type remover struct {
	ctx   context.Context
	top   int      // the directory that is removed
	queue []string // names in top of what was moved up
	moved int
}

// remove deletes a name in a directory that is depth levels below the top's.
func (r *remover) remove(dir int, name string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return context.Cause(r.ctx)
	}
	err := r.unlink(dir, name, depth)
	if errors.Is(err, unix.EACCES) && depth > 0 {
		// Not root, and a layer's own modes.
		if err := unix.Fchmod(dir, 0o700); err != nil {
			return err
		}
		err = r.unlink(dir, name, depth)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (r *remover) unlink(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return pathError("remove", name, err)
	}
	err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return pathError("remove", name, err)
	}
	if depth > maxDepth {
		return r.moveUp(dir, name)
	}
	return r.removeDir(dir, name, depth)
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: name, Err: err}
}

func (r *remover) removeDir(parent int, name string, depth int) error {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := unix.Openat2(parent, name, &how)
	if errors.Is(err, unix.EACCES) {
		// Without privileges, the worst that a race can change is another file of our own.
		if err := unix.Fchmodat(parent, name, 0o700, 0); err != nil {
			return pathError("chmod", name, err)
		}
		fd, err = unix.Openat2(parent, name, &how)
	}
	if err != nil {
		return pathError("open", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	if depth == 0 {
		r.top = fd
	}
	// A directory that changes while it is read may hide entries, hence again.
	for try := 0; ; try++ {
		if err := r.removeEntries(dir, fd, depth); err != nil {
			return err
		}
		err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) || try == 10 {
			return pathError("remove", name, err)
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// removeEntries deletes all that can be deleted; its error is the first.
func (r *remover) removeEntries(dir *os.File, fd, depth int) error {
	var first error
	remove := func(name string) {
		if err := r.remove(fd, name, depth+1); err != nil && first == nil {
			first = err
		}
	}
	for {
		names, err := dir.Readdirnames(1000)
		for _, n := range names {
			if remove(n); r.ctx.Err() != nil {
				return context.Cause(r.ctx)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return err
		}
	}
	for depth == 0 && len(r.queue) > 0 {
		name := r.queue[0]
		r.queue = r.queue[1:]
		if remove(name); r.ctx.Err() != nil {
			return context.Cause(r.ctx)
		}
	}
	return first
}

// moveUp puts off a directory that is deep down, as one of top's.
func (r *remover) moveUp(dir int, name string) error {
	for chmod := false; ; {
		r.moved++
		to := ".removed-" + strconv.Itoa(r.moved)
		err := unix.Renameat2(dir, name, r.top, to, unix.RENAME_NOREPLACE)
		switch {
		case errors.Is(err, unix.EEXIST):
			continue
		case errors.Is(err, unix.EACCES) && !chmod:
			// Its own mode counts, too: its ".." changes.
			chmod = true
			if err := errors.Join(unix.Fchmodat(dir, name, 0o700, 0), unix.Fchmod(r.top, 0o700)); err != nil {
				return pathError("chmod", name, err)
			}
			continue
		case err == nil:
			r.queue = append(r.queue, to)
		}
		return pathError("move", name, err)
	}
}
