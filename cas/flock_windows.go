package cas

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

const errNoSpace, errQuota = windows.ERROR_HANDLE_DISK_FULL, windows.ERROR_DISK_FULL

// Locks of Windows keep others from reading what they cover, so they cover one byte far beyond any content.
const lockOffsetHigh = 1 << 30

// lockFile waits for the lock of f.
func lockFile(f *os.File, exclusive bool) error { return lockFileEx(f, exclusive, 0) }

// tryLockFile takes the lock of f, unless another has it.
func tryLockFile(f *os.File, exclusive bool) (bool, error) {
	err := lockFileEx(f, exclusive, windows.LOCKFILE_FAIL_IMMEDIATELY)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}

func unlockFile(f *os.File) error {
	return windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, &windows.Overlapped{OffsetHigh: lockOffsetHigh})
}

func lockFileEx(f *os.File, exclusive bool, flags uint32) error {
	if exclusive {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	return windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{OffsetHigh: lockOffsetHigh})
}

// removeLocked removes the file of a lock that is held, and releases the lock. A file that is open cannot be removed
// here: whoever opens it in between keeps it, which is right.
func removeLocked(f *os.File) error {
	err := f.Close()
	_ = os.Remove(f.Name())
	return err
}

// withLocked calls f, which renames the directory that locks are in: the rename fails while any file is open in it,
// so that it excludes others itself.
func withLocked(locks []*os.File, f func() error) error {
	for _, l := range locks {
		_ = l.Close()
	}
	return f()
}
