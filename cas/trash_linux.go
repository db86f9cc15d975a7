package cas

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

// lowerPriority makes this thread give way to all others, for the processor and the disk.
func lowerPriority() {
	const (
		whoProcess = 1       // IOPRIO_WHO_PROCESS; with 0, this thread
		idleClass  = 3 << 13 // IOPRIO_CLASS_IDLE
	)
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, idleClass)
}

// removeAll deletes path and all below it, whatever the modes and kinds of files. It follows no link, and does not
// enter other mounts: those it leaves, with the directories above them, and fails. It is no error if there is nothing,
// or if somebody else deletes the same.
func removeAll(ctx context.Context, path string) error {
	parent, err := os.Open(filepath.Dir(path))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	r := remover{ctx: ctx, top: parent, name: filepath.Base(path)}
	r.queue = []string{r.name}
	for len(r.queue) > 0 {
		name := r.queue[0]
		r.queue = r.queue[1:]
		if err := r.remove(parent, name, 0); err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}

// maxDepth bounds the directories that are open at a time. What is deeper is first moved up.
const maxDepth = 64

type remover struct {
	ctx   context.Context
	top   *os.File // directory of what is removed
	name  string
	queue []string // names in top
	moved int
}

func (r *remover) remove(dir *os.File, name string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return context.Cause(r.ctx)
	}
	err := r.unlink(dir, name, depth)
	if errors.Is(err, unix.EACCES) && depth > 0 {
		// Not root, and a layer's own modes.
		if err := dir.Chmod(0o700); err != nil {
			return err
		}
		err = r.unlink(dir, name, depth)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (r *remover) unlink(dir *os.File, name string, depth int) error {
	fd := int(dir.Fd())
	err := unix.Unlinkat(fd, name, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if depth >= maxDepth {
		return r.moveUp(fd, name)
	}
	return r.removeDir(fd, name, depth)
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
			return err
		}
		fd, err = unix.Openat2(parent, name, &how)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	// A directory that changes while it is read may hide entries, hence again.
	for try := 0; ; try++ {
		if err := r.removeEntries(dir, depth); err != nil {
			return err
		}
		err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) || try == 10 {
			return err
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

func (r *remover) removeEntries(dir *os.File, depth int) error {
	for {
		names, err := dir.Readdirnames(1000)
		for _, n := range names {
			if err := r.remove(dir, n, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// moveUp puts off a directory that is deep down, as one of top's.
func (r *remover) moveUp(dir int, name string) error {
	r.moved++
	to := r.name + "+" + strconv.Itoa(r.moved)
	for chmod := false; ; {
		err := unix.Renameat2(dir, name, int(r.top.Fd()), to, unix.RENAME_NOREPLACE)
		switch {
		case errors.Is(err, unix.EEXIST):
			to += "+"
			continue
		case errors.Is(err, unix.EACCES) && !chmod:
			// Its own mode counts, too: its ".." changes.
			chmod = true
			if err := unix.Fchmodat(dir, name, 0o700, 0); err != nil {
				return err
			}
			continue
		case err == nil:
			r.queue = append(r.queue, to)
		}
		return err
	}
}
