package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// RootName is the root's directory in a Box's.
const RootName = "rootfs"

func mountName(i int) string { return "mount" + strconv.Itoa(i) }

// attachName is where a Box's directory has a mount: the root is the first.
func attachName(i int) string {
	if i == 0 {
		return RootName
	}
	return mountName(i - 1)
}

// Attach puts mounts and files into dir, where the configuration says they are.
func Attach(dir string, mounts []*os.File, files []File) error {
	for i, f := range mounts {
		at := filepath.Join(dir, attachName(i))
		if err := os.Mkdir(at, 0o700); err != nil {
			return err
		}
		if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach mount %s: %w", attachName(i), err)
		}
	}
	for _, f := range files {
		at := filepath.Join(dir, f.Name)
		if err := os.WriteFile(at, f.Data, f.Mode); err != nil {
			return err
		}
		if err := os.Chmod(at, f.Mode); err != nil {
			return err
		}
	}
	return nil
}

// Detach takes the mounts away that Attach has put into dir.
func Detach(dir string, mounts int) {
	for i := range mounts {
		_ = unix.Unmount(filepath.Join(dir, attachName(i)), unix.MNT_DETACH)
	}
}
