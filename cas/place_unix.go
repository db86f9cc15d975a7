//go:build unix

package cas

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ocurrent/obx/cas/userns"
)

// maxLinks is the kernel's own limit for one path.
const maxLinks = 40

// claim makes the store's directory, with those above it that are missing, and sees that it is this user's, and that nobody but this user and
// root can put something else in its place: no directory or link on the way belongs to another, and none that others can reach can be written
// by everybody, unless it is sticky, as /tmp is. A group that may write has been given that by the owner.
func claim(dir string) error {
	if err := checkWay("/"); err != nil {
		return err
	}
	at, todo := "/", strings.Split(dir, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..": // of a link; what leads here has no links
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			// Layers hold other systems' setuid programs and devices: nobody else may walk in.
			if err := os.Mkdir(next, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			info, err = os.Lstat(next)
		}
		if err != nil {
			return err
		}
		if info.Mode().Type() != fs.ModeSymlink {
			if err := checkWay(next); err != nil {
				return err
			}
			at = next
			continue
		}
		if err := checkOwner(next, info); err != nil {
			return err
		}
		if links++; links > maxLinks {
			return &fs.PathError{Op: "open", Path: next, Err: syscall.ELOOP}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	info, err := os.Lstat(at)
	if err != nil {
		return err
	}
	if uid := ownerOf(info); uid != os.Geteuid() {
		return refusal("it belongs to user %d, not to user %d who runs this: use a directory of your own", uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o002 != 0 && isOpen(filepath.Dir(at)) {
		return refusal("everybody can write to it: use a new directory in it, as %s, or give it mode 0700 if all that it has is yours", filepath.Join(at, "obx"))
	}
	return nil
}

// checkWay refuses a directory on the way to a store.
func checkWay(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 && isOpen(filepath.Dir(dir)) {
		return refusal("everybody can write to %s and so replace what is in it: take that permission away (chmod o-w), or use another directory", dir)
	}
	return checkOwner(dir, info)
}

// isOpen reports whether other users can go through a directory that was checked, and through all that are above it.
func isOpen(dir string) bool {
	for {
		info, err := os.Lstat(dir)
		if err != nil || info.Mode().Perm()&0o011 == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
		dir = filepath.Dir(dir)
	}
}

// checkOwner refuses what another user than this one and root has on the way to a store.
func checkOwner(name string, info fs.FileInfo) error {
	uid := ownerOf(info)
	if uid == 0 || uid == os.Geteuid() || uid == userns.Nobody() {
		return nil
	}
	return refusal("%s belongs to user %d, who could put something else in its place: use a directory whose parents belong to root or to user %d",
		name, uid, os.Geteuid())
}

// refusal says why a directory is no place for a store, for this user.
func refusal(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), fs.ErrPermission)
}

func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// closeToOthers takes the store's directory from all but its owner. One of an older obx, or one that was made by hand, is open to others.
func closeToOthers(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return err
	}
	return f.Chmod(0o700)
}
