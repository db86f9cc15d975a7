package cas

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/windows"
)

// rename moves a file or directory, replacing a file. Readers of the old file, and virus scanners of the new one,
// have them open for moments, during which Windows refuses.
func rename(from, to string) error {
	var err error
	for wait := time.Millisecond; wait < 500*time.Millisecond; wait *= 2 {
		err = os.Rename(from, to)
		if !errors.Is(err, windows.ERROR_ACCESS_DENIED) && !errors.Is(err, windows.ERROR_SHARING_VIOLATION) {
			return err
		}
		info, statErr := os.Lstat(to)
		switch {
		case statErr != nil:
		case info.IsDir():
			return err
		case isMarked(info):
			_ = os.Chmod(to, 0o644) // a read-only file is not replaced
		}
		time.Sleep(wait)
	}
	return err
}

// chmod sets the mode of an open file. By its name: a handle that only reads cannot.
func chmod(f *os.File, mode os.FileMode) error { return os.Chmod(f.Name(), mode) }
