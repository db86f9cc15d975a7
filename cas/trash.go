package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/ocurrent/obx/cas/foreign"
)

// Trash removes a path inside the store: renamed to trash/ now, deleted in the background. It is no error if there is
// nothing.
func (s *Store) Trash(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(path, s.dir+string(filepath.Separator)) {
		return fmt.Errorf("trash %s: it is not in the store %s", path, s.dir)
	}
	return s.discard(path)
}

// discard makes path vanish at once, and its bytes some time later.
func (s *Store) discard(path string) error {
	err := Rename(path, s.path(trashDir, s.fresh()))
	if isFull(err) {
		// Even a rename may need a block for the directory. Nothing of the store is valid when its epoch is gone.
		_ = os.Remove(filepath.Join(path, epochFile))
		err = foreign.RemoveAll(context.Background(), path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("move to trash: %w", err)
	}
	select {
	case s.trashed <- struct{}{}:
	default:
	}
	return nil
}

const (
	// Deleting many inodes slows ext4 down for minutes (it does not reuse them at once, and scans past them), so that a
	// short run rather leaves the work to a later one...
	trashDelay = 2 * time.Second
	// ... but not for ever.
	trashBacklog = 64
)

// sweepTrash deletes what is in the trash until Close, at the lowest priority.
func (s *Store) sweepTrash() {
	timer := time.NewTimer(trashDelay)
	defer timer.Stop()
	delay := func() time.Duration {
		if _, low, _ := s.room(); low {
			return 0
		}
		return trashDelay
	}
	if names, err := os.ReadDir(s.path(trashDir)); err == nil && len(names) >= trashBacklog || delay() == 0 {
		timer.Reset(0)
	}
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		// The priority is the thread's; a thread that is still locked at the end of its goroutine ends with it.
		runtime.LockOSThread()
		lowerPriority()
		// One process is enough. What cannot be deleted stays until the next time.
		if lock, err := tryAcquire(s.path(locksDir, ".trash"), true); err == nil && lock != nil {
			_ = s.emptyTrash(s.ctx)
			_ = lock.Close()
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.trashed:
			timer.Reset(delay())
		}
	}
}

// EmptyTrash deletes what is in the trash now, where that cannot wait. What cannot be deleted stays until the next time.
func (s *Store) EmptyTrash(ctx context.Context) { _ = s.emptyTrash(ctx) }

// emptyTrash deletes what is in the trash now. Several may do so at once.
func (s *Store) emptyTrash(ctx context.Context) error {
	entries, err := os.ReadDir(s.path(trashDir))
	if err != nil {
		return err
	}
	// In any order, so that two do not get in each other's way.
	rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		errs = append(errs, foreign.RemoveAll(ctx, s.path(trashDir, e.Name())))
	}
	return errors.Join(errs...)
}
