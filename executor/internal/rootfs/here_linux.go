package rootfs

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
)

// RunHere runs a process in the file system of this computer itself, with all that is mounted there. The process sees what it sees in a Root,
// but for the files; what it changes is changed for good. For the host's network, the Runner has to take away first what is mounted on /sys: the
// same cannot be mounted there twice.
func (mc *Machine) RunHere(ctx context.Context, p executor.Process, out io.Writer) error {
	if err := mc.checkLimits(p.Limits); err != nil {
		return err
	}
	id := mc.NewID()
	box, err := mc.runner.Box(id)
	if err != nil {
		return err
	}
	mount, err := copyMounts("/")
	if err != nil {
		return err
	}
	return mc.runIn(ctx, mount, &Run{ID: id, Process: p}, box, out, func(*points) error { return nil })
}

// copyMounts gives another mount of a directory, and of all that is mounted below it, that no mount namespace shows.
func copyMounts(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("copy the mounts of %s: %w", dir, err)
	}
	// Else what is unmounted in the copy would be unmounted here, too.
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make the mounts of %s private: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}
