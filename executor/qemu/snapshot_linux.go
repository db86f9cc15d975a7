package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// snapshot makes a directory, which must not exist, with all that another one of the same file system has, which others change meanwhile:
// directories of its own, and links to the files. Whatever they do to names after that, the snapshot has what it has. No link is
// followed.
//
// Files that are written to in place are the same in both.
func snapshot(dir, of string) error {
	from, err := openDir(unix.AT_FDCWD, of)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	if err := snapshotDir(unix.AT_FDCWD, dir, from); err != nil {
		return fmt.Errorf("take a snapshot of %s: %w", of, err)
	}
	return nil
}

func snapshotDir(at int, name string, from int) error {
	if err := unix.Mkdirat(at, name, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	to, err := openDir(at, name)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	entries, err := os.ReadDir(procFD(from))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := snapshotEntry(to, from, e.Name()); err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
	}
	return copyAttributes(to, from)
}

// snapshotEntry takes what has a name, be it a directory or not. It may become the other at any time: then it is looked at again.
func snapshotEntry(to, from int, name string) error {
	for try := 1; ; try++ {
		sub, err := openDir(from, name)
		if err == nil {
			defer unix.Close(sub)
			return snapshotDir(to, name, sub)
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			err = unix.Linkat(from, name, to, name, 0)
		}
		if errors.Is(err, unix.EPERM) && try < 20 { // what the kernel says of a directory
			continue
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
}
