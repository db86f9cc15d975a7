package rootfs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/layers"
)

// maxLinks is how many symbolic links one path may lead through, as the kernel's own limit.
const maxLinks = 40

// A RootDir is the root of a file system that is not trusted: paths in it are looked up inside it, wherever its links
// point. Nothing may change it meanwhile, but for what is mounted over it.
type RootDir struct {
	FD       int
	uid, gid int         // who looks things up: directories that this user may not search are errors
	over     []overMount // what will be mounted on it, those inside others after them
	closed   []string    // directories, as "dev", that no path leads into: what the root has there, a process does not see
	lenient  bool        // links of what is mounted over it are followed, too, and ".." leads back from what is missing

	// known has what stat found in the root itself: paths share their directories. Whoever makes something in it clears this. It may be nil.
	known map[string]found
}

// A found is what was found at a path.
type found struct {
	stat unix.Stat_t
	err  error
}

// An overMount is a cache that will be mounted on a RootDir. Steps may write to it at any time.
type overMount struct {
	at string // a path of the root that resolve gave
	fd int
}

// covering is the mount that a path is on, or in, and the path in that; -1 if that is the root.
func (r RootDir) covering(name string) (i int, inside string) {
	for i, m := range slices.Backward(r.over) {
		if below(name, m.at) {
			return i, strings.TrimPrefix(name[len(m.at):], "/")
		}
	}
	return -1, name
}

// openAt opens a path that resolve gave; no component of it is a link.
func (r RootDir) openAt(name string, flags int) (int, error) {
	root := r.FD
	i, name := r.covering(name)
	if i >= 0 {
		root = r.over[i].fd
	}
	return foreign.OpenBeneath(root, cmp.Or(name, "."), flags)
}

// stat reads the metadata of a path that resolve gave.
func (r RootDir) stat(name string) (unix.Stat_t, error) {
	if i, _ := r.covering(name); i >= 0 || r.known == nil {
		return r.statNow(name)
	}
	f, ok := r.known[name]
	if !ok {
		f.stat, f.err = r.statNow(name)
		r.known[name] = f
	}
	return f.stat, f.err
}

func (r RootDir) statNow(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := r.openAt(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

// A place is where a path leads to: the part that exists, free of links, and the names below it that do not.
type place struct {
	found   string // relative to the root; "" is the root
	missing []string
	stat    unix.Stat_t // of found
}

func (p place) path() string { return path.Join(append([]string{p.found}, p.missing...)...) }

// resolve follows all links of a path, the last component's too, but unless it is lenient none of what is mounted over the root: where
// that leads, a step may have changed by the time that something is done there. ".." above the root is the root; ".." below something missing
// is ENOENT, and whatever follows a file, be it a slash alone, is ENOTDIR.
func (r RootDir) resolve(name string) (place, error) {
	var at place
	var err error
	if at.stat, err = r.stat(""); err != nil {
		return at, err
	}
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		if len(at.missing) == 0 { // also before "", which a slash at the end leaves, "." and ".."
			if at.stat.Mode&unix.S_IFMT != unix.S_IFDIR {
				return at, unix.ENOTDIR
			}
			if c != "" && r.uid != 0 && !mayExecute(at.stat, r.uid, r.gid) {
				return at, unix.EACCES
			}
		}
		switch c {
		case "", ".":
			continue
		case "..":
			if n := len(at.missing); n > 0 && r.lenient {
				at.missing = at.missing[:n-1]
				continue
			} else if n > 0 {
				return at, unix.ENOENT
			}
			at.found = parentOf(at.found)
			if at.stat, err = r.stat(at.found); err != nil {
				return at, err
			}
			continue
		}
		if len(at.missing) > 0 {
			at.missing = append(at.missing, c)
			continue
		}
		next := path.Join(at.found, c)
		if slices.Contains(r.closed, next) {
			return at, fmt.Errorf("what is below /%s belongs to the sandbox", next)
		}
		st, err := r.stat(next)
		switch {
		case errors.Is(err, unix.ENOENT):
			at.missing = append(at.missing, c)
			continue
		case err != nil:
			return at, err
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			if cache, _ := r.covering(next); cache >= 0 && !r.lenient {
				return at, fmt.Errorf("/%s is a link, and in a cache", next)
			}
			if links++; links > maxLinks {
				return at, unix.ELOOP
			}
			target, err := r.readLink(next)
			if err != nil {
				return at, err
			}
			if path.IsAbs(target) {
				at.found = ""
				if at.stat, err = r.stat(""); err != nil {
					return at, err
				}
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		at.found, at.stat = next, st
	}
	return at, nil
}

func (r RootDir) readLink(name string) (string, error) {
	fd, err := r.openAt(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	return string(buf[:max(n, 0)]), err
}

// open opens what a path leads to, for reading, if it is a regular file.
func (r RootDir) open(name string) (*os.File, unix.Stat_t, error) {
	at, err := r.resolve(name)
	if err != nil {
		return nil, at.stat, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if len(at.missing) > 0 {
		return nil, at.stat, &fs.PathError{Op: "open", Path: name, Err: unix.ENOENT}
	}
	if at.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, at.stat, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	fd, err := r.openAt(at.found, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, at.stat, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), at.stat, nil
}

// dirAttrs is what a layer records of a directory itself.
type dirAttrs struct {
	mode     uint32
	uid, gid uint32
	mtime    unix.Timespec
	atime    unix.Timespec // put back with mtime, not compared
	xattrs   map[string]string
}

// attrsOf reads the attributes of an open directory.
func attrsOf(fd int) (dirAttrs, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return dirAttrs{}, err
	}
	x, err := xattrsOf(ProcFD(fd))
	return dirAttrs{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: st.Mtim, atime: st.Atim, xattrs: x}, err
}

func (a dirAttrs) equal(b dirAttrs) bool {
	return a.mode == b.mode && a.uid == b.uid && a.gid == b.gid && a.mtime == b.mtime && maps.Equal(a.xattrs, b.xattrs)
}

func setTimes(dir string, atime, mtime unix.Timespec) error {
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{atime, mtime}, 0); err != nil {
		return &fs.PathError{Op: "set times of", Path: dir, Err: err}
	}
	return nil
}

// xattrsOf reads extended attributes but for overlayfs's own.
func xattrsOf(name string) (map[string]string, error) {
	size, err := unix.Listxattr(name, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "list attributes of", Path: name, Err: err}
	}
	list := make([]byte, size)
	if size, err = unix.Listxattr(name, list); err != nil {
		return nil, &fs.PathError{Op: "list attributes of", Path: name, Err: err}
	}
	var x map[string]string
	for key := range bytes.SplitSeq(bytes.TrimRight(list[:size], "\x00"), []byte{0}) {
		k := string(key)
		if k == "" || layers.IsOverlayXattr(k) {
			continue
		}
		n, err := unix.Getxattr(name, k, nil)
		if err != nil {
			return nil, fmt.Errorf("read %s of %s: %w", k, name, err)
		}
		value := make([]byte, n)
		if n > 0 {
			if n, err = unix.Getxattr(name, k, value); err != nil {
				return nil, fmt.Errorf("read %s of %s: %w", k, name, err)
			}
		}
		if x == nil {
			x = map[string]string{}
		}
		x[k] = string(value[:n])
	}
	return x, nil
}

// isEmpty reports whether a directory has no entries.
func isEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) == 0, nil
}
