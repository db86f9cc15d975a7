//go:build !unix

package registry

import "syscall"

// isStoreErrno: layers are not unpacked here, and all errors are the store's.
func isStoreErrno(syscall.Errno) bool { return true }
