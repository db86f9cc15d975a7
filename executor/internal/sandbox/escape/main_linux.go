// Command escape, run in a step, tries to get out of it: to reach files, processes, devices and settings that are not the step's. It prints each
// attempt that succeeds, and "held" if none does. Its first argument says what it tries:
//
//	all [SOCKET...]    what one step can try alone; somebody outside listens on those abstract sockets
//	terminal           what a step can try that has a terminal
//	trace HOW FILE     have the parent of the first process trace it, and outlive it: FILE grows as long as something lives
//	give SOCKET DIR [FILE]    give descriptors to another step, of FILE one for writing, and end
//	take SOCKET FILE   take them, and use them when FILE is there, since the other step has ended
//	swap DIR TARGET... change what is in a directory that another step shares, again and again, into links to those targets
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A prisoner tries.
type prisoner struct {
	out  bool
	root unix.Stat_t
}

// The main thread is the process's first, and stays that.
func init() { runtime.LockOSThread() }

func main() {
	p := &prisoner{}
	if err := unix.Stat("/", &p.root); err != nil {
		p.ends(err)
	}
	args := append(os.Args[1:], "", "")
	switch args[0] {
	case "all":
		p.descriptors()
		p.processes()
		p.keyrings()
		p.mounts()
		p.namespaces()
		p.settings()
		p.devices()
		p.privileges()
		p.sockets(os.Args[2:])
		p.chroots() // changes the root
	case "terminal":
		p.descriptors()
		p.terminal()
	case "steal":
		p.steals()
	case "trace":
		p.trace(args[1], args[2])
	case "beat":
		p.ends(beat(args[1]))
	case "give":
		p.give(args[1], args[2], os.Args[min(4, len(os.Args)):])
	case "take":
		p.take(args[1], args[2])
	case "swap":
		p.ends(swap(args[1], os.Args[3:]))
	default:
		p.ends(fmt.Errorf("what is to be tried? Not %q", args[0]))
	}
	if p.out {
		os.Exit(1)
	}
	fmt.Println("held")
}

// ends tells what kept it from trying.
func (p *prisoner) ends(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
}

// escaped tells of an attempt that has succeeded.
func (p *prisoner) escaped(format string, args ...any) {
	p.out = true
	fmt.Printf("ESCAPED: "+format+"\n", args...)
}

// must fails.
func (p *prisoner) fails(what string, err error) {
	if err == nil {
		p.escaped("%s succeeds", what)
	}
}

func (p *prisoner) call(what string, number uintptr, args ...uintptr) {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno == 0 {
		p.escaped("%s succeeds", what)
	}
}

func str(s string) uintptr {
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	return uintptr(unsafe.Pointer(b))
}

// descriptors looks for some that lead out.
func (p *prisoner) descriptors() {
	for fd := range 64 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue
		}
		if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFDIR || fd > 2 && !isRuntimes(fd) {
			link, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
			p.escaped("descriptor %d is open: %s", fd, link)
		}
	}
}

// isRuntimes reports a descriptor of Go's runtime in this program.
func isRuntimes(fd int) bool {
	link, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
	return strings.HasPrefix(link, "anon_inode:[event") || strings.HasPrefix(link, "/sys/fs/cgroup") || strings.HasPrefix(link, "/sys/kernel/mm/")
}

// processes looks at each that it sees, for what is not the step's.
func (p *prisoner) processes() {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(all) == 0 || len(all) > 5 {
		p.escaped("it sees the processes %q, %v", all, err)
	}
	for _, dir := range all {
		for _, name := range []string{"root", "cwd"} {
			var st unix.Stat_t
			if unix.Stat(filepath.Join(dir, name), &st) == nil && (st.Dev != p.root.Dev || st.Ino != p.root.Ino) {
				p.escaped("%s/%s is another directory", dir, name)
			}
		}
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		if _, err := os.Lstat(exe); err != nil {
			p.escaped("%s/exe is %s: %v", dir, exe, err)
		}
		if f, err := os.OpenFile(filepath.Join(dir, "exe"), os.O_WRONLY, 0); err == nil {
			f.Close()
			p.escaped("%s/exe can be written to", dir)
		}
		fds, _ := filepath.Glob(filepath.Join(dir, "fd/*"))
		for _, fd := range fds {
			var st unix.Stat_t
			if unix.Stat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && dir != "/proc/"+strconv.Itoa(os.Getpid()) {
				link, _ := os.Readlink(fd)
				p.escaped("%s is the directory %s", fd, link)
			}
		}
		for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time"} {
			its, err := os.Readlink(filepath.Join(dir, "ns", ns))
			if own, _ := os.Readlink("/proc/self/ns/" + ns); err == nil && its != own {
				p.escaped("%s is in another %s namespace", dir, ns)
			}
		}
		maps, _ := os.ReadFile(filepath.Join(dir, "maps"))
		if strings.Contains(string(maps), "memfd:") {
			p.escaped("%s has a file in memory of who made the container", dir)
		}
	}
	for pid := range 4096 {
		if _, err := os.Stat(fmt.Sprint("/proc/", pid)); pid > 0 && err != nil && unix.Kill(pid, 0) != unix.ESRCH {
			// A thread of this process, or one that is just ending.
			if _, err := os.Stat(fmt.Sprint("/proc/self/task/", pid)); err != nil {
				p.escaped("there is a process %d", pid)
			}
		}
	}
	for _, pid := range []int{os.Getppid(), 0, -1, 1 << 21} { // who made the container is 0, if it is seen at all
		if pid == os.Getpid() {
			continue
		}
		for name, request := range map[string]uintptr{"attach": unix.PTRACE_ATTACH, "seize": unix.PTRACE_SEIZE} {
			p.call(fmt.Sprintf("ptrace %s of %d", name, pid), unix.SYS_PTRACE, request, uintptr(pid), 0, 0)
		}
		word := make([]byte, 8)
		local := []unix.Iovec{{Base: &word[0], Len: 8}}
		_, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
		p.fails(fmt.Sprintf("reading the memory of %d", pid), err)
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			p.escaped("process %d can be opened", pid)
			unix.Close(fd)
		}
	}
}

func (p *prisoner) keyrings() {
	session := int32(unix.KEY_SPEC_SESSION_KEYRING)
	p.call("add_key", unix.SYS_ADD_KEY, str("user"), str("x"), str("y"), 1, uintptr(session))
	p.call("request_key", unix.SYS_REQUEST_KEY, str("user"), str("x"), 0, 0)
	p.call("keyctl", unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, uintptr(session), 1)
}

func (p *prisoner) mounts() {
	_ = os.Mkdir("/tmp", 0o755)
	p.fails("mount of a tmpfs", unix.Mount("x", "/tmp", "tmpfs", 0, ""))
	p.fails("mount of proc", unix.Mount("x", "/tmp", "proc", 0, ""))
	p.fails("bind mount", unix.Mount("/", "/tmp", "", unix.MS_BIND, ""))
	p.fails("move of a mount", unix.Mount("/proc", "/tmp", "", unix.MS_MOVE, ""))
	p.fails("shared mount", unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""))
	for _, name := range []string{"/", "/proc", "/proc/sys", "/proc/bus", "/sys", "/sys/fs/cgroup", "/dev", "/dev/shm", "/etc/hosts"} {
		p.fails("umount of "+name, unix.Unmount(name, unix.MNT_DETACH))
		p.fails("remount of "+name, unix.Mount("", name, "", unix.MS_REMOUNT, ""))
		p.fails("bind remount of "+name, unix.Mount("", name, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
		p.call("open_tree of "+name, unix.SYS_OPEN_TREE, ^uintptr(99), str(name), unix.OPEN_TREE_CLONE)
		attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID}
		p.fails("mount_setattr of "+name, unix.MountSetattr(unix.AT_FDCWD, name, 0, &attr))
	}
	for _, kind := range []string{"overlay", "tmpfs", "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "ext4", "nfs"} {
		_, err := unix.Fsopen(kind, 0)
		p.fails("fsopen of "+kind, err)
		p.fails("mount of "+kind, unix.Mount("none", "/tmp", kind, 0, ""))
	}
	for _, name := range []string{"/", "/proc", "/etc/hosts"} {
		_, err := unix.Fspick(unix.AT_FDCWD, name, 0)
		p.fails("fspick of "+name, err)
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, name, 0)
		if err != nil {
			continue // of a file system without handles
		}
		if at, err := unix.Open(name, unix.O_RDONLY, 0); err == nil {
			_, err = unix.OpenByHandleAt(at, h, unix.O_RDONLY)
			p.fails("open_by_handle_at of "+name, err)
			unix.Close(at)
		}
	}
	p.call("move_mount", unix.SYS_MOVE_MOUNT, ^uintptr(99), str("/proc"), ^uintptr(99), str("/tmp"), 0)
	p.fails("pivot_root", unix.PivotRoot("/", "/"))
	p.fails("pivot_root to the working directory", unix.PivotRoot(".", "."))
	p.call("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(99), uintptr(unsafe.Pointer(&[32]byte{8, 0, 0, 0, 1})), 0)
}

func (p *prisoner) namespaces() {
	for name, flag := range map[string]int{
		"mnt": unix.CLONE_NEWNS, "user": unix.CLONE_NEWUSER, "pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC,
		"uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME,
	} {
		p.fails("unshare of "+name, unix.Unshare(flag))
		for _, of := range []string{"self", "1"} {
			if fd, err := unix.Open("/proc/"+of+"/ns/"+name, unix.O_RDONLY, 0); err == nil {
				p.fails("setns of "+name, unix.Setns(fd, 0))
				unix.Close(fd)
			}
		}
		if fd, err := unix.PidfdOpen(os.Getpid(), 0); err == nil {
			p.fails("setns of "+name+" by a process", unix.Setns(fd, flag))
			unix.Close(fd)
		}
		if flag == unix.CLONE_NEWTIME { // clone takes it for a part of a signal's number
			continue
		}
		cmd := &syscall.SysProcAttr{Cloneflags: uintptr(flag)}
		if proc, err := os.StartProcess("/proc/self/exe", []string{"x"}, &os.ProcAttr{Sys: cmd, Env: []string{}}); err == nil {
			_ = proc.Kill()
			_, _ = proc.Wait()
			p.escaped("clone with a new %s namespace succeeds", name)
		}
	}
}

// settings looks for one of the machine's that can be written.
func (p *prisoner) settings() {
	for _, top := range []string{"/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/sysrq-trigger", "/sys"} {
		_ = filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // what goes away, or cannot be read
			}
			var fsys unix.Statfs_t
			if unix.Statfs(name, &fsys) == nil && fsys.Type == unix.TMPFS_MAGIC { // the container's own, where groups are shown
				return nil
			}
			if d.IsDir() {
				if err := os.Mkdir(filepath.Join(name, "obx-escape"), 0o700); err == nil {
					_ = os.Remove(filepath.Join(name, "obx-escape"))
					p.escaped("a directory can be made in %s", name)
				}
				return nil
			}
			if d.Type().IsRegular() {
				if fd, err := unix.Open(name, unix.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
					unix.Close(fd)
					p.escaped("%s can be written", name)
				}
			}
			return nil
		})
	}
	for _, name := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/latency_stats", "/proc/sched_debug"} {
		if b, err := os.ReadFile(name); err == nil && len(b) > 0 {
			p.escaped("%s can be read", name)
		}
	}
	for _, name := range []string{"/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"} {
		if entries, err := os.ReadDir(name); err == nil && len(entries) > 0 {
			p.escaped("%s can be read", name)
		}
	}
	p.fails("a lower oom_score_adj", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0))
}

// devices makes nodes, which is allowed, and opens them.
func (p *prisoner) devices() {
	dir, err := os.MkdirTemp("/tmp", "")
	if err != nil {
		fmt.Println(err)
		p.out = true
		return
	}
	open := func(kind uint32, major, minor uint32) {
		for _, dir := range []string{dir, "/dev", "/dev/shm"} {
			name := filepath.Join(dir, "node")
			if unix.Mknod(name, kind|0o666, int(unix.Mkdev(major, minor))) != nil {
				continue
			}
			for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY} {
				if fd, err := unix.Open(name, flags|unix.O_NONBLOCK, 0); err == nil || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
					unix.Close(fd)
					p.escaped("device %#x %d:%d can be opened in %s: %v", kind, major, minor, dir, err)
				}
			}
			_ = os.Remove(name)
		}
	}
	for major := range uint32(260) {
		if major == 0 { // no device: overlayfs's mark of what is gone
			continue
		}
		open(unix.S_IFBLK, major, 0)
		if major == 1 || major == 5 || major >= 136 && major <= 143 {
			continue
		}
		open(unix.S_IFCHR, major, 0)
	}
	for minor := range uint32(256) { // the console, the kernel's log as a terminal, serial lines; not the terminal that a process has, nor ptmx
		if minor != 0 && minor != 2 {
			open(unix.S_IFCHR, 5, minor)
		}
	}
	for minor := range uint32(16) { // terminals of the host: the numbers are allowed, for those of the step
		open(unix.S_IFCHR, 136, minor)
	}
	for _, minor := range []uint32{1, 2, 4, 6, 10, 11} { // mem, kmem, port, aio, oldmem, kmsg
		open(unix.S_IFCHR, 1, minor)
	}
	for _, minor := range []uint32{61, 130, 144, 183, 223, 229, 231, 232, 236, 237, 238, 239} { // watchdog, nvram, hwrng, fuse, snapshot, kvm, loop-control, ...
		open(unix.S_IFCHR, 10, minor)
	}
}

func (p *prisoner) privileges() {
	p.fails("sethostname", unix.Sethostname([]byte("x")))
	p.fails("settimeofday", unix.Settimeofday(&unix.Timeval{Sec: 1}))
	p.fails("more open files", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 4096, Max: 4096}))
	p.fails("a higher priority", unix.Setpriority(unix.PRIO_PROCESS, 0, -5))
	p.call("a real-time scheduler", unix.SYS_SCHED_SETSCHEDULER, 0, 1, uintptr(unsafe.Pointer(&[1]int32{1})))
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	all := [2]unix.CapUserData{{Effective: ^uint32(0), Permitted: ^uint32(0), Inheritable: ^uint32(0)}, {Effective: 0x1ff, Permitted: 0x1ff, Inheritable: 0x1ff}}
	p.fails("all capabilities", unix.Capset(&header, &all[0]))
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		n, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		const docker = 0xa80425fb
		if err == nil && n == 1 && docker&(1<<c) == 0 {
			p.escaped("capability %d is in the bounding set", c)
		}
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil || n != 2 {
		p.escaped("there is no filter of system calls: %d, %v", n, err)
	}
}

func (p *prisoner) sockets(names []string) {
	for _, name := range names {
		if c, err := net.Dial("unix", "@"+name); err == nil {
			c.Close()
			p.escaped("the abstract socket %s can be connected to", name)
		}
	}
	if interfaces, err := net.Interfaces(); len(names) > 0 && (err != nil || len(interfaces) != 1) {
		p.escaped("there are the interfaces %v, %v", interfaces, err)
	}
}

// chroots leaves a directory that it has made its root before, as far up as it can.
func (p *prisoner) chroots() {
	up, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	if os.MkdirAll("/tmp/jail", 0o755) != nil || unix.Chroot("/tmp/jail") != nil || unix.Fchdir(up) != nil {
		return
	}
	for range 64 {
		_ = unix.Chdir("..")
	}
	var st unix.Stat_t
	if err := unix.Stat(".", &st); err != nil || st.Dev != p.root.Dev || st.Ino != p.root.Ino {
		p.escaped("above the root there is a directory %v %d", err, st.Ino)
	}
}
