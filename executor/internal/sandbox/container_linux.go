package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/userns"
)

// A builder writes the program of one container.
type builder struct {
	program
	*Container
	root     uint64 // its descriptor
	network  uint64 // that of its network namespace; 0 if it has none of its own
	listener uint64 // that of Listener; 0 if there is none
}

var cwd = ^uint64(99) // AT_FDCWD, -100

// build writes the program, in the order in which the kernel has to be asked: what needs privileges, from outside to inside, and then to lose them.
func (b *builder) build() error {
	s := b.Spec
	if !s.Process.Terminal { // else they stay /dev/null until there is one
		b.do("give the process its input and output", nil, unix.SYS_DUP3, firstFD, 0, 0)
		b.do("", nil, unix.SYS_DUP3, firstFD+1, 1, 0)
		b.do("", nil, unix.SYS_DUP3, firstFD+1, 2, 0)
	}
	if b.network > 0 {
		b.do("join a network namespace", nil, unix.SYS_SETNS, b.network, unix.CLONE_NEWNET)
	}
	b.do("join a session keyring of its own", []unix.Errno{unix.ENOSYS, unix.EPERM}, unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	b.do("set the host name", nil, unix.SYS_SETHOSTNAME, b.string(s.Hostname), uint64(len(s.Hostname)))
	b.joinGroups()
	if err := b.mounts(); err != nil {
		return err
	}
	b.do("make it the root", nil, unix.SYS_FCHDIR, b.root)
	b.do("", nil, unix.SYS_PIVOT_ROOT, b.string("."), b.string("."))
	b.do("leave the root before", nil, unix.SYS_UMOUNT2, b.string("."), unix.MNT_DETACH)
	b.do("", nil, unix.SYS_CHDIR, b.string("/"))
	b.close(b.root)
	b.protect()
	if err := b.confine(); err != nil {
		return err
	}
	b.execute()
	return nil
}

func (b *builder) joinGroups() {
	if !b.Group.Unified() { // else it began there
		for _, d := range b.Group.Dirs {
			b.writeFile("join a control group", filepath.Join(d.Path, "tasks"), "0") // a thread: much cheaper than a process
		}
	}
	for _, ns := range b.Spec.Linux.Namespaces {
		if ns.Type == specs.CgroupNamespace {
			b.do("make a namespace of control groups", nil, unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
		}
	}
}

func (b *builder) writeFile(what, name, value string) {
	fd := b.open(what, unix.SYS_OPENAT, cwd, b.string(name), unix.O_WRONLY|unix.O_CLOEXEC)
	b.do("", nil, unix.SYS_WRITE, fd, b.bytes([]byte(value)), uint64(len(value)))
	b.close(fd)
}

var mountFlags = map[string]uint64{
	"nosuid": unix.MS_NOSUID, "noexec": unix.MS_NOEXEC, "nodev": unix.MS_NODEV, "ro": unix.MS_RDONLY,
	"relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
}

// mounts mounts the system's file systems. Each place is opened beneath the root, through no link, and is the working directory when something
// is mounted there.
func (b *builder) mounts() error {
	b.root = b.open("open the root", unix.SYS_OPENAT, cwd, b.string(b.Spec.Root.Path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	for _, m := range b.Spec.Mounts {
		var flags uint64
		var data []string
		for _, o := range m.Options {
			if f, ok := mountFlags[o]; ok {
				flags |= f
			} else {
				data = append(data, o)
			}
		}
		name := strings.TrimPrefix(m.Destination, "/")
		if parent := path.Dir(name); parent == "dev" { // a directory made here
			b.enter("make "+m.Destination, parent)
			b.do("", nil, unix.SYS_MKDIRAT, cwd, b.string(path.Base(name)), 0o755)
		}
		what := "mount on " + m.Destination
		b.enter(what, name)
		switch {
		case m.Type == "cgroup" && b.Group.Unified():
			b.mount(what, "cgroup", ".", "cgroup2", flags, "")
		case m.Type == "cgroup":
			b.mountGroups(what, name, flags)
		case m.Type == "sysfs" && b.network == 0 && userns.Inside(): // it is made only of a network that the user namespace has
			b.mount(what, "/sys", ".", "", unix.MS_BIND|unix.MS_REC, "")
			b.enter(what, name)
			readOnly := b.words(unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, 0, 0, 0)
			b.do("", nil, unix.SYS_MOUNT_SETATTR, cwd, b.string("."), unix.AT_RECURSIVE, readOnly, 32)
		default:
			b.mount(what, m.Source, ".", m.Type, flags, strings.Join(data, ","))
		}
		if name == "dev" {
			b.enter("make devices", name)
			b.devices()
		}
	}
	if b.Spec.Process.Terminal {
		b.terminal()
	}
	return nil
}

// enter makes a directory of the root the working directory.
func (b *builder) enter(what, name string) {
	const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	how := b.words(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0, resolve)
	fd := b.open(what, unix.SYS_OPENAT2, b.root, b.string(name), how, 24)
	b.do("", nil, unix.SYS_FCHDIR, fd)
	b.close(fd)
}

func (b *builder) mount(what, source, target, kind string, flags uint64, data string, missing ...unix.Errno) {
	var at uint64
	if data != "" {
		at = b.string(data)
	}
	b.do(what, missing, unix.SYS_MOUNT, b.string(source), b.string(target), b.string(kind), flags, at)
}

// mountGroups shows a process its groups of version 1, as far as it has any.
func (b *builder) mountGroups(what, name string, flags uint64) {
	b.mount(what, "tmpfs", ".", "tmpfs", flags&^unix.MS_RDONLY, "mode=755")
	b.enter(what, name)
	for _, d := range b.Group.Dirs {
		at := filepath.Base(d.Hierarchy)
		b.do("", nil, unix.SYS_MKDIRAT, cwd, b.string(at), 0o755)
		b.mount(what, d.Path, at, "", unix.MS_BIND, "")
		b.mount(what, "", at, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
		if names := strings.Split(at, ","); len(names) > 1 {
			for _, n := range names {
				b.do("", nil, unix.SYS_SYMLINKAT, b.string(at), cwd, b.string(n))
			}
		}
	}
	b.mount(what, "", ".", "", unix.MS_REMOUNT|flags, "")
}

// devices makes those that every process finds, in the working directory.
func (b *builder) devices() {
	b.do("", nil, unix.SYS_UMASK, 0)
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		if userns.Inside() { // nobody can make one there, nor open one that is on a file system of the namespace
			b.do("", nil, unix.SYS_MKNODAT, cwd, b.string(d.name), unix.S_IFREG|0o666, 0)
			b.mount("", "/dev/"+d.name, d.name, "", unix.MS_BIND, "")
			continue
		}
		b.do("", nil, unix.SYS_MKNODAT, cwd, b.string(d.name), unix.S_IFCHR|0o666, unix.Mkdev(d.major, d.minor))
	}
	links := [][2]string{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
	}
	if _, err := os.Stat("/proc/kcore"); err == nil {
		links = append(links, [2]string{"core", "/proc/kcore"})
	}
	for _, l := range links {
		b.do("", nil, unix.SYS_SYMLINKAT, b.string(l[1]), cwd, b.string(l[0]))
	}
	b.do("", nil, unix.SYS_UMASK, 0o022)
}

// terminal makes one of the container's own, and sends its controlling end.
func (b *builder) terminal() {
	const what = "make a terminal"
	b.enter(what, "dev")
	master := b.open(what, unix.SYS_OPENAT, cwd, b.string("pts/ptmx"), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	b.do("", nil, unix.SYS_IOCTL, master, unix.TIOCSPTLCK, b.words(0))
	if box := b.Spec.Process.ConsoleSize; box != nil {
		size := binary.LittleEndian.AppendUint16(nil, uint16(box.Height))
		size = binary.LittleEndian.AppendUint16(size, uint16(box.Width))
		b.do("", nil, unix.SYS_IOCTL, master, unix.TIOCSWINSZ, b.bytes(append(size, 0, 0, 0, 0)))
	}
	slave := b.open(what, unix.SYS_OPENAT, cwd, b.string("pts/0"), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	b.do("", nil, unix.SYS_FCHOWN, slave, uint64(b.Spec.Process.User.UID), ^uint64(0))
	b.do("", nil, unix.SYS_MKNODAT, cwd, b.string("console"), unix.S_IFREG|0o600, 0)
	b.mount(what, "pts/0", "console", "", unix.MS_BIND, "")
	b.send("send the terminal", firstFD, master)
	b.do(what, nil, unix.SYS_SETSID)
	b.do("", nil, unix.SYS_IOCTL, slave, unix.TIOCSCTTY, 0)
	for fd := range uint64(3) {
		b.do("", nil, unix.SYS_DUP3, slave, fd, 0)
	}
	b.close(slave)
	b.close(master)
}

// send sends a descriptor on a socket, with a message of one byte.
func (b *builder) send(what string, socket, fd uint64) {
	rights := unix.UnixRights(int(fd))
	data := b.words(b.bytes([]byte{0}), 1)
	message := b.words(0, 0, data, 1, b.bytes(rights), uint64(len(rights)), 0) // struct msghdr
	b.do(what, nil, unix.SYS_SENDMSG, socket, message, unix.MSG_NOSIGNAL)
}

// protect takes from /proc and /sys what nobody may see or change.
func (b *builder) protect() {
	missing := []unix.Errno{unix.ENOENT}
	const keep = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC // as /proc and /sys are mounted
	for _, name := range b.Spec.Linux.ReadonlyPaths {
		what := "make " + name + " read-only"
		b.mount(what, name, name, "", unix.MS_BIND|unix.MS_REC, "", missing...)
		b.mount(what, "", name, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|keep, "", missing...)
	}
	for _, name := range b.Spec.Linux.MaskedPaths {
		what := "mask " + name
		// Most are not there, and calls that fail are calls, too. This process sees the same kernel, a little earlier.
		switch st, err := os.Lstat(name); {
		case errors.Is(err, fs.ErrNotExist):
		case err == nil && st.IsDir():
			b.mount(what, "tmpfs", name, "tmpfs", unix.MS_RDONLY, "", missing...)
		default:
			b.mount(what, "/dev/null", name, "", unix.MS_BIND, "", missing...)
		}
	}
}

// confine takes what the process may not have.
func (b *builder) confine() error {
	p := b.Spec.Process
	if p.ApparmorProfile != "" {
		file := "/proc/self/attr/apparmor/exec"
		if _, err := os.Stat(file); err != nil {
			file = "/proc/self/attr/exec"
		}
		b.writeFile("confine it by AppArmor", file, "exec "+p.ApparmorProfile)
	}
	for _, r := range p.Rlimits {
		which, ok := map[string]uint64{"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC}[r.Type]
		if !ok {
			return fmt.Errorf("unknown limit %s", r.Type)
		}
		b.do("set "+r.Type, nil, unix.SYS_PRLIMIT64, 0, which, b.words(r.Soft, r.Hard), 0)
	}
	if p.User.Umask != nil {
		b.do("set the umask", nil, unix.SYS_UMASK, uint64(*p.User.Umask))
	}
	if !p.Terminal {
		b.do("make a session", nil, unix.SYS_SETSID)
		for fd, f := range []*os.File{b.Stdin, b.Stdout} {
			if isPipe(f) {
				b.do("give the process its input and output", nil, unix.SYS_FCHOWN, uint64(fd), uint64(p.User.UID), ^uint64(0))
			}
		}
	}
	for i, c := range p.Cwd {
		if i > 0 && c == '/' {
			b.makeDir(p.Cwd[:i])
		}
	}
	b.makeDir(p.Cwd)
	bounding := capabilityBits(p.Capabilities.Bounding)
	for c := range uint64(unix.CAP_LAST_CAP + 1) {
		if bounding&(1<<c) == 0 {
			b.do(fmt.Sprintf("drop capability %d", c), []unix.Errno{unix.EINVAL}, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
	}
	b.do("keep capabilities", nil, unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	if len(b.Filter) > 0 {
		const what = "install the filter of system calls"
		prog := b.words(uint64(len(b.Filter)/8), b.bytes(b.Filter))
		if b.listener > 0 {
			fd := b.open(what, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, prog)
			b.send(what, b.listener, fd)
			b.close(fd)
		} else {
			b.do(what, nil, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, prog)
		}
	}
	uid, gid := uint64(p.User.UID), uint64(p.User.GID)
	b.do("leave all groups", nil, unix.SYS_SETGROUPS, 0, 0)
	b.do(fmt.Sprint("set group ", gid), nil, unix.SYS_SETRESGID, gid, gid, gid)
	b.do(fmt.Sprint("set user ", uid), nil, unix.SYS_SETRESUID, uid, uid, uid)
	eff, prm, inh := capabilityBits(p.Capabilities.Effective), capabilityBits(p.Capabilities.Permitted), capabilityBits(p.Capabilities.Inheritable)
	var caps []byte
	for _, shift := range []int{0, 32} {
		for _, set := range []uint64{eff, prm, inh} {
			caps = binary.LittleEndian.AppendUint32(caps, uint32(set>>shift))
		}
	}
	b.do("set capabilities", nil, unix.SYS_CAPSET, b.words(unix.LINUX_CAPABILITY_VERSION_3), b.bytes(caps))
	b.do("chdir to "+p.Cwd, nil, unix.SYS_CHDIR, b.string(p.Cwd))
	return nil
}

// makeDir makes a working directory that is not there. What is wrong with one that is, chdir tells.
func (b *builder) makeDir(name string) {
	b.do("make the working directory "+name, []unix.Errno{unix.EEXIST, unix.ENOTDIR, unix.EROFS, unix.ELOOP}, unix.SYS_MKDIRAT, cwd, b.string(name), 0o755)
}

// execute adds the last call that succeeds: that of the first program that can be executed.
func (b *builder) execute() {
	p := b.Spec.Process
	if b.Probe {
		b.do("end", nil, unix.SYS_EXIT_GROUP, 0)
		return
	}
	argv, env := b.strings(p.Args), b.strings(p.Env)
	for _, file := range b.candidates() {
		// A link of /proc leads to the program that this is: there is nothing else in its namespace.
		how := b.words(unix.O_PATH|unix.O_CLOEXEC, 0, unix.RESOLVE_NO_MAGICLINKS)
		at := b.string(file)
		what := fmt.Sprintf("exec: %q", p.Args[0])
		b.do(what, notHere, unix.SYS_OPENAT2, cwd, at, how, 24)
		b.do(what, notHere, unix.SYS_EXECVE, at, argv, env)
	}
	b.do("exec", nil, 0xffff) // there is no such call
}

// notHere are errors after which the next directory is looked into.
var notHere = []unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.EACCES}

// candidates are the files that a command may mean.
func (b *builder) candidates() []string {
	p := b.Spec.Process
	name := p.Args[0]
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var all []string
	for _, v := range p.Env {
		if search, ok := strings.CutPrefix(v, "PATH="); ok {
			all = nil
			for dir := range strings.SplitSeq(search, ":") {
				all = append(all, filepath.Join(dir, name))
			}
		}
	}
	return all
}

// explain says why a container could not be made.
func (b *builder) explain(f failure) error {
	command := b.Spec.Process.Args[0]
	switch {
	case !f.last:
		return fmt.Errorf("%s: %w", f.what, f.errno)
	case f.wasSkipped(unix.EACCES):
		return fmt.Errorf("exec: %q: %w", command, unix.EACCES)
	case strings.Contains(command, "/"):
		return fmt.Errorf("exec: %q: %w", command, unix.ENOENT)
	}
	return fmt.Errorf("exec: %q: executable file not found in $PATH", command)
}

func (b *builder) check() error {
	s := b.Spec
	if s.Process == nil || s.Linux == nil || s.Root == nil || s.Process.Capabilities == nil || len(s.Process.Args) == 0 || b.Group == nil {
		return errors.New("the configuration of a container is not whole")
	}
	return nil
}

func namespaceFlags(s *specs.Spec) (flags uint64, err error) {
	for _, ns := range s.Linux.Namespaces {
		switch ns.Type {
		case specs.PIDNamespace:
			flags |= unix.CLONE_NEWPID
		case specs.IPCNamespace:
			flags |= unix.CLONE_NEWIPC
		case specs.UTSNamespace:
			flags |= unix.CLONE_NEWUTS
		case specs.MountNamespace:
			flags |= unix.CLONE_NEWNS
		case specs.NetworkNamespace: // made beforehand; see Networks
		case specs.CgroupNamespace: // made from inside, when it is in its group
		default:
			return 0, fmt.Errorf("unknown namespace %q", ns.Type)
		}
	}
	return flags, nil
}

var capabilityNumbers = map[string]uint{
	"CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_FSETID": unix.CAP_FSETID,
	"CAP_FOWNER": unix.CAP_FOWNER, "CAP_MKNOD": unix.CAP_MKNOD, "CAP_SETGID": unix.CAP_SETGID, "CAP_SETUID": unix.CAP_SETUID,
	"CAP_SETFCAP": unix.CAP_SETFCAP, "CAP_SETPCAP": unix.CAP_SETPCAP, "CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT,
	"CAP_KILL": unix.CAP_KILL, "CAP_AUDIT_WRITE": unix.CAP_AUDIT_WRITE,
}

// capabilityBits leaves out what it does not know: that is not given.
func capabilityBits(names []string) (bits uint64) {
	for _, n := range names {
		if c, ok := capabilityNumbers[n]; ok {
			bits |= 1 << c
		}
	}
	return bits
}
