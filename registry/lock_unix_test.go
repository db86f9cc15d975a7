//go:build unix

package registry

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whoever may read a directory can lock it for ever; whoever owns the one above can put a pipe in its place.
func TestLockDirEnds(t *testing.T) {
	old := lockPatience
	t.Cleanup(func() { lockPatience = old })
	lockPatience = 50 * time.Millisecond
	dir := t.TempDir()
	unlock, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := lockDir(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "another process has kept the lock") {
		t.Errorf("a lock that is kept: %v", err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := lockDir(t.Context(), pipe)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a pipe is locked")
		}
	case <-time.After(5 * time.Second):
		t.Error("a pipe's other end is waited for")
	}
}
