//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/internal/seccomp"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// containerName is the argv[0] of a process that makes its own sandbox, and then becomes the step's.
const containerName = "obx-container"

// reportFD is where it says what went wrong; the end of it without a word is success.
const reportFD = 3

func containerMain() {
	runtime.LockOSThread() // what follows are attributes of a thread, until it executes the program
	unix.CloseOnExec(reportFD)
	err := enter(os.Args[1])
	_, _ = unix.Write(reportFD, []byte(err.Error()))
	os.Exit(1)
}

// enter returns only an error.
func enter(bundle string) error {
	spec, err := readSpec(bundle)
	if err != nil {
		return err
	}
	// The agent's own, which it may have from its service, would keep the kernel from ending the process.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		return fmt.Errorf("be one that may be ended when memory is short: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("control group namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			if err := loopbackUp(); err != nil {
				return err
			}
		}
	}
	if err := changeRoot(spec); err != nil {
		return err
	}
	return execute(spec)
}

// changeRoot mounts what the spec says and makes it the root.
func changeRoot(spec *specs.Spec) error {
	root := spec.Root.Path
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cut off mounts: %w", err)
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the root: %w", err)
	}
	defer unix.Close(fd)
	r := mountRoot(fd)
	for _, m := range spec.Mounts {
		if err := r.mount(m); err != nil {
			return fmt.Errorf("mount on %s: %w", m.Destination, err)
		}
		if m.Destination == "/dev" {
			if err := r.devices(spec.Process.Terminal); err != nil {
				return fmt.Errorf("make devices: %w", err)
			}
		}
	}
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the machine's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	for _, name := range spec.Linux.ReadonlyPaths {
		if err := readOnlyPath(name); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	for _, name := range spec.Linux.MaskedPaths {
		if err := maskPath(name); err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	return nil
}

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

var mountFlags = map[string]uintptr{
	"nosuid": unix.MS_NOSUID, "noexec": unix.MS_NOEXEC, "nodev": unix.MS_NODEV, "ro": unix.MS_RDONLY,
	"relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
}

// mount mounts one of the system's file systems.
func (r mountRoot) mount(m specs.Mount) error {
	var flags uintptr
	var data []string
	for _, o := range m.Options {
		if f, ok := mountFlags[o]; ok {
			flags |= f
		} else {
			data = append(data, o)
		}
	}
	fd, err := rootfs.OpenPoint(int(r), strings.TrimPrefix(m.Destination, "/"), true)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	kind := m.Type
	if kind == "cgroup" {
		kind = "cgroup2"
	}
	return unix.Mount(m.Source, rootfs.ProcFD(fd), kind, flags, strings.Join(data, ","))
}

// devices makes those that every process finds.
func (r mountRoot) devices(terminal bool) error {
	dev, err := r.open("/dev")
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	old := unix.Umask(0)
	defer unix.Umask(old)
	for name, n := range map[string][2]uint32{
		"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0},
	} {
		if err := unix.Mknodat(dev, name, unix.S_IFCHR|0o666, int(unix.Mkdev(n[0], n[1]))); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := unix.Symlinkat(to, dev, name); err != nil {
			return err
		}
	}
	if !terminal {
		return nil
	}
	if err := unix.Mknodat(dev, "console", unix.S_IFREG|0o600, 0); err != nil {
		return err
	}
	tty, err := os.Readlink("/proc/self/fd/0") // by its name: what is open is in another namespace
	if err != nil {
		return err
	}
	return unix.Mount(tty, rootfs.ProcFD(dev)+"/console", "", unix.MS_BIND, "")
}

func readOnlyPath(name string) error {
	if err := unix.Mount(name, name, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return err
	}
	keep := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	return unix.Mount("", name, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|keep, "")
}

func maskPath(name string) error {
	err := unix.Mount("/dev/null", name, "", unix.MS_BIND, "")
	if err == unix.ENOTDIR {
		err = unix.Mount("tmpfs", name, "tmpfs", unix.MS_RDONLY, "")
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// execute becomes the process of a spec.
func execute(spec *specs.Spec) error {
	p := spec.Process
	for _, r := range p.Rlimits {
		if r.Type != "RLIMIT_NOFILE" {
			return fmt.Errorf("unknown limit %s", r.Type)
		}
		// Not package unix's: what this one sets, syscall.Exec leaves.
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: r.Soft, Max: r.Hard}); err != nil {
			return fmt.Errorf("set %s: %w", r.Type, err)
		}
	}
	if p.User.Umask != nil {
		unix.Umask(int(*p.User.Umask))
	}
	err := unix.Chdir(p.Cwd)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(p.Cwd, 0o755); err == nil {
			err = unix.Chdir(p.Cwd)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("chdir to %s: %w", p.Cwd, err)
	}
	if spec.Linux.Seccomp != nil {
		filter, err := seccomp.Compile(spec.Linux.Seccomp, runtime.GOARCH)
		if err != nil {
			return err
		}
		if err := seccomp.Install(filter); err != nil {
			return err
		}
	}
	if err := become(p); err != nil {
		return err
	}
	if err := unix.Chdir(p.Cwd); err != nil {
		return fmt.Errorf("chdir to %s: %w", p.Cwd, err)
	}
	os.Clearenv()
	for _, v := range p.Env {
		if name, value, ok := strings.Cut(v, "="); ok && name == "PATH" {
			_ = os.Setenv("PATH", value)
		}
	}
	program, err := exec.LookPath(p.Args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return err
	}
	return fmt.Errorf("exec: %q: %w", program, syscall.Exec(program, p.Args, p.Env))
}

// become takes the user and the capabilities of a process.
func become(p *specs.Process) error {
	bounding := capabilityBits(p.Capabilities.Bounding)
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if bounding&(1<<c) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	// Raw calls: those of package syscall change all threads, which this process will not have.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("set groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(p.User.GID), uintptr(p.User.GID), uintptr(p.User.GID)); errno != 0 {
		return fmt.Errorf("set group %d: %w", p.User.GID, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(p.User.UID), uintptr(p.User.UID), uintptr(p.User.UID)); errno != 0 {
		return fmt.Errorf("set user %d: %w", p.User.UID, errno)
	}
	eff, prm, inh := capabilityBits(p.Capabilities.Effective), capabilityBits(p.Capabilities.Permitted), capabilityBits(p.Capabilities.Inheritable)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(eff), Permitted: uint32(prm), Inheritable: uint32(inh)},
		{Effective: uint32(eff >> 32), Permitted: uint32(prm >> 32), Inheritable: uint32(inh >> 32)},
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return fmt.Errorf("set capabilities: %w", errno)
	}
	return nil
}

var capabilityNumbers = map[string]uint{
	"CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_FSETID": unix.CAP_FSETID,
	"CAP_FOWNER": unix.CAP_FOWNER, "CAP_MKNOD": unix.CAP_MKNOD, "CAP_SETGID": unix.CAP_SETGID, "CAP_SETUID": unix.CAP_SETUID,
	"CAP_SETFCAP": unix.CAP_SETFCAP, "CAP_SETPCAP": unix.CAP_SETPCAP, "CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT,
	"CAP_KILL": unix.CAP_KILL, "CAP_AUDIT_WRITE": unix.CAP_AUDIT_WRITE,
}

func capabilityBits(names []string) (bits uint64) {
	for _, n := range names {
		if c, ok := capabilityNumbers[n]; ok {
			bits |= 1 << c
		}
	}
	return bits
}
