package layers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// ReadChange is the inverse of WriteChange: it makes the new directory dir out of an uncompressed OCI layer tar. What it
// leaves after an error is for the caller to remove.
func ReadChange(ctx context.Context, r io.Reader, dir string, lim Limits) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return untar(ctx, r, dir, untarOptions{limits: lim})
}

// untar unpacks a tar into an existing directory, and reads it to its end.
func untar(ctx context.Context, r io.Reader, dir string, o untarOptions) error {
	w, err := newDirWriter(ctx, dir)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer w.close()
	u := untarrer{dirWriter: w, filter: o.filter, limits: o.limits.orDefault(), bufs: make(chan []byte, untarBuffers)}
	for range untarBuffers {
		u.bufs <- nil
	}
	w.plain, w.root.old = o.plain, o.plain
	blocks := &countingReader{r: r}
	err = u.read(tar.NewReader(blocks))
	if err == nil && blocks.n%tarBlock != 0 {
		err = io.ErrUnexpectedEOF // in the padding of the last file, which archive/tar takes for an end
	}
	if err != nil {
		w.close() // a writer's error comes first: it may be why reading stopped
		if werr := w.failed(); werr != nil {
			err = werr
		}
		return fmt.Errorf("unpack: %w", err)
	}
	if err := w.finish(); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return trailer(r)
}

// tarBlock is what all parts of a tar are multiples of. A tar may end with any file, as for Docker: some builders write nothing after it, and the
// digest says whether all of it is there. It may not end within one.
const tarBlock = 512

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// trailer reads what follows the end of a tar: padding. Anything else would be seen by some readers and not by others.
func trailer(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if !zeros(buf[:n]) {
			return errors.New("unpack: data after the end of the archive")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

const (
	untarChunk   = 1 << 20 // of a file, written at once; longer files are written in several
	untarBuffers = 12      // so at most 12 MiB wait for being written
)

type untarrer struct {
	*dirWriter
	filter func(*tar.Header) bool
	limits Limits // what is left of them
	bufs   chan []byte
}

func (u *untarrer) read(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.ctx.Err(); err != nil {
			return err
		}
		if err := u.failed(); err != nil {
			return err
		}
		if u.limits.Entries--; u.limits.Entries < 0 {
			return errors.New("too many entries")
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := u.entry(tr, h); err != nil {
			return fmt.Errorf("%q: %w", short(h.Name), err)
		}
	}
}

func (u *untarrer) entry(tr *tar.Reader, h *tar.Header) error {
	names, err := split(h.Name)
	if err != nil {
		return err
	}
	if u.filter != nil && !u.filter(h) {
		return nil
	}
	m, err := metaOf(h)
	if err != nil {
		return err
	}
	// Old tars write a directory as a file whose name ends with a slash.
	isDir := h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeReg && h.Size == 0 && strings.HasSuffix(h.Name, "/")
	if len(names) == 0 {
		if !isDir {
			return errors.New("the root is not a directory")
		}
		u.root.meta = m
		return nil
	}
	if !u.plain {
		for i, name := range names {
			if !strings.HasPrefix(name, whiteoutPrefix) {
				continue
			}
			if i < len(names)-1 || h.Typeflag == tar.TypeDir {
				return fmt.Errorf("%s: %w", short(path.Join(names...)), ErrReservedName)
			}
			return u.whiteout(names[:i], name)
		}
	}
	parent := u.root
	for _, name := range names[:len(names)-1] {
		if parent, err = u.dir(parent, name, clashFails); err != nil {
			return err
		}
	}
	name := names[len(names)-1]
	if isDir {
		n, err := u.dir(parent, name, clashReplaces)
		if err != nil {
			return err
		}
		n.meta = m
		return nil
	}
	if err := CheckDepth(parent.level, name); err != nil {
		return err
	}
	if n := parent.kids[name]; n != nil { // the later entry counts
		if err := u.remove(n); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		// With the holes of a tar's sparse form, which are not among its bytes: they are read fast, and not written.
		if u.limits.Bytes -= h.Size; u.limits.Bytes < 0 {
			return errors.New("more content than allowed")
		}
		return u.file(tr, parent, name, h.Size, m)
	case tar.TypeLink:
		return u.hardLink(parent, name, h.Linkname)
	case tar.TypeSymlink:
		return u.node(parent, name, m, true, func(dirfd int) error { return unix.Symlinkat(h.Linkname, dirfd, name) })
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		mode, dev, err := device(h, u.plain)
		if err != nil {
			return err
		}
		return u.node(parent, name, m, false, func(dirfd int) error { return unix.Mknodat(dirfd, name, mode, dev) })
	}
	return fmt.Errorf("unknown type %q", h.Typeflag)
}

func metaOf(h *tar.Header) (*meta, error) {
	if h.Uid < 0 || h.Uid > math.MaxUint32-1 || h.Gid < 0 || h.Gid > math.MaxUint32-1 {
		return nil, fmt.Errorf("owner %d:%d: out of range", h.Uid, h.Gid)
	}
	xattrs, err := paxXattrs(h)
	if err != nil {
		return nil, err
	}
	return &meta{mode: uint32(h.Mode) & 0o7777, uid: h.Uid, gid: h.Gid, mtime: h.ModTime, xattrs: xattrs}, nil
}

func device(h *tar.Header, plain bool) (mode uint32, dev int, err error) {
	switch h.Typeflag {
	case tar.TypeFifo:
		return unix.S_IFIFO | 0o600, 0, nil
	case tar.TypeChar:
		mode = unix.S_IFCHR | 0o600
	default:
		mode = unix.S_IFBLK | 0o600
	}
	if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
		return 0, 0, fmt.Errorf("device %d:%d: out of range", h.Devmajor, h.Devminor)
	}
	if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 && !plain {
		return 0, 0, errors.New("character device 0:0: overlayfs would take it for a whiteout")
	}
	return mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))), nil
}

// whiteout hides what lower layers have: OCI's rule is that it never concerns the layer that it is in, whatever
// the order.
func (u *untarrer) whiteout(dir []string, name string) error {
	parent := u.root
	var err error
	for _, d := range dir {
		if parent, err = u.dir(parent, d, clashFails); err != nil {
			return err
		}
	}
	if name == opaqueMarker {
		parent.opaque = true
		return nil
	}
	if strings.HasPrefix(name, metaPrefix) {
		return nil
	}
	hidden := strings.TrimPrefix(name, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." || strings.HasPrefix(hidden, whiteoutPrefix) {
		return fmt.Errorf("a whiteout of %q", short(hidden))
	}
	if err := CheckDepth(parent.level, hidden); err != nil {
		return err
	}
	if n := parent.kids[hidden]; n != nil {
		n.opaque = true
		return nil
	}
	if err := u.fd(parent); err != nil {
		return err
	}
	if err := u.wait(fileID{parent, hidden}); err != nil {
		return err
	}
	if err := unix.Mknodat(parent.fd, hidden, unix.S_IFCHR, 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make whiteout: %w", err)
	}
	return nil
}

// node makes what is neither a file nor a directory.
func (u *untarrer) node(parent *node, name string, m *meta, link bool, make func(dirfd int) error) error {
	if err := u.fd(parent); err != nil {
		return err
	}
	if err := u.wait(fileID{parent, name}); err != nil {
		return err
	}
	if err := replace(parent.fd, name, func() error { return make(parent.fd) }); err != nil {
		return err
	}
	return m.setAt(parent.fd, name, link)
}

func (u *untarrer) hardLink(parent *node, name, target string) error {
	names, err := split(target)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	var dir *node
	if len(names) > 0 {
		dir = u.lookup(names[:len(names)-1])
	}
	if dir == nil {
		return fmt.Errorf("hard link to %q, which is not in this layer", short(target))
	}
	old := fileID{dir, names[len(names)-1]}
	if old == (fileID{parent, name}) {
		return nil
	}
	if err := u.wait(old); err != nil {
		return err
	}
	if err := u.wait(fileID{parent, name}); err != nil {
		return err
	}
	if err := u.fd(dir); err != nil {
		return err
	}
	dirfd, err := unix.FcntlInt(uintptr(dir.fd), unix.F_DUPFD_CLOEXEC, 0) // opening parent may close dir
	if err != nil {
		return err
	}
	defer unix.Close(dirfd)
	if err := u.fd(parent); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, old.name, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT || err == nil && isWhiteout(&st) {
		return fmt.Errorf("hard link to %q, which is not in this layer", short(target))
	} else if err != nil {
		return fmt.Errorf("hard link to %q: %w", short(target), err)
	}
	err = replace(parent.fd, name, func() error { return unix.Linkat(dirfd, old.name, parent.fd, name, 0) })
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", short(target), err)
	}
	return nil
}

// buffer waits for room in memory, or for a writer's error: then it gives nil. It is not made larger than it has to be: most layers have a
// few small files, and memory that is used for the first time costs more than writing them.
func (u *untarrer) buffer(n int64) []byte {
	var b []byte
	select {
	case b = <-u.bufs:
	case <-u.broken:
		return nil
	}
	if int64(cap(b)) < n {
		b = make([]byte, n, min(untarChunk, max(4<<10, int64(1)<<bits.Len64(uint64(n-1)))))
	}
	return b[:n]
}

// file reads a file and leaves making and writing it to others.
func (u *untarrer) file(tr *tar.Reader, parent *node, name string, size int64, m *meta) error {
	if size > untarChunk {
		return u.largeFile(tr, parent, name, size, m)
	}
	var data []byte
	if size > 0 {
		if data = u.buffer(size); data == nil {
			return u.failed()
		}
		if _, err := io.ReadFull(tr, data); err != nil {
			u.bufs <- data
			return err
		}
	}
	return u.spawn(parent, name, func(dirfd int) error {
		if size > 0 {
			defer func() { u.bufs <- data }()
		}
		fd, err := create(dirfd, name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := pwrite(fd, data, 0); err != nil {
			return err
		}
		return m.setFD(fd)
	})
}

// largeFile writes a file in chunks, which one goroutine writes while the next are read. Chunks of zeros become holes.
func (u *untarrer) largeFile(tr *tar.Reader, parent *node, name string, size int64, m *meta) error {
	chunks := make(chan []byte, 4)
	err := u.spawn(parent, name, func(dirfd int) (err error) {
		defer func() {
			for b := range chunks {
				u.bufs <- b
			}
		}()
		fd, err := create(dirfd, name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		at := int64(0)
		for b := range chunks {
			if !zeros(b) {
				err = pwrite(fd, b, at)
			}
			at += int64(len(b))
			u.bufs <- b
			if err != nil {
				return err
			}
		}
		if at < size {
			return io.ErrUnexpectedEOF
		}
		if err := unix.Ftruncate(fd, size); err != nil {
			return fmt.Errorf("truncate: %w", err)
		}
		return m.setFD(fd)
	})
	defer close(chunks)
	if err != nil {
		return err
	}
	for size := size; size > 0; {
		b := u.buffer(min(size, untarChunk))
		if b == nil {
			return u.failed()
		}
		if _, err := io.ReadFull(tr, b); err != nil {
			u.bufs <- b
			return err
		}
		select {
		case chunks <- b:
		case <-u.broken:
			return u.failed()
		}
		size -= int64(len(b))
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
