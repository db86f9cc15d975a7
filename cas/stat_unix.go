//go:build unix

package cas

import (
	"io/fs"
	"syscall"
)

// sameOwner compares the owners of two files.
func sameOwner(a, b fs.FileInfo) bool {
	x, ok := a.Sys().(*syscall.Stat_t)
	y, ok2 := b.Sys().(*syscall.Stat_t)
	return ok && ok2 && x.Uid == y.Uid && x.Gid == y.Gid
}

// An inode names a file that may have several links.
type inode struct{ dev, ino uint64 }

// diskUse is what a file takes on disk, and which inode it is if it has several links.
func diskUse(info fs.FileInfo) (bytes int64, id inode, shared bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Size(), inode{}, false
	}
	id = inode{dev: uint64(st.Dev), ino: st.Ino}
	return st.Blocks * 512, id, st.Nlink > 1 && !info.IsDir()
}
