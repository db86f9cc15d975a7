package cas

import (
	"os"

	"golang.org/x/sys/unix"
)

// startWriteback has a range of a file written to the disk, and does not wait. It only saves time: errors come again
// with the sync.
func startWriteback(f *os.File, offset, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), offset, n, unix.SYNC_FILE_RANGE_WRITE)
}
