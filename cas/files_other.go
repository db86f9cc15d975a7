//go:build !windows

package cas

import (
	"os"
	"time"
)

// Rename moves a file or directory, replacing a file.
func Rename(from, to string) error { return os.Rename(from, to) }

// whileBusy does something that others cannot be in the way of.
func whileBusy(do func() error) error { return do() }

// chmod sets the mode of an open file, whatever has its name by now.
func chmod(f *os.File, mode os.FileMode) error { return f.Chmod(mode) }

// setTime sets the time of last use.
func setTime(path string, t time.Time) error { return os.Chtimes(path, time.Time{}, t) }
