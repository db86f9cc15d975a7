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
	block := uint64(st.F_bsize)
	return space{
		size: uint64(st.F_blocks) * block, free: uint64(max(st.F_bavail, 0)) * block,
		inodes: uint64(st.F_files), freeInodes: uint64(st.F_ffree),
	}, nil
}
