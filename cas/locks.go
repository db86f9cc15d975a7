package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A Lock is held until Unlock.
type Lock struct {
	store *Store
	file  *os.File
	log   string
	once  sync.Once
}

// Lock waits until this process alone may build key in domain. The lock dies with the process. Within one process
// it excludes other goroutines too.
func (s *Store) Lock(ctx context.Context, domain, key string) (*Lock, error) {
	var l *Lock
	err := poll(ctx, func() (bool, error) {
		var err error
		l, err = s.TryLock(domain, key)
		return l != nil, err
	})
	return l, err
}

// TryLock is Lock that does not wait: nil if another has it.
func (s *Store) TryLock(domain, key string) (*Lock, error) {
	if err := CheckDomain(domain); err != nil {
		return nil, err
	}
	file, err := tryAcquire(s.path(locksDir, domain, escape(key)+lockSuffix), true)
	if file == nil || err != nil {
		return nil, err
	}
	l := &Lock{store: s, file: file, log: s.RunningLog(domain, key)}
	if err := emptyLog(l.log); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", key, err), removeLocked(file))
	}
	if err := s.hold(l); err != nil {
		l.Unlock()
		return nil, err
	}
	return l, nil
}

const (
	lockSuffix = ".lock"
	logSuffix  = ".log"
)

// LogPath is a file that the holder writes the running step's log to, and that waiters follow
// (Store.RunningLog gives them its path). It is a new, empty file when the lock is taken, and goes with Unlock: who
// has it open reads on to its end.
func (l *Lock) LogPath() string { return l.log }

// Unlock releases the lock. Safe to call again, and after the Store was closed.
func (l *Lock) Unlock() {
	l.once.Do(func() {
		l.store.letGo(l)
		// Errors do not matter: a log that stays is emptied by the next holder, and closing the file releases its lock.
		_ = os.Remove(l.log)
		_ = removeLocked(l.file)
	})
}

// Close is Unlock.
func (l *Lock) Close() error {
	l.Unlock()
	return nil
}

// RunningLog is the path of the log that the present holder of key's lock writes.
func (s *Store) RunningLog(domain, key string) string {
	return s.path(locksDir, escape(domain), escape(key)+logSuffix)
}

// emptyLog replaces the log of a holder that died. Its followers keep the old file.
func emptyLog(path string) error {
	_ = os.Remove(path) // fails on Windows while it is followed
	f, err := openFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	return f.Close()
}

// tryAcquire opens and locks a file, which it makes if it is missing; nil if another has the lock.
func tryAcquire(path string, exclusive bool) (*os.File, error) {
	for {
		f, err := openFile(path, os.O_RDWR|os.O_CREATE)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		got, err := tryLockFile(f, exclusive)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		if !got {
			return nil, f.Close()
		}
		if isStill(f, path) {
			return f, nil
		}
		_ = f.Close()
	}
}

// acquire is tryAcquire that waits.
func acquire(ctx context.Context, path string, exclusive bool) (*os.File, error) {
	var f *os.File
	err := poll(ctx, func() (bool, error) {
		var err error
		f, err = tryAcquire(path, exclusive)
		return f != nil, err
	})
	return f, err
}

// tryExisting locks a file that is there; nil if another has the lock or the file is gone.
func tryExisting(path string) *os.File {
	f, err := openFile(path, os.O_RDWR)
	if err != nil {
		return nil
	}
	if got, err := tryLockFile(f, true); err == nil && got && isStill(f, path) {
		return f
	}
	_ = f.Close()
	return nil
}

// createLocked makes a file and locks it; nil if somebody has removed it between.
func createLocked(path string) (*os.File, error) {
	f, err := openFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f, true); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close(), os.Remove(path))
	}
	if !isStill(f, path) {
		return nil, f.Close()
	}
	return f, nil
}

// isStill reports whether path leads to the open file f.
func isStill(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// poll calls try until it is done. A blocking flock cannot be cancelled, and a goroutine that waits in one would
// outlive its caller; a try costs some microseconds, so that even a hundred waiters take no processor worth naming.
func poll(ctx context.Context, try func() (bool, error)) error {
	const first, last = 2 * time.Millisecond, 50 * time.Millisecond
	timer := time.NewTimer(0)
	defer timer.Stop()
	for wait := first; ; wait = min(wait*3/2, last) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if done, err := try(); done || err != nil {
			return err
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
	}
}

// sweepLocks removes the lock files and logs that killed processes have left.
func (s *Store) sweepLocks() {
	for path := range filesBelow(s.path(locksDir), 2) {
		base, ok := strings.CutSuffix(path, lockSuffix)
		if !ok {
			continue
		}
		if f := tryExisting(path); f != nil {
			_ = os.Remove(base + logSuffix)
			_ = removeLocked(f)
		}
	}
}
