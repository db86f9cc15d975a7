//go:build !windows

package cas

import "os"

// rename moves a file or directory, replacing a file.
func rename(from, to string) error { return os.Rename(from, to) }

// chmod sets the mode of an open file, whatever has its name by now.
func chmod(f *os.File, mode os.FileMode) error { return f.Chmod(mode) }
