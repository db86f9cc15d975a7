package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas"
)

// MakeCopy makes the layer directory of a copy step, by the rules of OBuilder's copy, but that it follows links and
// leaves existing directories as they are:
//
//   - Dst with a slash at its end takes each source under its own name; without, its only source becomes Dst. The
//     contents of "." go into Dst in both cases.
//   - Links in Dst are resolved with the parent's root as theirs, 40 at most. At the last name, a file replaces a link,
//     a directory follows it.
//   - A directory is merged into an existing one and replaces a file; a file never replaces a directory.
//   - Existing directories keep owner, mode, attributes and modification time. Missing ones are root's, 0755, of time
//     0; the one that Dst names with a slash belongs to UID:GID.
//   - Sources belong to UID:GID; files are 0755 or 0644, directories 0755; modification times are kept in whole seconds.
//
// A file whose content is no longer Digest fails with an error that names it.
func MakeCopy(ctx context.Context, st *cas.Store, c Copy) (Layer, error) {
	fail := func(err error) (Layer, error) { return Layer{}, fmt.Errorf("copy: %w", err) }
	dir, err := newLayerDir(st)
	if err != nil {
		return fail(err)
	}
	defer discard(st, dir)
	if err := makeCopy(ctx, filepath.Join(dir, "fs"), c); err != nil {
		return fail(err)
	}
	name, err := st.CommitLayer(dir, "")
	if err != nil {
		return fail(err)
	}
	return Layer{Dir: name}, nil
}

// makeCopy fills an empty directory with the change that a copy is.
func makeCopy(ctx context.Context, dir string, c Copy) error {
	if c.Windows {
		if err := c.useDriveC(); err != nil {
			return err
		}
	}
	root, err := planCopy(&c)
	if err != nil {
		return err
	}
	w, err := newDirWriter(ctx, dir)
	if err != nil {
		return err
	}
	defer w.close()
	m := copier{dirWriter: w, c: &c}
	if err := m.dir(w.root, root); err != nil {
		w.close()
		return err
	}
	return w.finish()
}

type copier struct {
	*dirWriter
	c       *Copy
	noClone atomic.Bool // the file systems cannot share blocks
}

func (m *copier) dir(n *node, t *target) error {
	var err error
	if n.meta, err = m.dirMeta(t); err != nil {
		return err
	}
	for _, k := range t.sorted() {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		switch {
		case k.mode.IsDir():
			sub, err := m.dirWriter.dir(n, k.name, clashFails)
			if err != nil {
				return err
			}
			if err := m.dir(sub, k); err != nil {
				return err
			}
		case k.mode == fs.ModeSymlink:
			if err := m.link(n, k); err != nil {
				return err
			}
		default:
			if err := m.spawn(n, k.name, func(dirfd int) error { return m.file(dirfd, k) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *copier) dirMeta(t *target) (*meta, error) {
	switch {
	case t.old != nil:
		h, _ := headerOf(t.old)
		x, err := m.c.Parent.Xattrs(t.path())
		if err != nil {
			return nil, err
		}
		return &meta{mode: uint32(h.Mode), uid: h.Uid, gid: h.Gid, mtime: h.ModTime, xattrs: x}, nil
	case t.item != nil:
		info, err := m.c.source(t)
		if err != nil {
			return nil, err
		}
		return &meta{mode: 0o755, uid: m.c.UID, gid: m.c.GID, mtime: seconds(info)}, nil
	case t.owned:
		return &meta{mode: 0o755, uid: m.c.UID, gid: m.c.GID, mtime: time.Unix(0, 0)}, nil
	}
	return &meta{mode: 0o755, mtime: time.Unix(0, 0)}, nil
}

func (m *copier) link(n *node, t *target) error {
	info, err := m.c.source(t)
	if err != nil {
		return err
	}
	if err := m.fd(n); err != nil {
		return err
	}
	if err := unix.Symlinkat(t.link, n.fd, t.name); err != nil {
		return &fs.PathError{Op: "symlink", Path: t.path(), Err: err}
	}
	meta := meta{mode: 0o777, uid: m.c.UID, gid: m.c.GID, mtime: seconds(info)}
	if err := meta.setAt(n.fd, t.name, true); err != nil {
		return fmt.Errorf("%s: %w", t.path(), err)
	}
	return nil
}

// file copies one file; it runs in several goroutines.
func (m *copier) file(dirfd int, t *target) error {
	f, info, err := m.c.openSource(t)
	if err != nil {
		return err
	}
	defer f.Close()
	fd, err := create(dirfd, t.name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	got, err := m.content(fd, f, info.Size())
	if err != nil {
		return fmt.Errorf("source %q: %w", t.src, err)
	}
	if got != t.item.Digest {
		return changed(t.src, errors.New("its content differs"))
	}
	meta := meta{mode: 0o644, uid: m.c.UID, gid: m.c.GID, mtime: seconds(info)}
	if t.item.Exec {
		meta.mode = 0o755
	}
	return meta.setFD(fd)
}

const cloneSize = 64 << 10 // smaller files are read anyway, and written as fast

// content copies bytes and hashes what was copied, never something read at another time.
func (m *copier) content(fd int, f fs.File, size int64) (digest.Digest, error) {
	h := digest.SHA256.Digester()
	if src, ok := f.(*os.File); ok && size >= cloneSize && !m.noClone.Load() {
		if err := unix.IoctlFileClone(fd, int(src.Fd())); err == nil {
			// The clone is ours, so hashing it is hashing the copy.
			clone, err := openat(unix.AT_FDCWD, fdPath(fd), unix.O_RDONLY, 0)
			if err != nil {
				return "", err
			}
			c := os.NewFile(uintptr(clone), "copy")
			defer c.Close()
			if _, err := io.Copy(h.Hash(), c); err != nil {
				return "", err
			}
			return h.Digest(), nil
		}
		m.noClone.Store(true)
	}
	buf := make([]byte, min(size+1, 256<<10)) // one more, so that one read sees a small file's end
	for at := int64(0); ; {
		n, err := f.Read(buf)
		h.Hash().Write(buf[:n])
		if n < cloneSize || !zeros(buf[:n]) { // else it stays a hole
			if werr := pwrite(fd, buf[:n], at); werr != nil {
				return "", werr
			}
		}
		at += int64(n)
		if err == io.EOF || err == nil && at == size && n < len(buf) {
			if err := unix.Ftruncate(fd, at); err != nil { // it may end in a hole
				return "", err
			}
			return h.Digest(), nil
		}
		if err != nil {
			return "", err
		}
		if err := m.ctx.Err(); err != nil {
			return "", err
		}
	}
}
