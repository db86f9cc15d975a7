//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// readyRoot takes away what a root has of the machine's own, if that has booted from a disk.
func readyRoot(root int) error {
	r := mountRoot(root)
	onDisk := false
	// A file system of the kernel cannot be mounted on itself.
	for _, name := range []string{ownDir, wire.CarriedDir, "/proc", "/dev", "/sys"} {
		was, err := r.hide(name)
		if err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
		onDisk = onDisk || was && name == ownDir
	}
	if !onDisk {
		return nil
	}
	if err := r.hideRun(); err != nil {
		return fmt.Errorf("hide %s: %w", runDir, err)
	}
	return nil
}

// A mountRoot is the future root. Nothing in it is reached through a link.
type mountRoot int

func (r mountRoot) open(name string) (int, error) {
	return foreign.OpenBeneath(int(r), strings.TrimLeft(name, "/"), unix.O_PATH)
}

// hide takes away all that is mounted on a directory, if something is.
func (r mountRoot) hide(name string) (was bool, err error) {
	for {
		fd, err := r.open(name)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			return was, nil
		}
		if err != nil {
			return was, err
		}
		err = unix.Unmount(rootfs.ProcFD(fd), unix.MNT_DETACH)
		unix.Close(fd)
		if err == unix.EINVAL { // that says that nothing is
			return was, nil
		}
		if err != nil {
			return was, err
		}
		was = true
	}
}

// runDir is in memory: what is there is gone with the machine.
const runDir = "/run"

// keptInRun is what a process sees of the machine's own runDir, and cannot change: what the system's /etc/resolv.conf may lead to, and where NixOS and Guix
// have setuid programs.
var keptInRun = []string{
	"systemd/resolve", "resolvconf", "NetworkManager/resolv.conf", "NetworkManager/no-stub-resolv.conf", "connman/resolv.conf", "wrappers", "privileged",
}

// hideRun gives a process a directory /run of its own. What a step leaves there, no other finds: else one that goes on in the same machine would, and
// one that goes on from the result would not. And a process finds no systemd, as in a container: it could not reach the one that the machine has,
// and `systemctl enable` would fail. Links stay: some systems have their programs by them.
func (r mountRoot) hideRun() error {
	fd, err := r.open(runDir)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err == unix.ELOOP {
		return errors.New("it is a link: it must be a directory")
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	entries, err := os.ReadDir(rootfs.ProcFD(fd))
	if err != nil {
		return err
	}
	links := map[string]string{}
	for _, e := range entries {
		if e.Type() == fs.ModeSymlink {
			if links[e.Name()], err = os.Readlink(rootfs.ProcFD(fd) + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	kept := map[string]int{}
	for _, name := range keptInRun {
		switch fd, err := r.open(runDir + "/" + name); err {
		case nil:
			defer unix.Close(fd)
			kept[name] = fd
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		default:
			return err
		}
	}
	if err := unix.Mount("tmpfs", rootfs.ProcFD(fd), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	run, err := r.open(runDir) // what is mounted there now
	if err != nil {
		return err
	}
	defer unix.Close(run)
	if err := os.Mkdir(rootfs.ProcFD(run)+"/lock", 0o777); err != nil {
		return err
	}
	if err := os.Chmod(rootfs.ProcFD(run)+"/lock", 0o777|os.ModeSticky); err != nil {
		return err
	}
	for name, target := range links {
		if err := unix.Symlinkat(target, run, name); err != nil && err != unix.EEXIST {
			return err
		}
	}
	for name, fd := range kept {
		if err := r.bindReadOnly(fd, runDir+"/"+name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// bindReadOnly mounts an open file or directory.
func (r mountRoot) bindReadOnly(from int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	to, err := rootfs.OpenPoint(int(r), strings.TrimPrefix(name, "/"), st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := unix.Mount(rootfs.ProcFD(from), rootfs.ProcFD(to), "", unix.MS_BIND, ""); err != nil {
		return err
	}
	on, err := r.open(name)
	if err != nil {
		return err
	}
	defer unix.Close(on)
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(on, &fsys); err != nil {
		return err
	}
	keep := uintptr(fsys.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	return unix.Mount("", rootfs.ProcFD(on), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|keep, "")
}
