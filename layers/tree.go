package layers

import (
	"archive/tar"
	"io/fs"
	"strings"
)

// A Tree reads the files of a root file system, never following a link out of it: names are fs.FS paths, links are
// never followed by any method. FileInfo.Sys is *syscall.Stat_t on Unix, or *tar.Header.
type Tree interface {
	fs.FS // Open of a link fails
	Lstat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	ReadLink(name string) (string, error)
	Xattrs(name string) (map[string]string, error)
}

// KeepXattr reports whether an extended attribute is part of a layer. Labels of security modules are the host's
// (SELinux, IMA, Smack), and what IsOverlayXattr names is overlayfs's.
func KeepXattr(key string) bool {
	switch {
	case key == capabilityXattr, key == "system.posix_acl_access", key == "system.posix_acl_default":
		return true
	case strings.HasPrefix(key, "user."), strings.HasPrefix(key, "trusted."):
		return !IsOverlayXattr(key)
	}
	return false
}

const (
	overlayXattrs     = "trusted.overlay."
	userOverlayXattrs = "user.overlay."
	capabilityXattr   = "security.capability"
)

// unixMode gives the permission and special bits as Unix and tar write them.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		mode |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		mode |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	return mode
}

// headerOf begins the tar header of a file: all but its name, link target and extended attributes. The inode tells
// hard links apart; it is zero where nothing can be said.
func headerOf(fi fs.FileInfo) (tar.Header, inode) {
	if h, ok := fi.Sys().(*tar.Header); ok {
		return tar.Header{
			Typeflag: h.Typeflag, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, Size: h.Size,
			Devmajor: h.Devmajor, Devminor: h.Devminor, Linkname: h.Linkname,
		}, inode{}
	}
	h := tar.Header{Mode: int64(unixMode(fi.Mode())), ModTime: fi.ModTime()}
	switch fi.Mode().Type() {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice:
		h.Typeflag = tar.TypeBlock
	case fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag = tar.TypeChar
	}
	return h, addSys(&h, fi.Sys())
}

// An inode names a file that may have several names.
type inode struct{ dev, ino uint64 }
