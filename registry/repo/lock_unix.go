//go:build unix

package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long the lock of a directory is waited for. obx has it for moments, but whoever may read the directory can keep it.
const lockPatience = time.Minute

// lockDir waits until no other process changes a directory under this lock. The directory itself is locked, so that nothing is left in it.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0) // of a pipe that somebody has put there, no writer is waited for
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		if time.Since(start) > lockPatience {
			f.Close()
			return nil, fmt.Errorf("lock %s: another process has kept the lock for %v: see who (fuser -v %[1]s), and publish again", dir, lockPatience)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			f.Close()
			return nil, err
		}
	}
}
