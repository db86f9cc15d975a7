//go:build unix && !openbsd

package cas

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// diskSpace tells how much room is on the disk that dir is on.
func diskSpace(dir string) (space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return space{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	block := uint64(st.Bsize)
	return space{
		size: uint64(st.Blocks) * block, free: uint64(max(st.Bavail, 0)) * block,
		inodes: uint64(st.Files), freeInodes: uint64(max(st.Ffree, 0)),
	}, nil
}
