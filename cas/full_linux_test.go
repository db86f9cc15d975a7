package cas

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What is noted of uses is behind them by up to touchEvery. A prune allows for that.
func TestPruneSparesWhatWasJustUsed(t *testing.T) {
	for _, tt := range []struct {
		noted time.Duration // ago
		used  bool          // now
		goes  bool
	}{
		{noted: 4 * time.Minute},
		{noted: 5*time.Minute + 30*time.Second},
		{noted: 7 * time.Minute, goes: true},
		{noted: 7 * time.Minute, used: true},
		{noted: 50 * time.Minute, used: true},
	} {
		s := openStore(t, t.TempDir())
		if err := s.PutResult("d", &Result{Key: "k"}); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-tt.noted)
		if err := setTime(s.resultPath("d", "k"), at); err != nil {
			t.Fatal(err)
		}
		if tt.used {
			s.Touch("d", "k")
		}
		s.Close()
		other := openStore(t, s.Dir())
		if r := prune(t, other, PruneOptions{OlderThan: 5 * time.Minute}); (r.Results == 1) != tt.goes {
			t.Errorf("noted %v ago, used %v: removed %d", tt.noted, tt.used, r.Results)
		}
	}
}

func TestTrashIsCounted(t *testing.T) {
	s := openStore(t, t.TempDir())
	dir := s.path(trashDir, "left")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Trash < 1<<20 || u.Other > 1<<19 {
		t.Errorf("%+v, %v", u, err)
	}
	if r, err := s.Prune(t.Context(), PruneOptions{DryRun: true}); err != nil || r.Trash < 1<<20 || r.Bytes < r.Trash {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := s.Prune(t.Context(), PruneOptions{}); err != nil || r.Trash < 1<<20 {
		t.Errorf("%+v, %v", r, err)
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Trash != 0 {
		t.Errorf("after: %+v, %v", u, err)
	}
}

func TestFullSaysWhichDisk(t *testing.T) {
	s := openStore(t, t.TempDir())
	full := func(path string) error {
		return fmt.Errorf("do: %w", &fs.PathError{Op: "write", Path: path, Err: syscall.ENOSPC})
	}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("x"), false},
		{full(s.path(tmpDir, "x")), true},
		{full("/elsewhere/out.tar"), false},
		{full(s.Dir() + "2/x"), false},
	} {
		got := s.Full(tt.err)
		if is := errors.As(got, new(*FullError)); is != tt.want || !errors.Is(got, tt.err) {
			t.Errorf("%v: got %v", tt.err, got)
		}
		if tt.want && (!strings.Contains(got.Error(), "obx cache prune") || !strings.Contains(got.Error(), s.Dir())) {
			t.Errorf("got %v", got)
		}
	}
}

// What cannot be written for want of room is written again when the trash is gone.
func TestWithRoom(t *testing.T) {
	s := openStore(t, t.TempDir())
	tries := 0
	do := func() error { tries++; return syscall.ENOSPC }
	if err := s.WithRoom(t.Context(), do); !errors.Is(err, syscall.ENOSPC) || tries != 1 {
		t.Errorf("without trash: %d tries, %v", tries, err)
	}
	if err := os.MkdirAll(s.path(trashDir, "x/y"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := s.WithRoom(t.Context(), func() error {
		if _, err := os.Lstat(s.path(trashDir, "x")); err == nil {
			return syscall.ENOSPC
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
