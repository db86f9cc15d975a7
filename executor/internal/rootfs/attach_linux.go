package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// RootName is the root's directory in a Box's.
const RootName = "rootfs"

// A Bind is something that a process finds in its root, and that is not of its root.
type Bind struct {
	Target string `json:"target"`          // absolute, and no component of it is a link
	Mount  int    `json:"mount,omitempty"` // a directory: which of the mounts that Attach gets
	File   string `json:"file,omitempty"`  // a file that nobody can change or execute: the name of one in the Box's directory, or a path of the host's
}

// An Attachment is what a Box needs in its directory before the process can start.
type Attachment struct {
	Mounts []*os.File // the root's mount, and those of its caches
	Files  []File
	Binds  []Bind

	// Ready, if it is not nil, gets the root when it is attached, and before anything is mounted in it.
	Ready func(root int) error
}

// Attach makes the files in dir, mounts the root on RootName in it, and all Binds in the root. What an image or a cache could make a link is never
// reached by its name: so neither can lead a mount to another place, nor what a runtime mounts and opens below systemDirs.
func Attach(dir string, a Attachment) error {
	for _, f := range a.Files {
		at := filepath.Join(dir, f.Name)
		if err := os.WriteFile(at, f.Data, f.Mode); err != nil {
			return err
		}
		if err := os.Chmod(at, f.Mode); err != nil {
			return err
		}
	}
	at := filepath.Join(dir, RootName)
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	if err := moveMount(a.Mounts[0], unix.AT_FDCWD, at); err != nil {
		return fmt.Errorf("attach the root: %w", err)
	}
	root := int(a.Mounts[0].Fd())
	if a.Ready != nil {
		if err := a.Ready(root); err != nil {
			return err
		}
	}
	for _, b := range a.Binds {
		if err := b.attach(root, dir, a.Mounts); err != nil {
			return fmt.Errorf("mount on %s: %w", b.Target, err)
		}
	}
	for _, d := range systemDirs {
		if err := checkSystemDir(root, d); err != nil {
			return fmt.Errorf("mount on /%s: %w", d, err)
		}
	}
	return nil
}

// Detach takes away what Attach has mounted in dir. Until it has, nothing may be removed there: caches are mounted in it.
func Detach(dir string) error {
	err := unix.Unmount(filepath.Join(dir, RootName), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing was mounted
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount the root in %s: %w", dir, err)
	}
	return nil
}

// moveMount attaches a mount that has no place yet, for this mount namespace alone. Another mount of a directory is a peer of the one it was made
// of, if that is shared, as systemd makes them: what is mounted in the one would appear in the other, and so on the host and in other steps.
func moveMount(m *os.File, dir int, name string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if name == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(int(m.Fd()), "", dir, name, flags); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := unix.Mount("", ProcFD(int(m.Fd())), "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make a mount private: %w", err)
	}
	return nil
}

func (b Bind) attach(root int, dir string, mounts []*os.File) error {
	target, err := OpenPoint(root, strings.TrimPrefix(b.Target, "/"), b.File == "")
	if err == unix.ELOOP {
		return errors.New("another step that shares the cache has put a link there")
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var m *os.File
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if b.File == "" {
		m = mounts[b.Mount]
	} else {
		file := b.File
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		if m, err = cloneMount(file); err != nil {
			return err
		}
		defer m.Close()
		flags |= unix.MS_NOEXEC | unix.MS_RDONLY
	}
	if err := moveMount(m, target, ""); err != nil {
		return err
	}
	if err := unix.Mount("", ProcFD(int(m.Fd())), "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
		return fmt.Errorf("set flags: %w", err)
	}
	return nil
}

// OpenPoint opens a mount point by its path in a root, and makes what is missing of it. NewPlan has made those of a plan, but what Ready has
// mounted may hide them, and in a cache that is shared another step may remove them at any time. No link is followed.
func OpenPoint(root int, name string, dir bool) (int, error) {
	for try := 0; ; try++ {
		fd, err := RootDir{FD: root}.openAt(name, unix.O_PATH)
		if err != unix.ENOENT || name == "" || try == 10 {
			return fd, err
		}
		parent, err := OpenPoint(root, parentOf(name), true)
		if err != nil {
			return -1, err
		}
		err = makePoint(parent, path.Base(name), dir)
		unix.Close(parent)
		if err != nil && err != unix.EEXIST && err != unix.ENOENT {
			return -1, err
		}
	}
}

// checkSystemDir looks whether one of systemDirs is a directory of the root, and still so when all Binds are mounted.
func checkSystemDir(root int, dir string) error {
	fd, err := foreign.OpenBeneath(root, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// cloneMount gives another mount of a file or directory, without what is mounted below it. It has no place yet.
func cloneMount(name string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
