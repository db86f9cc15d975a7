// Command probe, run in a step with FastSync, makes each system call that is known, with arguments that do no harm, and compares what reaches the
// kernel with the table of package seccomp. Its argument says which network the step has: none or host. Built for 386, it does so for
// 32-bit programs. It prints what differs, and how much it has compared.
package main

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/seccomp"
)

// unfit are calls that end, stop or confuse who makes them. That they are allowed needs no proof: nothing runs without most of them. uprobe and uretprobe
// are for code that the kernel has written, and are asked of no filter.
var unfit = []string{"exit", "exit_group", "pause", "fork", "vfork", "clone", "rt_sigreturn", "sigreturn", "sigsuspend", "uprobe", "uretprobe"}

// refused are calls to which the kernel itself answers EPERM: the leader of a session makes no other, and Landlock wants that programs gain no rights.
var refused = []string{"setsid", "landlock_restrict_self"}

// absent are calls that are allowed and answer ENOSYS in any kernel: because there is no such call for these programs, or for what it is asked here.
var absent = []string{
	"afs_syscall", "create_module", "epoll_ctl_old", "epoll_wait_old", "get_kernel_syms", "get_thread_area", "getpmsg", "modify_ldt", "nfsservctl",
	"putpmsg", "query_module", "security", "set_thread_area", "tuxcall", "vserver", "futex", "futex_time64", "ipc", "memfd_secret",
	"pkey_alloc", "pkey_free", "pkey_mprotect", // for processors that have such keys
}

// oldest is the last call of Linux 5.6, which obx needs: later ones may be missing in the kernel, or be unknown to the runtime.
const oldest = 439

type probe struct {
	table           seccomp.Table
	reached, denied int
	wrong           bool
}

func main() {
	runtime.LockOSThread()
	p, err := newProbe(len(os.Args) == 2 && os.Args[1] == "host")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p.calls()
	p.arguments()
	fmt.Printf("%d reached, %d denied\n", p.reached, p.denied)
	if p.wrong {
		os.Exit(1)
	}
}

func newProbe(host bool) (*probe, error) {
	machine := map[string]string{"386": "amd64", "arm": "arm64"}[runtime.GOARCH]
	if machine == "" {
		machine = runtime.GOARCH
	}
	caps, err := bounding()
	if err != nil {
		return nil, err
	}
	s := seccomp.Filter(seccomp.Options{Arch: machine, Kernel: [2]uint64{5, 6}, Capabilities: caps, HostNetwork: host, FastSync: true})
	return &probe{table: seccomp.NewTable(s, runtime.GOARCH)}, nil
}

// bounding are the capabilities that this process and its children can have, of those that Docker's list asks for.
func bounding() (caps []string, err error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if bits, ok := strings.CutPrefix(sc.Text(), "CapBnd:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(bits), 16, 64)
			if err != nil {
				return nil, err
			}
			for bit, name := range map[int]string{
				unix.CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_SYS_BOOT: "CAP_SYS_BOOT",
				unix.CAP_SYS_CHROOT: "CAP_SYS_CHROOT", unix.CAP_SYS_MODULE: "CAP_SYS_MODULE", unix.CAP_SYS_PACCT: "CAP_SYS_PACCT",
				unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE", unix.CAP_SYS_RAWIO: "CAP_SYS_RAWIO", unix.CAP_SYS_TIME: "CAP_SYS_TIME",
				unix.CAP_SYS_TTY_CONFIG: "CAP_SYS_TTY_CONFIG", unix.CAP_SYS_NICE: "CAP_SYS_NICE", unix.CAP_SYSLOG: "CAP_SYSLOG",
				unix.CAP_BPF: "CAP_BPF", unix.CAP_PERFMON: "CAP_PERFMON",
			} {
				if n>>bit&1 != 0 {
					caps = append(caps, name)
				}
			}
		}
	}
	return caps, nil
}

// calls makes each call with arguments that are no addresses, descriptors, processes or flags.
func (p *probe) calls() {
	for _, name := range slices.Sorted(maps.Keys(p.table.Numbers)) {
		if !slices.Contains(unfit, name) {
			const none = ^uintptr(0)
			p.try(name, [6]uintptr{none, none, none, none, none, none})
		}
	}
	for _, number := range []uint32{1000, 0x3fffffff} { // of the future
		if got := call(number, [6]uintptr{}); got != unix.ENOSYS {
			p.fail("call %d", number, got, "ENOSYS")
		}
	}
}

// arguments makes the calls for which they matter.
func (p *probe) arguments() {
	for family := range uintptr(unix.AF_MAX + 1) {
		p.try("socket", [6]uintptr{family, unix.SOCK_DGRAM})
		p.try("socketpair", [6]uintptr{family, unix.SOCK_DGRAM})
	}
	// By the call that makes sockets of any family, for which the kernel may want capabilities: it must not be asked.
	for _, family := range []uintptr{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_VSOCK} {
		args := [3]uintptr{family, unix.SOCK_DGRAM}
		p.try("socketcall", [6]uintptr{1, uintptr(unsafe.Pointer(&args[0]))})
		runtime.KeepAlive(&args)
	}
	for number := range uintptr(22) {
		p.try("socketcall", [6]uintptr{number})
	}
	for _, persona := range []uintptr{8, 0x20000, 0x20008, 0x40000, 0x100000, 0x800000, 0xffffffff, 0} {
		p.try("personality", [6]uintptr{persona})
	}
	for bit := range 32 { // with a flag that makes no sense alone, so that it never succeeds
		if flag := uintptr(1) << bit; flag != unix.CLONE_VFORK && flag != unix.CLONE_SIGHAND {
			p.try("clone", [6]uintptr{flag | unix.CLONE_THREAD})
		}
	}
}

func (p *probe) try(name string, args [6]uintptr) {
	number, ok := p.table.Numbers[name]
	if !ok {
		return
	}
	wide := [6]uint64{}
	for i, a := range args {
		wide[i] = uint64(a)
	}
	want, reaches := p.table.Answer(number, wide)
	got := call(number, args)
	what := name + " %#x"
	switch {
	case reaches:
		p.reached++
		if got == unix.EPERM && !slices.Contains(refused, name) || got == unix.ENOSYS && number <= oldest && !slices.Contains(absent, name) {
			p.fail(what, args[0], got, "to reach the kernel")
		}
	default:
		p.denied++
		// To a runtime that does not know a call, it is one of the future.
		if got != want && (got != unix.ENOSYS || number <= oldest) {
			p.fail(what, args[0], got, fmt.Sprintf("%d", int(want)))
		}
	}
}

func (p *probe) fail(what string, arg any, got syscall.Errno, want string) {
	p.wrong = true
	fmt.Printf(what+" answers %d (%v), want %s\n", arg, int(got), got, want)
}

func call(number uint32, a [6]uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(uintptr(number), a[0], a[1], a[2], a[3], a[4], a[5])
	return errno
}
