package cas

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// diskSize is what dir and all below it take on disk. What vanishes meanwhile counts for nothing.
func diskSize(ctx context.Context, dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var info fs.FileInfo
		if err == nil {
			info, err = e.Info()
		}
		if errors.Is(err, fs.ErrNotExist) || isBusy(err) { // others move it away
			return nil
		}
		if errors.Is(err, fs.ErrPermission) {
			return fs.SkipDir
		}
		if err != nil {
			return err
		}
		total += info.Size()
		return nil
	})
	return total, err
}

// diskSpace tells how much room is on the disk that dir is on.
func diskSpace(dir string) (space, error) {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return space{}, err
	}
	var s space
	err = windows.GetDiskFreeSpaceEx(name, &s.free, &s.size, nil)
	return s, err
}
