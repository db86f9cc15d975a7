//go:build unix

package cas

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const errNoSpace, errQuota = unix.ENOSPC, unix.EDQUOT

// lockFile waits for the lock of f.
func lockFile(f *os.File, exclusive bool) error { return flock(f, exclusive, 0) }

// tryLockFile takes the lock of f, unless another has it.
func tryLockFile(f *os.File, exclusive bool) (bool, error) {
	err := flock(f, exclusive, unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

func unlockFile(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }

func flock(f *os.File, exclusive bool, how int) error {
	if exclusive {
		how |= unix.LOCK_EX
	} else {
		how |= unix.LOCK_SH
	}
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// removeLocked removes the file of a lock that is held, and releases the lock.
func removeLocked(f *os.File) error { return errors.Join(os.Remove(f.Name()), f.Close()) }

// withLocked calls f, which renames the directory that locks are in.
func withLocked(_ []*os.File, f func() error) error { return f() }
