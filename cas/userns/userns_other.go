//go:build !linux

package userns

// Inside reports whether this process is in another user namespace than the machine's own: there are none but on Linux.
func Inside() bool { return false }

// Nobody is no user.
func Nobody() int { return -1 }

// HasUser reports whether the namespace has a user.
func HasUser(int) bool { return true }

// HasGroup reports whether the namespace has a group.
func HasGroup(int) bool { return true }
