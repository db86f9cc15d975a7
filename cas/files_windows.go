package cas

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/windows"
)

// isBusy reports whether others are in the way, who remove or replace something.
func isBusy(err error) bool { return errors.Is(err, windows.ERROR_SHARING_VIOLATION) }

// whileBusy does something with a file again as long as Windows refuses for what others do with it: readers of a file that is replaced, who
// removes it, and virus scanners have it open for moments.
func whileBusy(do func() error) (err error) {
	for wait := time.Millisecond; wait <= 1024*time.Millisecond; wait *= 2 {
		err = do()
		if !errors.Is(err, windows.ERROR_ACCESS_DENIED) && !errors.Is(err, windows.ERROR_SHARING_VIOLATION) {
			return err
		}
		time.Sleep(wait)
	}
	return err
}

// Rename moves a file or directory, replacing a file.
func Rename(from, to string) error {
	err := whileBusy(func() error {
		err := os.Rename(from, to)
		if info, statErr := os.Lstat(to); err != nil && statErr == nil {
			if info.IsDir() {
				return errIsDir{err}
			}
			if isMarked(info) {
				_ = os.Chmod(to, 0o644) // a read-only file is not replaced
			}
		}
		return err
	})
	if _, ok := err.(errIsDir); ok {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: windows.ERROR_ALREADY_EXISTS} // it may be gone since
	}
	return err
}

// errIsDir says that a directory is in the way, which no waiting changes.
type errIsDir struct{ error }

// chmod sets the mode of an open file. By its name: a handle that only reads cannot.
func chmod(f *os.File, mode os.FileMode) error { return os.Chmod(f.Name(), mode) }

// setTime sets the time of last use, and keeps the durable mark: Wine's kernel drops it with that.
func setTime(path string, t time.Time) error {
	info, err := os.Lstat(path)
	if err == nil {
		err = os.Chtimes(path, time.Time{}, t)
	}
	if err == nil && isMarked(info) {
		err = os.Chmod(path, info.Mode())
	}
	return err
}
