//go:build unix

package repo

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// Whoever may read a directory can lock it for ever; whoever owns the one above can put a pipe in its place.
func TestLockDirEnds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		unlock, err := lockDir(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		began := time.Now()
		if _, err := lockDir(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "another process has kept the lock") {
			t.Errorf("a lock that is kept: %v", err)
		}
		if took := time.Since(began); took < lockPatience || took > lockPatience+time.Second {
			t.Errorf("it was waited for %v", took)
		}
	})
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
