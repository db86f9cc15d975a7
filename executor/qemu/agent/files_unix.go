//go:build unix

package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A state changes with whatever is done to a file.
type state struct {
	inode    uint64
	uid, gid uint32
	changed  unix.Timespec
}

func stateOf(name string) (state, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return state{}, &os.PathError{Op: "lstat", Path: name, Err: err}
	}
	return state{uint64(st.Ino), st.Uid, st.Gid, st.Ctim}, nil
}

func setUser(at string, uid, gid int) error { return os.Lchown(at, uid, gid) }

// setOwner gives a file all that its header says but the time.
func setOwner(at string, h *tar.Header) error {
	if err := os.Lchown(at, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(at, uint32(h.Mode&0o7777)); err != nil { // after chown, which takes bits away
			return &os.PathError{Op: "chmod", Path: at, Err: err}
		}
	}
	return setXattrs(at, h)
}

func setTime(at string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) { // a later layer of the same tar has put another file there
		return nil
	}
	return err
}

func makeSpecial(at string, h *tar.Header) error {
	if h.Typeflag != tar.TypeFifo {
		return fmt.Errorf("it is a %q, which is not made in machines", h.Typeflag)
	}
	return unix.Mkfifo(at, 0o600)
}
