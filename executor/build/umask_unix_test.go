//go:build unix

package build

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A file with others' files in it is as open as its user makes files.
func TestWriteFileMode(t *testing.T) {
	dest := filepath.Join(t.TempDir(), "out.tar")
	defer syscall.Umask(syscall.Umask(0o077))
	if err := toFile(dest, nil, func(w io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dest); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
