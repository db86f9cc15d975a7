//go:build unix

package registry

import "syscall"

// isStoreErrno reports whether an error that came while a layer was unpacked is one of the store's place or of this process, not of the entry that
// was being made.
func isStoreErrno(e syscall.Errno) bool {
	switch e {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES, syscall.ESTALE, syscall.EFBIG:
		return true
	}
	return false
}
