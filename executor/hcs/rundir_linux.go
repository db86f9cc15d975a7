package hcs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// runsDir has the runs on each containerd. It is not in the store: containerd is the whole computer's.
func runsDir() string { return "/run/obx" }

const lockSuffix = ".lock"

// A runDir is a run's own file system in memory, where its mounts and secrets are:
//
//	RUN.lock     held while the run lives
//	RUN/         the file system
type runDir struct {
	dir  string
	lock *os.File
}

func (r *runDir) name() string { return filepath.Base(r.dir) }

// newRunDir makes one in top, whose name begins with prefix.
func newRunDir(top, prefix string) (*runDir, error) {
	if err := os.MkdirAll(top, 0o700); err != nil {
		return nil, err
	}
	lock, err := newLock(top, prefix)
	if err != nil {
		return nil, err
	}
	r := &runDir{dir: strings.TrimSuffix(lock.Name(), lockSuffix), lock: lock}
	if err := r.mount(); err != nil {
		return nil, errors.Join(err, r.remove())
	}
	return r, nil
}

func newLock(top, prefix string) (*os.File, error) {
	for {
		lock, err := os.CreateTemp(top, prefix+"-*"+lockSuffix)
		if err != nil {
			return nil, err
		}
		// Somebody who looks for dead runs may be faster.
		if tryLock(lock) && isStill(lock) {
			return lock, nil
		}
		lock.Close()
	}
}

func tryLock(f *os.File) bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }

func isStill(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(f.Name())
	return err == nil && os.SameFile(a, b)
}

func (r *runDir) mount() error {
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return err
	}
	// Secrets lie here: not even in swap, where the kernel knows that option (Linux 6.4).
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	err := unix.Mount("obx", r.dir, "tmpfs", flags, "mode=0700,noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("obx", r.dir, "tmpfs", flags, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", r.dir, err)
	}
	// What is mounted in it is nobody else's business.
	if err := unix.Mount("", r.dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", r.dir, err)
	}
	return nil
}

// remove unmounts all that is mounted there, and gives up the run's name.
func (r *runDir) remove() error {
	var errs []error
	if err := unix.Unmount(r.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("unmount %s: %w", r.dir, err))
	}
	if err := os.Remove(r.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		errs = append(errs, os.Remove(r.lock.Name()))
	}
	return errors.Join(append(errs, r.lock.Close())...)
}

// deadRuns takes over the directories in top of runs whose process was killed.
func deadRuns(top string) ([]*runDir, error) {
	locks, err := filepath.Glob(filepath.Join(top, "*"+lockSuffix))
	if err != nil {
		return nil, err
	}
	var dead []*runDir
	for _, name := range locks {
		lock, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			continue // its owner removes it
		}
		if !tryLock(lock) || !isStill(lock) {
			lock.Close()
			continue
		}
		dead = append(dead, &runDir{dir: strings.TrimSuffix(name, lockSuffix), lock: lock})
	}
	return dead, nil
}
