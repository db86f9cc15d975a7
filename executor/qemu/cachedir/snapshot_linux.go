package cachedir

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/layers"
)

// Snapshot makes a directory, which must not exist, with all that another one of the same file system has, which others change meanwhile:
// directories of its own, and links to the files. Whatever they do to names after that, the snapshot has what it has. No link is
// followed.
//
// Files that are written to in place are the same in both.
func Snapshot(dir, of string) error {
	fail := func(err error) error { return fmt.Errorf("take a snapshot of %s: %w", of, err) }
	from, err := foreign.NewCursor(of, 0)
	if err != nil {
		return fail(err)
	}
	defer from.Close()
	if err := unix.Mkdir(dir, 0o700); err != nil {
		return fail(&fs.PathError{Op: "mkdir", Path: dir, Err: err})
	}
	to, err := foreign.NewCursor(dir, 0)
	if err != nil {
		return fail(err)
	}
	defer to.Close()
	if err := snapshotDir(to, from); err != nil {
		return fail(err)
	}
	return nil
}

func snapshotDir(to, from *foreign.Cursor) error {
	names, err := from.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := layers.CheckDepth(from.Level(), name); err != nil {
			return err
		}
		if err := snapshotEntry(to, from, name); err != nil {
			return err
		}
	}
	return copyAttributes(to.FD(), from.FD())
}

// snapshotEntry takes what has a name, be it a directory or not. It may become the other at any time: then it is looked at again.
func snapshotEntry(to, from *foreign.Cursor, name string) error {
	for try := 1; ; try++ {
		err := from.Enter(name)
		if err == nil {
			return snapshotSubdir(to, from, name)
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			err = unix.Linkat(from.FD(), name, to.FD(), name, 0)
		}
		if errors.Is(err, unix.EPERM) && try < 20 { // what the kernel says of a directory
			continue
		}
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &fs.PathError{Op: "snapshot", Path: from.Level().Child(name).Short(), Err: err}
	}
}

// snapshotSubdir takes the directory that from has just entered.
func snapshotSubdir(to, from *foreign.Cursor, name string) error {
	if err := unix.Mkdirat(to.FD(), name, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: to.Level().Child(name).Short(), Err: err}
	}
	if err := to.Enter(name); err != nil {
		return err
	}
	if err := snapshotDir(to, from); err != nil {
		return err
	}
	return cmp.Or(to.Leave(), from.Leave())
}
