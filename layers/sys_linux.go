package layers

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"maps"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// addSys completes a header from what the kernel says.
func addSys(h *tar.Header, sys any) inode {
	st, ok := sys.(*syscall.Stat_t)
	if !ok {
		return inode{}
	}
	h.Uid, h.Gid = int(st.Uid), int(st.Gid)
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if st.Nlink < 2 || h.Typeflag == tar.TypeDir {
		return inode{}
	}
	return inode{st.Dev, st.Ino}
}

// headerOfStat is headerOf without the allocations of a FileInfo. A socket's header has type 0.
func headerOfStat(st *unix.Stat_t) (tar.Header, inode) {
	h := tar.Header{
		Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		return h, inode{}
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if st.Nlink < 2 {
		return h, inode{}
	}
	return h, inode{st.Dev, st.Ino}
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// fileMode is the fs.FileMode of st_mode.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// openat is unix.Openat, again after a signal.
func openat(dirfd int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// openDirAt opens a directory that is not reached by a link.
func openDirAt(dirfd int, name string) (int, error) {
	return openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// openRoot opens a directory by its path, /proc/self/fd/N included.
func openRoot(path string) (int, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// openFileAt opens a regular file to be read once: reading it should not dirty its inode with a new access time.
func openFileAt(dirfd int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := openat(dirfd, name, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM { // another's file
		return openat(dirfd, name, flags, 0)
	}
	return fd, err
}

func readLinkAt(dirfd int, name string) (string, error) {
	var small [256]byte
	for buf := small[:]; ; buf = make([]byte, 4*len(buf)) {
		n, err := unix.Readlinkat(dirfd, name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
	}
}

// fdPath names what fd is, so that calls which take only paths reach it without following a link.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// fdXattrs reads all extended attributes of an open file.
func fdXattrs(fd int) (map[string]string, error) {
	return xattrs(
		func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) },
		func(key string, buf []byte) (int, error) { return unix.Fgetxattr(fd, key, buf) })
}

// pathXattrs reads all extended attributes of the file at path, whose directory is reached through an open one.
func pathXattrs(path string) (map[string]string, error) {
	return xattrs(
		func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) },
		func(key string, buf []byte) (int, error) { return unix.Lgetxattr(path, key, buf) })
}

func xattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string]string, error) {
	var small [512]byte
	keys, err := grow(small[:], list)
	if err == unix.ENOTSUP || len(keys) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m := make(map[string]string)
	var value [512]byte
	for key := range strings.SplitSeq(strings.TrimSuffix(string(keys), "\x00"), "\x00") {
		if !KeepXattr(key) && key != opaqueXattr && key != whiteoutXattr {
			continue
		}
		v, err := grow(value[:], func(buf []byte) (int, error) { return get(key, buf) })
		if err == unix.ENODATA { // an attribute that the file system lists but has not set
			continue
		}
		if err != nil {
			return nil, err
		}
		m[key] = string(v)
	}
	return m, nil
}

// grow calls read with a larger buffer until the answer fits.
func grow(buf []byte, read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.ERANGE || len(buf) > 1<<20 {
			return nil, err
		}
		buf = make([]byte, 8*len(buf))
	}
}

var (
	opaqueXattr   = OverlayXattr("opaque")
	whiteoutXattr = OverlayXattr("whiteout") // on empty files, in directories that are opaque "x"
	originXattr   = OverlayXattr("origin")   // empty: see checkWhiteouts
)

// A meta is what a file has besides its name, type, content and links.
type meta struct {
	mode     uint32 // permission and special bits
	uid, gid int
	mtime    time.Time
	xattrs   map[string]string
}

func (m *meta) equal(n *meta) bool {
	return m.mode == n.mode && m.uid == n.uid && m.gid == n.gid && m.mtime.Equal(n.mtime) && maps.Equal(m.xattrs, n.xattrs)
}

// dirMeta reads a directory's own attributes, by its path.
func dirMeta(path string) (*meta, error) {
	fd, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	m, _, err := fdMeta(fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// fdMeta reads an open file's attributes, and apart from them overlayfs's opaque mark.
func fdMeta(fd int) (m *meta, opaque string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, "", &fs.PathError{Op: "stat", Err: err}
	}
	xattrs, err := fdXattrs(fd)
	if err != nil {
		return nil, "", &fs.PathError{Op: "listxattr", Err: err}
	}
	opaque = xattrs[opaqueXattr]
	delete(xattrs, opaqueXattr)
	delete(xattrs, whiteoutXattr)
	return &meta{
		mode: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid), mtime: time.Unix(st.Mtim.Unix()), xattrs: xattrs,
	}, opaque, nil
}

func (m *meta) times() []unix.Timespec {
	return []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.Timespec{Sec: m.mtime.Unix(), Nsec: int64(m.mtime.Nanosecond())}}
}

// setFD gives an open file its attributes. The order counts: a new owner clears the set-id bits and
// capabilities, and a new mode changes an access ACL.
func (m *meta) setFD(fd int) error {
	if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
		return inNamespace("chown", err)
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return inNamespace("chmod", err)
	}
	for k, v := range m.xattrs {
		if err := unix.Fsetxattr(fd, k, []byte(v), 0); err != nil {
			return inNamespace("setxattr "+k, err)
		}
	}
	if err := unix.UtimesNanoAt(fd, "", m.times(), unix.AT_EMPTY_PATH); err != nil {
		return inNamespace("utimensat", err)
	}
	return nil
}

// setAt is setFD for what cannot be opened: links, devices, pipes.
func (m *meta) setAt(dirfd int, name string, link bool) error {
	if err := unix.Fchownat(dirfd, name, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return inNamespace("chown", err)
	}
	if !link {
		if err := unix.Fchmodat(dirfd, name, m.mode, 0); err != nil {
			return inNamespace("chmod", err)
		}
	}
	for k, v := range m.xattrs {
		if strings.HasPrefix(k, "user.") {
			continue // the kernel has none on these types, so no tree that was packed had any
		}
		if err := unix.Lsetxattr(fdPath(dirfd)+"/"+name, k, []byte(v), 0); err != nil {
			return inNamespace("setxattr "+k, err)
		}
	}
	if err := unix.UtimesNanoAt(dirfd, name, m.times(), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return inNamespace("utimensat", err)
	}
	return nil
}
