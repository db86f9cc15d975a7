package cachedir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// Apply moves a change, a directory in overlay form that nobody else uses, into a directory on the same file system that
// others use meanwhile. Files appear whole. No link is followed in either.
func Apply(ctx context.Context, target, upper string) error {
	to, err := foreign.NewCursor(target, 0)
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := foreign.NewCursor(upper, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := applyDir(ctx, to, from); err != nil {
		return fmt.Errorf("apply a change: %w", err)
	}
	return nil
}

func applyDir(ctx context.Context, to, from *foreign.Cursor) error {
	names, err := from.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := applyEntry(ctx, to, from, name); err != nil {
			return err
		}
	}
	return copyAttributes(to.FD(), from.FD())
}

// copyAttributes gives a directory the attributes of another, as far as a cache needs them.
func copyAttributes(to, from int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(to, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

func applyEntry(ctx context.Context, to, from *foreign.Cursor, name string) error {
	at := from.Level().Child(name)
	fail := func(op string, err error) error {
		if err == nil {
			return nil
		}
		return &fs.PathError{Op: op, Path: at.Short(), Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from.FD(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("lstat", err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		return fail("remove", foreign.RemoveAt(ctx, to.FD(), name))
	}
	if kind == unix.S_IFDIR {
		if merged, err := applySubdir(ctx, to, from, name); merged || err != nil {
			return err
		}
	}
	// A file replaces a file by its rename alone; anything else has to go before.
	var old unix.Stat_t
	err := unix.Fstatat(to.FD(), name, &old, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && (kind == unix.S_IFDIR || old.Mode&unix.S_IFMT == unix.S_IFDIR) {
		err = foreign.RemoveAt(ctx, to.FD(), name)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fail("replace", err)
	}
	return fail("move", unix.Renameat(from.FD(), name, to.FD(), name))
}

// applySubdir merges a directory of the change into one that is there. If there is none, or the change's hides it, it only makes the change's
// ready to be moved.
func applySubdir(ctx context.Context, to, from *foreign.Cursor, name string) (merged bool, err error) {
	if err := from.Enter(name); err != nil {
		return false, err
	}
	var mark [1]byte
	n, _ := unix.Fgetxattr(from.FD(), opaqueXattr, mark[:])
	if n != 1 {
		err := to.Enter(name)
		if err == nil {
			if err := applyDir(ctx, to, from); err != nil {
				return false, err
			}
			return true, cmp.Or(to.Leave(), from.Leave())
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return false, err
		}
	}
	if err := dropWhiteouts(from); err != nil {
		return false, err
	}
	return false, from.Leave()
}

const opaqueXattr = "trusted.overlay.opaque"

// dropWhiteouts removes what means nothing in a directory that has nothing below it: where a cursor is, and in all below.
func dropWhiteouts(dir *foreign.Cursor) error {
	_ = unix.Fremovexattr(dir.FD(), opaqueXattr) // it mostly is not there
	names, err := dir.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(dir.FD(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			if err := unix.Unlinkat(dir.FD(), name, 0); err != nil {
				return err
			}
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			if err := dir.Enter(name); err != nil {
				return err
			}
			if err := cmp.Or(dropWhiteouts(dir), dir.Leave()); err != nil {
				return err
			}
		}
	}
	return nil
}
