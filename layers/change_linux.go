package layers

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// WriteChange writes a layer directory as an uncompressed OCI layer tar (whiteouts as .wh. files). It never changes
// the directory; sockets are left out.
func WriteChange(ctx context.Context, w io.Writer, dir string) error {
	return writeChange(ctx, w, dir, nil)
}

// writeLayer is WriteChange for the files of a layer of the store. It leaves open what the layer does: a directory that it only implies gets no entry.
func writeLayer(ctx context.Context, w io.Writer, dir string) error {
	ends, err := openEnds(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	skip := map[string]bool{}
	for _, e := range ends {
		switch e.need {
		case linkBelow:
			return fmt.Errorf("write layer: in %s it has hard links to files of the layers below, which only its own bytes can say", e.path)
		case implied, forWhiteouts:
			skip[e.path] = true
		}
	}
	return writeChange(ctx, w, dir, skip)
}

func writeChange(ctx context.Context, w io.Writer, dir string, skip map[string]bool) error {
	at, err := foreign.NewCursor(dir, 0)
	if err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	defer at.Close()
	t := changeWriter{tarWriter: newTarWriter(w), ctx: ctx, at: at, skip: skip}
	if err := t.dir(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return t.close()
}

type changeWriter struct {
	*tarWriter
	ctx  context.Context
	at   *foreign.Cursor
	skip map[string]bool // directories without an entry
}

// dir writes the directory where the cursor is, with everything below it.
func (t *changeWriter) dir() error {
	level := t.at.Level()
	m, opaque, err := fdMeta(t.at.FD())
	if err != nil {
		return fmt.Errorf("%s: %w", level.Short(), err)
	}
	h := tar.Header{Typeflag: tar.TypeDir, Mode: int64(m.mode), Uid: m.uid, Gid: m.gid, ModTime: m.mtime}
	if len(t.skip) == 0 || !t.skip[level.String()] {
		if err := t.add(level, &h, inode{}, m.xattrs, nil); err != nil {
			return err
		}
	}
	if opaque == "y" {
		if err := t.mark(level, opaqueMarker); err != nil {
			return err
		}
	}
	entries, err := t.at.ReadDir()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		// An opaque "x" says that whiteouts may have their other form, an attribute of an empty file.
		if err := t.entry(e, opaque == "x"); err != nil {
			return err
		}
	}
	return nil
}

func (t *changeWriter) entry(e fs.DirEntry, xwhiteouts bool) error {
	base, dirfd, level := e.Name(), t.at.FD(), t.at.Level()
	if err := checkName(level, base); err != nil {
		return err
	}
	switch e.Type() {
	case fs.ModeDir:
		if err := t.at.Enter(base); err != nil {
			return err
		}
		if err := t.dir(); err != nil {
			return err
		}
		return t.at.Leave()
	case 0:
		return t.file(dirfd, level, base, xwhiteouts)
	case fs.ModeSocket:
		return nil
	}
	fail := func(op string, err error) error {
		return &fs.PathError{Op: op, Path: level.Child(base).Short(), Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("lstat", err)
	}
	if isWhiteout(&st) {
		return t.mark(level, whiteoutPrefix+base)
	}
	h, ino := headerOfStat(&st)
	if h.Typeflag == tar.TypeSymlink {
		target, err := readLinkAt(dirfd, base)
		if err != nil {
			return fail("readlink", err)
		}
		h.Linkname = target
	}
	xattrs, err := pathXattrs(fdPath(dirfd) + "/" + base)
	if err != nil {
		return fail("listxattr", err)
	}
	return t.add(level.Child(base), &h, ino, xattrs, nil)
}

func (t *changeWriter) file(dirfd int, level *foreign.Level, base string, xwhiteouts bool) error {
	fail := func(op string, err error) error {
		return &fs.PathError{Op: op, Path: level.Child(base).Short(), Err: err}
	}
	fd, err := openFileAt(dirfd, base)
	if err != nil {
		return fail("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail("stat", err)
	}
	xattrs, err := fdXattrs(fd)
	if err != nil {
		return fail("listxattr", err)
	}
	if _, ok := xattrs[whiteoutXattr]; ok {
		if xwhiteouts && st.Size == 0 {
			return t.mark(level, whiteoutPrefix+base)
		}
		delete(xattrs, whiteoutXattr)
	}
	delete(xattrs, opaqueXattr)
	h, ino := headerOfStat(&st)
	return t.add(level.Child(base), &h, ino, xattrs, func(w io.Writer) error {
		holes, err := holesOf(fd, &st)
		if err == nil {
			err = t.addHoles(holes)
		}
		if err != nil {
			return err
		}
		return t.content(w, fd, st.Size, holes > 0)
	})
}

// content writes a file's bytes. Holes are found, not read.
func (t *changeWriter) content(w io.Writer, fd int, size int64, sparse bool) error {
	if !sparse {
		return t.data(w, fd, 0, size)
	}
	at := int64(0)
	for e, err := range extents(fd, size) {
		if err != nil {
			return err
		}
		if err := t.zeros(w, e.at-at); err != nil {
			return err
		}
		if err := t.data(w, fd, e.at, e.end); err != nil {
			return err
		}
		at = e.end
	}
	return t.zeros(w, size-at)
}

// data writes the bytes of a file between two offsets.
func (t *changeWriter) data(w io.Writer, fd int, at, end int64) error {
	for at < end {
		n, err := unix.Pread(fd, t.buf[:min(int64(len(t.buf)), end-at)], at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errShrunk
		}
		if _, err := w.Write(t.buf[:n]); err != nil {
			return err
		}
		at += int64(n)
		if err := t.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (t *changeWriter) zeros(w io.Writer, n int64) error {
	if n == 0 {
		return nil
	}
	clear(t.buf)
	for n > 0 {
		k, err := w.Write(t.buf[:min(int64(len(t.buf)), n)])
		if err != nil {
			return err
		}
		if err := t.ctx.Err(); err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// checkName reports whether a layer can hold a name in a directory.
func checkName(dir *foreign.Level, name string) error {
	if strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("%s: %w", dir.Child(name).Short(), ErrReservedName)
	}
	return CheckDepth(dir, name)
}

// Seal prepares a directory that overlayfs has written, over lower directories (base first), for being a layer: it
// removes sockets, as packing leaves them out and the next step must see what an unpacked layer gives. A removed
// socket leaves its directory's modification time as it was, and a whiteout where it hid something of the lower directories. A
// name that no layer can hold, or that is too deep for one, is an error. empty says that the directory has no entries; its own
// attributes are another matter (SameDir).
func Seal(dir string, lower ...string) (empty bool, err error) {
	at, err := foreign.NewCursor(dir, 0)
	if err != nil {
		return false, fmt.Errorf("seal layer: %w", err)
	}
	defer at.Close()
	s := sealer{dir: dir, lower: lower, at: at}
	if empty, err = s.seal(); err != nil {
		return false, fmt.Errorf("seal layer: %w", err)
	}
	return empty, nil
}

type sealer struct {
	dir   string
	lower []string
	at    *foreign.Cursor
}

// seal seals the directory where the cursor is. It needs only the names and types that reading a directory gives: no call per file.
func (s *sealer) seal() (empty bool, err error) {
	level := s.at.Level()
	entries, err := s.at.ReadDir()
	if err != nil {
		return false, err
	}
	var before *unix.Stat_t // set once the directory was changed
	empty = true
	for _, e := range entries {
		if err := checkName(level, e.Name()); err != nil {
			return false, err
		}
		if e.Type() == fs.ModeSocket {
			if before == nil {
				before = new(unix.Stat_t)
				if err := unix.Fstat(s.at.FD(), before); err != nil {
					return false, &fs.PathError{Op: "stat", Path: level.Short(), Err: err}
				}
			}
			hidden, err := s.removeSocket(level.Child(e.Name()))
			if err != nil {
				return false, err
			}
			empty = empty && !hidden
			continue
		}
		empty = false
		if e.Type() == fs.ModeDir {
			if err := s.at.Enter(e.Name()); err != nil {
				return false, err
			}
			if _, err := s.seal(); err != nil {
				return false, err
			}
			if err := s.at.Leave(); err != nil {
				return false, err
			}
		}
	}
	if before != nil {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, before.Mtim}
		if err := unix.UtimesNanoAt(s.at.FD(), "", times, unix.AT_EMPTY_PATH); err != nil {
			return false, &fs.PathError{Op: "utimensat", Path: level.Short(), Err: err}
		}
	}
	return empty, nil
}

// removeSocket removes a socket of the directory where the cursor is.
func (s *sealer) removeSocket(socket *foreign.Level) (hidden bool, err error) {
	if hidden, err = s.hides(socket.Names()); err != nil {
		return false, err
	}
	if err := unix.Unlinkat(s.at.FD(), socket.Name(), 0); err != nil {
		return false, &fs.PathError{Op: "remove", Path: socket.Short(), Err: err}
	}
	if hidden {
		if err := unix.Mknodat(s.at.FD(), socket.Name(), unix.S_IFCHR, 0); err != nil {
			return false, &fs.PathError{Op: "make whiteout", Path: socket.Short(), Err: err}
		}
	}
	return hidden, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// hides reports whether the lower directories would show something of a name without what the layer has there.
func (s *sealer) hides(names []string) (bool, error) {
	var dirs []int // topmost first: the directories that are merged on the way to name
	defer func() { closeAll(dirs) }()
	for _, d := range slices.Backward(append(slices.Clone(s.lower), s.dir)) {
		fd, err := openRoot(d)
		if err != nil {
			return false, err
		}
		dirs = append(dirs, fd)
	}
	for _, n := range names[:len(names)-1] {
		var next []int
		for _, d := range dirs {
			fd, err := openDirAt(d, n)
			if err == unix.ENOENT {
				continue
			}
			if err != nil { // a file or a whiteout, which hides what is below it
				break
			}
			next = append(next, fd)
			if _, opaque, err := fdMeta(fd); err != nil || opaque == "y" {
				break
			}
		}
		closeAll(dirs)
		dirs = next
	}
	for i, d := range dirs {
		var st unix.Stat_t
		err := unix.Fstatat(d, names[len(names)-1], &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.ENOENT || i == 0 { // the first is the layer's own
			continue
		}
		return err == nil && !isWhiteout(&st), err
	}
	return false, nil
}

// CopyDir makes the new directory dst with what packing and unpacking a sealed layer directory would give: a move from one
// file system to another.
func CopyDir(ctx context.Context, dst, dir string) error {
	if err := unix.Mkdir(dst, 0o755); err != nil {
		return &fs.PathError{Op: "mkdir", Path: dst, Err: err}
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := WriteChange(ctx, w, dir)
		w.CloseWithError(err)
		done <- err
	}()
	err := untar(ctx, r, dst, untarOptions{limits: Limits{math.MaxInt64, math.MaxInt64}})
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	r.CloseWithError(err)
	if werr := <-done; werr != nil { // the reader's, if that was first
		err = werr
	}
	if err != nil {
		return fmt.Errorf("copy layer directory: %w", err)
	}
	return nil
}

// MakeUpper makes the new directory dir with the attributes of another, for overlayfs to write to: the root of a
// merged file system is that of its topmost layer, so without them a step would change the root by running.
func MakeUpper(dir, below string) error {
	m, err := dirMeta(below)
	if err != nil {
		return err
	}
	if err := unix.Mkdir(dir, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	fd, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := m.setFD(fd); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// SameDir reports whether two directories' own attributes agree, as far as a layer keeps them.
func SameDir(a, b string) (bool, error) {
	m, err := dirMeta(a)
	if err != nil {
		return false, err
	}
	n, err := dirMeta(b)
	if err != nil {
		return false, err
	}
	return m.equal(n), nil
}
