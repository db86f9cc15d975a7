package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// applyChange moves a change, a directory in overlay form that nobody else uses, into a directory on the same file system that
// others use meanwhile. Files appear whole. No link is followed in either.
func applyChange(target, upper string) error {
	to, err := openDir(unix.AT_FDCWD, target)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	from, err := openDir(unix.AT_FDCWD, upper)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	if err := applyDir(to, from); err != nil {
		return fmt.Errorf("apply a change: %w", err)
	}
	return nil
}

// openDir opens a directory, which must not be a link.
func openDir(at int, name string) (int, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func applyDir(to, from int) error {
	entries, err := os.ReadDir(procFD(from))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := applyEntry(to, from, e.Name()); err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
	}
	return copyAttributes(to, from)
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

func applyEntry(to, from int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		return remove(to, name)
	}
	if kind == unix.S_IFDIR {
		sub, err := openDir(from, name)
		if err != nil {
			return err
		}
		defer unix.Close(sub)
		var mark [1]byte
		n, _ := unix.Fgetxattr(sub, "trusted.overlay.opaque", mark[:])
		old, err := openDir(to, name)
		if err == nil && n != 1 {
			defer unix.Close(old)
			return applyDir(old, sub)
		}
		if err == nil {
			unix.Close(old)
		}
		if n == 1 {
			if err := unix.Fremovexattr(sub, "trusted.overlay.opaque"); err != nil {
				return err
			}
		}
		if err := remove(to, name); err != nil {
			return err
		}
		if err := dropWhiteouts(sub); err != nil {
			return err
		}
		return unix.Renameat(from, name, to, name)
	}
	if old, err := openDir(to, name); err == nil {
		unix.Close(old)
		if err := remove(to, name); err != nil {
			return err
		}
	}
	return unix.Renameat(from, name, to, name)
}

// dropWhiteouts removes what means nothing in a directory that has nothing below it.
func dropWhiteouts(dir int) error {
	entries, err := os.ReadDir(procFD(dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			if err := unix.Unlinkat(dir, e.Name(), 0); err != nil {
				return err
			}
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			sub, err := openDir(dir, e.Name())
			if err != nil {
				return err
			}
			_ = unix.Fremovexattr(sub, "trusted.overlay.opaque") // it mostly is not there
			err = dropWhiteouts(sub)
			unix.Close(sub)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// remove removes a name and all below it.
func remove(dir int, name string) error {
	err := os.RemoveAll(filepath.Join(procFD(dir), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
