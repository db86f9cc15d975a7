package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// FlattenBaseDirs merges layer-form directories (paths, base first) into the new directory dst, by hard links. They are the lowest of a chain: the
// result is an ordinary directory, without whiteouts and opaque marks.
func FlattenBaseDirs(ctx context.Context, dst string, dirs []string) error {
	return flattenDirs(ctx, dst, dirs, true)
}

// flattenDirs is FlattenBaseDirs for directories anywhere in a chain, unless base is set. The result means over any lower layers what the directories
// meant: it keeps whiteouts and opaque marks, and a directory that hides something of another kind between the layers becomes opaque. A directory has the
// attributes that its topmost one has. At the base this would not do: in a directory that only one layer has, overlayfs lists whiteouts as names that
// cannot be opened.
func flattenDirs(ctx context.Context, dst string, dirs []string, base bool) error {
	if len(dirs) == 0 {
		return errors.New("flatten: no directories")
	}
	var in []*foreign.Cursor // topmost first
	defer func() {
		for _, c := range in {
			c.Close()
		}
	}()
	hold := max(1, flattenHold/(len(dirs)+1))
	for _, dir := range slices.Backward(dirs) {
		c, err := foreign.NewCursor(dir, hold)
		if err != nil {
			return fmt.Errorf("flatten: %w", err)
		}
		in = append(in, c)
	}
	if err := unix.Mkdir(dst, 0o700); err != nil {
		return fmt.Errorf("flatten: %w", &fs.PathError{Op: "mkdir", Path: dst, Err: err})
	}
	out, err := foreign.NewCursor(dst, hold)
	if err != nil {
		return fmt.Errorf("flatten: %w", err)
	}
	defer out.Close()
	if err := flatten(ctx, out, in, view{alone: base}); err != nil {
		return fmt.Errorf("flatten: %w", err)
	}
	return nil
}

// flattenHold is how many directories are open at a time on the way down, in all that are merged.
const flattenHold = 256

// A view says what a merged directory has below it.
type view struct {
	hides bool // something between the layers hides lower layers' directory
	alone bool // nothing can be below: an opaque directory or the base is around it
}

// A contribution is what one name of a merged directory is made of: the topmost entry, and for a directory those of
// lower layers that it does not hide.
type contribution struct {
	from   *foreign.Cursor // in the topmost entry's directory
	typ    fs.FileMode
	dirs   []*foreign.Cursor // in directories that hold the entry as a directory, topmost first
	closed bool              // whatever lies below is hidden
}

// flatten merges the directories where the cursors in are, topmost first, into the one where out is.
func flatten(ctx context.Context, out *foreign.Cursor, in []*foreign.Cursor, v view) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	level := out.Level()
	merged := make(map[string]*contribution)
	var order []string
	var top *meta
	for _, c := range in {
		m, mark, err := fdMeta(c.FD())
		if err != nil {
			return fmt.Errorf("%s: %w", level.Short(), err)
		}
		if top == nil {
			top = m
		}
		entries, err := c.ReadDir()
		if err != nil {
			return err
		}
		for _, e := range entries {
			base := e.Name()
			if err := CheckDepth(level, base); err != nil {
				return err
			}
			have := merged[base]
			if have == nil {
				typ, err := typeOf(c.FD(), e, mark == "x")
				if err != nil {
					return fmt.Errorf("%s: %w", level.Child(base).Short(), err)
				}
				have = &contribution{from: c, typ: typ}
				merged[base] = have
				order = append(order, base)
			}
			switch {
			case have.closed:
			case e.IsDir() && have.typ.IsDir():
				have.dirs = append(have.dirs, c)
			default:
				have.closed = true
			}
		}
		if mark == "y" {
			v.hides = true
			break
		}
	}
	for _, base := range order {
		c := merged[base]
		sub := view{hides: c.closed, alone: v.alone || v.hides}
		if err := flattenEntry(ctx, out, base, c, sub); err != nil {
			return err
		}
	}
	if v.hides && !v.alone {
		if err := unix.Fsetxattr(out.FD(), opaqueXattr, []byte("y"), 0); err != nil {
			return &fs.PathError{Op: "setxattr " + opaqueXattr, Path: level.Short(), Err: err}
		}
	}
	if err := top.setFD(out.FD()); err != nil {
		return fmt.Errorf("%s: %w", level.Short(), err)
	}
	return nil
}

const typeWhiteout = fs.ModeIrregular

// typeOf gives an entry's type; whiteouts have one of their own. With xwhiteouts, they may be empty files with an
// attribute.
func typeOf(dirfd int, e fs.DirEntry, xwhiteouts bool) (fs.FileMode, error) {
	switch typ := e.Type(); {
	case typ == fs.ModeDevice|fs.ModeCharDevice:
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return 0, err
		}
		if isWhiteout(&st) {
			return typeWhiteout, nil
		}
		return typ, nil
	case typ == 0 && xwhiteouts:
		x, err := pathXattrs(fdPath(dirfd) + "/" + e.Name())
		if err != nil {
			return 0, err
		}
		if _, ok := x[whiteoutXattr]; ok {
			return typeWhiteout, nil
		}
		return typ, nil
	default:
		return typ, nil
	}
}

func flattenEntry(ctx context.Context, out *foreign.Cursor, base string, c *contribution, v view) error {
	fail := func(op string, err error) error {
		return &fs.PathError{Op: op, Path: out.Level().Child(base).Short(), Err: err}
	}
	switch {
	case c.typ == typeWhiteout:
		if v.alone {
			return nil
		}
		if err := unix.Mknodat(out.FD(), base, unix.S_IFCHR, 0); err != nil {
			return fail("make whiteout", err)
		}
		if err := checkWhiteouts(out.FD()); err != nil {
			return fmt.Errorf("%s: %w", out.Level().Short(), err)
		}
		return nil
	case !c.typ.IsDir():
		if err := linkOrCopy(c.from.FD(), base, out.FD(), base); err != nil {
			return fail("link", err)
		}
		return nil
	}
	if err := unix.Mkdirat(out.FD(), base, 0o700); err != nil {
		return fail("mkdir", err)
	}
	all := append([]*foreign.Cursor{out}, c.dirs...)
	for _, c := range all {
		if err := c.Enter(base); err != nil {
			return err
		}
	}
	if err := flatten(ctx, out, c.dirs, v); err != nil {
		return err
	}
	for _, c := range all {
		if err := c.Leave(); err != nil {
			return err
		}
	}
	return nil
}

// duplicate copies a file that can have no more links.
func duplicate(from int, base string, to int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return duplicateFile(from, base, to, name, st.Size)
	case unix.S_IFLNK:
		target, err := readLinkAt(from, base)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, to, name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(to, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil {
			return err
		}
	}
	m, err := pathMeta(from, base, &st)
	if err != nil {
		return err
	}
	return m.setAt(to, name, st.Mode&unix.S_IFMT == unix.S_IFLNK)
}

func pathMeta(dirfd int, base string, st *unix.Stat_t) (*meta, error) {
	x, err := pathXattrs(fdPath(dirfd) + "/" + base)
	if err != nil {
		return nil, err
	}
	h, _ := headerOfStat(st)
	return &meta{mode: uint32(h.Mode), uid: h.Uid, gid: h.Gid, mtime: h.ModTime, xattrs: x}, nil
}

func duplicateFile(from int, base string, to int, name string, size int64) error {
	src, err := openFileAt(from, base)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	m, _, err := fdMeta(src)
	if err != nil {
		return err
	}
	dst, err := create(to, name)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	for e, err := range extents(src, size) {
		if err != nil {
			return err
		}
		for e.at < e.end {
			at := e.at
			n, err := unix.CopyFileRange(src, &e.at, dst, &at, int(min(e.end-e.at, 1<<30)), 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if n == 0 {
				return errShrunk
			}
		}
	}
	if err := unix.Ftruncate(dst, size); err != nil {
		return err
	}
	return m.setFD(dst)
}
