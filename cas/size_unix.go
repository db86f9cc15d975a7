//go:build unix

package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// diskSize is what dir and all below it take on disk, of any depth. What vanishes meanwhile counts for nothing. With an error, it is what
// could be looked at.
func diskSize(ctx context.Context, dir string) (int64, error) {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	m := measurer{seen: map[inode]bool{}}
	m.total = diskUse(info)
	if !info.IsDir() {
		return m.total, nil
	}
	c, err := foreign.NewCursor(dir, 0)
	if err != nil {
		m.odd(err)
		return m.total, m.err(dir)
	}
	defer c.Close()
	dirs := [][]string{m.entries(c)} // on each level, those that are still to be entered
	for len(dirs) > 0 {
		if ctx.Err() != nil {
			return m.total, context.Cause(ctx)
		}
		top := &dirs[len(dirs)-1]
		if len(*top) == 0 {
			dirs = dirs[:len(dirs)-1]
			if len(dirs) == 0 {
				break
			}
			if err := c.Leave(); err != nil {
				m.odd(err)
				break
			}
			continue
		}
		name := (*top)[len(*top)-1]
		*top = (*top)[:len(*top)-1]
		if err := c.Enter(name); err != nil {
			m.odd(err)
			continue
		}
		dirs = append(dirs, m.entries(c))
	}
	return m.total, m.err(dir)
}

// An inode names a file that may have several names.
type inode struct{ dev, ino uint64 }

type measurer struct {
	total int64
	seen  map[inode]bool // files with several names
	first error
	count int // of errors
}

// odd notes what cannot be looked at, for another reason than that it is gone or a layer's own modes.
func (m *measurer) odd(err error) {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, foreign.ErrMoved) ||
		errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) { // another has its name by now
		return
	}
	if m.first == nil {
		m.first = err
	}
	m.count++
}

func (m *measurer) err(dir string) error {
	switch {
	case m.first == nil:
		return nil
	case m.count > 1:
		return fmt.Errorf("%s: %w, and %d more", dir, m.first, m.count-1)
	}
	return fmt.Errorf("%s: %w", dir, m.first)
}

// entries adds what is in a directory, and lists its subdirectories.
func (m *measurer) entries(c *foreign.Cursor) (dirs []string) {
	names, err := c.Names()
	m.odd(err)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(c.FD(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			m.odd(&fs.PathError{Op: "stat", Path: c.Level().Child(name).Short(), Err: err})
			continue
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if isDir {
			dirs = append(dirs, name)
		} else if st.Nlink > 1 {
			id := inode{dev: uint64(st.Dev), ino: uint64(st.Ino)}
			if m.seen[id] {
				continue
			}
			m.seen[id] = true
		}
		m.total += st.Blocks * 512
	}
	return dirs
}
