//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Directories of the initial root file system, which obx packs.
const (
	modulesBoot = "/modules/boot" // loaded at once
	modulesNet  = "/modules/net"  // when a process uses the network
)

// A place is where the agent mounts what is its own.
type place struct {
	scratch string // the writable disk
	layers  string // directories for mounts of images
}

// ownDir is a tmpfs with the agent's own mounts where the rest of the file system is not its own. Processes do not see it.
const ownDir = "/run/obx-agent"

// bootOnDisk makes room in a machine that has booted from a disk.
func bootOnDisk() (place, error) {
	at := place{scratch: ownDir + "/scratch", layers: ownDir + "/layers"}
	// These the system may not have loaded by itself. Of what is missing, a mount will tell.
	_ = exec.Command("modprobe", "-a", "-q", "virtio_console", "virtio_blk", "ext4", "overlay", "erofs").Run()
	if err := checkCgroups(); err != nil {
		return at, err
	}
	if err := os.MkdirAll(ownDir, 0o700); err != nil {
		return at, err
	}
	if err := unix.Mount("obx", ownDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"); err != nil {
		return at, fmt.Errorf("mount a tmpfs on %s: %w", ownDir, err)
	}
	for _, d := range []string{at.scratch, at.layers} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return at, err
		}
	}
	unix.Umask(0o022)
	return at, tameSystem() // now, for files may be put into the machine before it first runs something
}

const cgroupRoot = "/sys/fs/cgroup"

// controllers are those of control groups that limits need.
var controllers = []string{"memory", "cpu", "pids"}

// checkCgroups looks for what limits need.
func checkCgroups() error {
	b, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("control groups of version 2: %w", err)
	}
	has := strings.Fields(string(b))
	for _, c := range controllers {
		if !slices.Contains(has, c) {
			return fmt.Errorf("control groups of version 2 lack the controller %s", c)
		}
	}
	return nil
}

// boot makes the machine what a process expects of Linux.
func boot() (place, error) {
	at := place{scratch: "/scratch", layers: "/layers"}
	return at, makeSystem(at)
}

func makeSystem(at place) error {
	// pivot_root does not work on the initial root file system. A tmpfs over it is as good, once the program and the
	// modules are there.
	const root = "/root"
	steps := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"tmpfs", root, "tmpfs", 0, "mode=755"},
		{"devtmpfs", root + "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
		{"proc", root + "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", root + "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", root + "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"/modules", root + "/modules", "", unix.MS_BIND, ""},
	}
	for _, s := range steps {
		if err := os.MkdirAll(s.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(s.source, s.target, s.kind, s.flags, s.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", s.source, s.target, err)
		}
	}
	for _, d := range []string{at.scratch, at.layers, "/etc"} {
		if err := os.Mkdir(root+d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// What is mounted from now on, the supervisor sees too.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	unix.Umask(0o022)
	if err := loadModules(modulesBoot); err != nil {
		return err
	}
	return loopbackUp()
}

// loadModules loads what is in a directory, in the order of names, which obx has chosen.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	for _, name := range names {
		if err := loadModule(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("load kernel module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// openPort opens a virtio-serial port by its name.
func openPort(name string) (*os.File, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == name {
				fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(f)), unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					return nil, fmt.Errorf("open port %s: %w", name, err)
				}
				return os.NewFile(uintptr(fd), name), nil
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the machine has no port %s", name)
		}
	}
}

// findDisk finds a disk by its serial number.
func findDisk(serial string) (string, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		files, err := filepath.Glob("/sys/block/vd*/serial")
		if err != nil {
			return "", err
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == serial {
				return "/dev/" + filepath.Base(filepath.Dir(f)), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("the machine has no disk %q", serial)
		}
	}
}
