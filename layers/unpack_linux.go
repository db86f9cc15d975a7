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
	"slices"
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
	u := untarrer{dirWriter: w, filter: o.filter, limits: o.limits.orDefault(), bufs: make(chan []byte, untarBuffers), unknown: &place{}}
	u.root.below = u.unknown
	if o.beside != "" {
		if u.log, err = newLog(o.beside); err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		defer u.log.close()
	}
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
	if err := u.finish(); err != nil {
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

	unknown *place  // of a directory whose lower layers are not known
	notes   []note  // what was assumed about them
	log     *log    // nil: nothing is kept for applying the layer again
	again   *replay // nil: the entries come from a tar
	at      string  // where the content of the entry is that is being read
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

// entry applies an entry to what there is.
func (u *untarrer) entry(tr *tar.Reader, h *tar.Header) error {
	u.at = ""
	if err := u.apply(tr, h); err != nil || u.log == nil {
		return err
	}
	return u.log.add(&logged{Header: h, At: u.at})
}

func (u *untarrer) apply(tr *tar.Reader, h *tar.Header) error {
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
		if i := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, whiteoutPrefix) }); i >= 0 {
			switch name := names[i]; {
			case i == 0 && name == linksDir && (len(names) > 1 || isDir): // as it is, until finish
			case strings.HasPrefix(name, metaPrefix) && name != opaqueMarker:
				return nil
			case i < len(names)-1 || h.Typeflag == tar.TypeDir:
				return fmt.Errorf("%s: %w", short(path.Join(names...)), ErrReservedName)
			default:
				return u.whiteout(names[:i], name)
			}
		}
	}
	parent, err := u.walk(names[:len(names)-1])
	if err != nil {
		return err
	}
	name := names[len(names)-1]
	if isDir {
		n, err := u.directory(parent, name)
		if err != nil {
			return err
		}
		n.meta = m
		return nil
	}
	if err := CheckDepth(parent.level, name); err != nil {
		return err
	}
	if err := u.make(parent, implied); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return u.hardLink(parent, name, h.Linkname)
	}
	// A writer replaces what is there. It is only kept where the two may turn out to have different places.
	if !isFile(h) || u.again != nil || u.log != nil && len(u.notes) > 0 || parent.kids[name] != nil {
		if err := u.clear(parent, name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if u.again != nil {
			return u.again.link(parent.fd, name)
		}
		// With the holes of a tar's sparse form, which are not among its bytes: they are read fast, and not written.
		if u.limits.Bytes -= h.Size; u.limits.Bytes < 0 {
			return errors.New("more content than allowed")
		}
		if at := parent.level.Child(name); u.log != nil && at.String() != strings.Join(names, "/") {
			u.at = at.String()
			u.limits.Bytes -= int64(len(u.at)) // a short name can stand for a long one
		}
		return u.file(tr, parent, name, h.Size, m)
	case tar.TypeSymlink:
		return u.node(parent, name, m, true, func(dirfd int) error { return unix.Symlinkat(h.Linkname, dirfd, name) })
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		mode, dev, err := device(h, u.plain)
		if err != nil {
			return err
		}
		return u.node(parent, name, m, false, func(dirfd int) error {
			return inNamespace("mknod", unix.Mknodat(dirfd, name, mode, dev))
		})
	}
	return fmt.Errorf("unknown type %q", h.Typeflag)
}

func isFile(h *tar.Header) bool {
	return h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeCont || h.Typeflag == tar.TypeGNUSparse
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
	hidden := strings.TrimPrefix(name, whiteoutPrefix)
	if name != opaqueMarker && (hidden == "" || hidden == "." || hidden == ".." || strings.HasPrefix(hidden, whiteoutPrefix)) {
		return fmt.Errorf("a whiteout of %q", short(hidden))
	}
	parent, err := u.walk(dir)
	if errors.Is(err, unix.ENOTDIR) {
		return nil // below a file there is nothing
	}
	if err != nil {
		return err
	}
	if name == opaqueMarker {
		if parent.virtual && parent.below == nil {
			return nil
		}
		if err := u.make(parent, forWhiteouts); err != nil {
			return err
		}
		parent.opaque = true
		return u.seal(parent)
	}
	if err := CheckDepth(parent.level, hidden); err != nil {
		return err
	}
	if n := parent.kids[hidden]; n != nil && !n.virtual && !n.hollow {
		n.opaque = true
		return u.seal(n)
	} else if n != nil {
		if err := u.drop(n); err != nil {
			return err
		}
	}
	if _, ok, err := u.own(parent, hidden); ok || err != nil {
		return err
	}
	if p, err := u.look(parent, hidden); err != nil || p == nil {
		return err
	}
	if err := u.make(parent, forWhiteouts); err != nil {
		return err
	}
	if err := u.fd(parent); err != nil {
		return err
	}
	parent.marked = true
	if err := unix.Mknodat(parent.fd, hidden, unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	return nil
}

// node makes what is neither a file nor a directory.
func (u *untarrer) node(parent *node, name string, m *meta, link bool, make func(dirfd int) error) error {
	if err := u.fd(parent); err != nil {
		return err
	}
	if err := make(parent.fd); err != nil {
		return err
	}
	return m.setAt(parent.fd, name, link)
}

// hardLink gives a file another name. A file of a lower layer gets it when the lower layers are known: the layer then has the file itself.
func (u *untarrer) hardLink(parent *node, name, target string) error {
	fail := func(err error) error { return fmt.Errorf("hard link to %q: %w", short(target), err) }
	names, err := split(target)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	if len(names) == 0 {
		return fail(errNoTarget)
	}
	dir, err := u.walk(names[:len(names)-1])
	if err != nil {
		return fail(err)
	}
	old := names[len(names)-1]
	k := dir.kids[old]
	if k != nil && !k.virtual && !k.hollow {
		return fail(errors.New("it is a directory"))
	}
	for n := dir; n.parent != nil; n = n.parent {
		if n.parent == parent && n.level.Name() == name {
			return fail(errors.New("the link would replace the directory that it is in"))
		}
	}
	var st *unix.Stat_t
	ok := false
	if k == nil || !k.hollow {
		st, ok, err = u.own(dir, old)
	}
	switch {
	case err != nil:
		return fail(err)
	case ok && isWhiteout(st):
		return fail(errNoTarget)
	case ok && dir == parent && old == name:
		return nil
	case ok:
		if err := u.fd(dir); err != nil {
			return err
		}
		dirfd, err := unix.FcntlInt(uintptr(dir.fd), unix.F_DUPFD_CLOEXEC, 0) // opening parent may close dir
		if err != nil {
			return err
		}
		defer unix.Close(dirfd)
		return u.link(dirfd, old, parent, name, target)
	}
	p, err := u.look(dir, old)
	switch {
	case err != nil:
		return fail(err)
	case p == nil || p == u.unknown && u.log == nil:
		return fail(errNoTarget)
	case p == u.unknown:
		u.note(parent, linkBelow)
		return u.clear(parent, name)
	case p.typ == unix.S_IFDIR:
		return fail(errors.New("it is a directory"))
	case dir == parent && old == name:
		return nil
	}
	dirfd, err := p.openParent()
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dirfd)
	return u.link(dirfd, old, parent, name, target)
}

var errNoTarget = errors.New("neither this layer nor one below has it")

// link gives the file old of an open directory another name.
func (u *untarrer) link(dirfd int, old string, parent *node, name, target string) error {
	if err := u.clear(parent, name); err != nil {
		return err
	}
	if err := u.fd(parent); err != nil {
		return err
	}
	if err := linkOrCopy(dirfd, old, parent.fd, name); err != nil {
		return fmt.Errorf("hard link to %q: %w", short(target), err)
	}
	return nil
}

// linkOrCopy copies a file that can have no more links.
func linkOrCopy(from int, old string, to int, name string) error {
	err := unix.Linkat(from, old, to, name, 0)
	if err == unix.EMLINK {
		err = duplicate(from, old, to, name)
	}
	return err
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
