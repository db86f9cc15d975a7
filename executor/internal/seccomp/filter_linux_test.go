package seccomp

import (
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// capabilities are those of package rootfs.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
	"CAP_SETPCAP", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

func options(arch string, host, fast bool) Options {
	return Options{Arch: arch, Kernel: [2]uint64{6, 18}, Capabilities: capabilities, HostNetwork: host, FastSync: fast}
}

// each calls f for each filter, and each kind of programs that can run under it.
func each(t *testing.T, f func(t *testing.T, o Options, a abi)) {
	for arch, all := range abis {
		for _, a := range all {
			for _, o := range []Options{options(arch, false, false), options(arch, true, false), options(arch, false, true), options(arch, true, true)} {
				t.Run(fmt.Sprintf("%s on %s, host network %v, fast sync %v", a.column, arch, o.HostNetwork, o.FastSync), func(t *testing.T) {
					f(t, o, a)
				})
			}
		}
	}
}

// arguments are first ones that some rule may care about: socket families, namespaces, personalities, what has more bits than an int.
func arguments() []uint64 {
	all := []uint64{0x8, 0x11, 0x20000, 0x20008, 0x40000, 0xffffffff, 1 << 31, 1 << 32, 1 << 63, ^uint64(0)}
	for n := range uint64(unix.AF_MAX + 2) {
		all = append(all, n, n|1<<32)
	}
	for bit := range 32 {
		all = append(all, 1<<bit, 0x11|1<<bit)
	}
	return all
}

// A machine runs a compiled filter as the kernel does.
type machine struct{ vm *bpf.VM }

func newMachine(t *testing.T, prog []unix.SockFilter) machine {
	t.Helper()
	var all []bpf.Instruction
	for i, s := range prog {
		ins := bpf.RawInstruction{Op: s.Code, Jt: s.Jt, Jf: s.Jf, K: s.K}.Disassemble()
		if _, raw := ins.(bpf.RawInstruction); raw {
			t.Fatalf("instruction %d is none: %v", i, ins)
		}
		all = append(all, ins)
	}
	vm, err := bpf.NewVM(all)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}
}

// run answers as SECCOMP_RET_*. The virtual machine loads big-endian words, as of packets.
func (m machine) run(t *testing.T, audit, number uint32, args [6]uint64) uint32 {
	t.Helper()
	var data []byte
	for _, w := range []uint32{number, audit, 0, 0} {
		data = binary.BigEndian.AppendUint32(data, w)
	}
	for _, a := range args {
		data = binary.BigEndian.AppendUint32(data, uint32(a))
		data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
	}
	got, err := m.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

// TestCompile compares compiled filters with the rules that they were made of: all numbers that there are, and more, with all
// first arguments that matter for those that have rules about arguments.
func TestCompile(t *testing.T) {
	each(t, func(t *testing.T, o Options, a abi) {
		s := Filter(o)
		prog, err := Compile(s, o.Arch)
		if err != nil {
			t.Fatal(err)
		}
		if len(prog) > unix.BPF_MAXINSNS {
			t.Errorf("%d instructions", len(prog))
		}
		m := newMachine(t, prog)
		table := NewTable(s, a.column)
		picky := map[uint32]bool{}
		for _, call := range s.Syscalls {
			for _, name := range call.Names {
				if n, ok := table.Numbers[name]; ok && len(call.Args) > 0 {
					picky[n] = true
				}
			}
		}
		all := []uint32{privateARM - 1, privateARM, 1 << 30, 1<<30 + 41, 1<<31 - 1, 1 << 31, ^uint32(0)}
		for n := range uint32(1100) {
			all = append(all, n, privateARM+n%16)
		}
		for _, n := range all {
			args := []uint64{0, 1, ^uint64(0)}
			if picky[n] {
				args = arguments()
			}
			for _, arg := range args {
				in := [6]uint64{arg, arg, arg, arg, arg, arg}
				want := uint32(unix.SECCOMP_RET_ALLOW)
				if errno, reached := table.Answer(n, in); !reached {
					want = unix.SECCOMP_RET_ERRNO | uint32(errno)
				}
				if got := m.run(t, a.audit, n, in); got != want {
					t.Errorf("call %d with %#x: got %#x, want %#x", n, arg, got, want)
				}
			}
		}
		if got := m.run(t, 0x12345678, 0, [6]uint64{}); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("a call of an unknown architecture: %#x", got)
		}
	})
}

// TestCompileRefuses compiles what it does not know.
func TestCompileRefuses(t *testing.T) {
	good := Filter(options("amd64", false, false))
	for name, change := range map[string]func(*specs.LinuxSeccomp){
		"default action": func(s *specs.LinuxSeccomp) { s.DefaultAction = specs.ActAllow },
		"action":         func(s *specs.LinuxSeccomp) { s.Syscalls[0].Action = specs.ActTrace },
		"comparison":     func(s *specs.LinuxSeccomp) { s.Syscalls[0].Args[0].Op = specs.OpLessEqual },
		"two arguments":  func(s *specs.LinuxSeccomp) { s.Syscalls[0].Args = append(s.Syscalls[0].Args, s.Syscalls[0].Args[0]) },
	} {
		s := Filter(options("amd64", false, false))
		change(s)
		if prog, err := Compile(s, "amd64"); err == nil {
			t.Errorf("%s: %d instructions", name, len(prog))
		}
	}
	if _, err := Compile(good, "mips"); err == nil {
		t.Error("an architecture without a table compiles")
	}
}

// TestTable writes down what each kind of program can call in a step without a network, so that a new version of Docker's list shows what it changes.
func TestTable(t *testing.T) {
	lines := map[string][]string{}
	for i, c := range columns {
		arch := []string{"amd64", "amd64", "arm64", "arm64", "riscv64"}[i]
		table := NewTable(Filter(options(arch, false, false)), c)
		for name, n := range table.Numbers {
			said := map[string]bool{}
			for _, arg := range arguments() {
				switch errno, reached := table.Answer(n, [6]uint64{arg}); {
				case reached:
					said["reached"] = true
				default:
					said[unix.ErrnoName(errno)] = true
				}
			}
			lines[name] = append(lines[name], c+" "+strings.Join(slices.Sorted(maps.Keys(said)), "/"))
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		b.WriteString(name + ": " + strings.Join(lines[name], ", ") + "\n")
	}
	golden(t, "testdata/table.txt", b.String())
}

// TestStricterThanDocker looks for calls that a step can make and a container of Docker's cannot.
func TestStricterThanDocker(t *testing.T) {
	each(t, func(t *testing.T, o Options, a abi) {
		docker := &specs.LinuxSeccomp{DefaultErrnoRet: errno(unix.EPERM), Syscalls: o.applying(moby.DefaultProfile().Syscalls)}
		ours, theirs := NewTable(Filter(o), a.column), NewTable(docker, a.column)
		for name, n := range ours.Numbers {
			for _, arg := range arguments() {
				_, we := ours.Answer(n, [6]uint64{arg})
				if _, they := theirs.Answer(n, [6]uint64{arg}); we && !they {
					t.Errorf("%s with %#x reaches the kernel", name, arg)
				}
			}
		}
	})
}

// TestConditions compares how Docker's conditions are judged here with how Docker's own code judges them on this machine.
func TestConditions(t *testing.T) {
	for _, caps := range [][]string{nil, capabilities, {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE", "CAP_SYS_NICE"}} {
		want, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
		if err != nil {
			t.Fatal(err)
		}
		o := Options{Arch: runtime.GOARCH, Kernel: [2]uint64{6, 18}, Capabilities: caps}
		if got := o.applying(moby.DefaultProfile().Syscalls); !reflect.DeepEqual(got, want.Syscalls) {
			t.Errorf("with %q, there are %d rules; Docker has %d, or others", caps, len(got), len(want.Syscalls))
		}
	}
	old := Options{Arch: "amd64", Kernel: [2]uint64{4, 7}}
	if _, reached := NewTable(Filter(old), "amd64").Answer(numbers()["amd64"]["ptrace"], [6]uint64{}); reached {
		t.Error("ptrace, which can get around a filter before Linux 4.8, reaches such a kernel")
	}
}

// TestFilter looks at what matters most, by name.
func TestFilter(t *testing.T) {
	each(t, func(t *testing.T, o Options, a abi) {
		table := NewTable(Filter(o), a.column)
		const reaches = unix.Errno(0xffff)
		check := func(name string, arg uint64, want unix.Errno) {
			t.Helper()
			n, ok := table.Numbers[name]
			if !ok {
				return
			}
			got, reached := table.Answer(n, [6]uint64{arg})
			if reached {
				got = reaches
			}
			if got != want {
				t.Errorf("%s with %#x: got %d, want %d", name, arg, got, want)
			}
		}
		for _, name := range []string{"read", "openat", "execve", "socketcall", "chroot", "ptrace", "seccomp", "set_tls", "ipc", "fchmodat2", "riscv_hwprobe"} {
			check(name, 2, reaches)
		}
		for _, name := range []string{
			"quotactl", "quotactl_fd", "sysfs", "open_tree", "move_mount", "fsopen", "fsmount", "mount", "umount2", "mount_setattr", "setns", "unshare",
			"name_to_handle_at", "open_by_handle_at", "add_key", "keyctl", "request_key", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup",
			"kexec_load", "init_module", "syslog", "acct", "swapon", "pivot_root", "reboot", "kcmp", "pidfd_getfd", "process_madvise", "vm86", "iopl",
		} {
			check(name, 0, unix.EPERM)
		}
		check("clone3", 0, unix.ENOSYS)
		check("clone", unix.CLONE_VM|unix.CLONE_THREAD, reaches)
		check("clone", unix.CLONE_NEWUSER, unix.EPERM)
		check("personality", 8, reaches) // of 32-bit programs
		check("personality", 0x40000, unix.EPERM)
		for f := range uint64(unix.AF_MAX + 1) {
			want := unix.EPERM
			if f == unix.AF_UNIX || f == unix.AF_INET || f == unix.AF_INET6 || f == unix.AF_NETLINK {
				want = reaches
			}
			check("socket", f, want)
			check("socket", f|1<<32, unix.EPERM)
			if f != unix.AF_UNIX {
				want = unix.EPERM
			}
			check("socketpair", f, want)
		}
		if o.HostNetwork {
			check("socketcall", socketCall, reaches)
		} else {
			check("socketcall", socketCall, unix.EAFNOSUPPORT)
		}
		for _, name := range []string{"fsync", "fdatasync", "sync", "syncfs", "msync", "sync_file_range", "sync_file_range2"} {
			if o.FastSync {
				check(name, 0, 0)
			} else if name != "sync_file_range2" || a.column == "arm" {
				check(name, 0, reaches)
			}
		}
		if errno, reached := table.Answer(table.newest+1, [6]uint64{}); reached || errno != unix.ENOSYS {
			t.Errorf("a call that the list is too old for: %v, %v", errno, reached)
		}
		// By the order of what it makes of them, libseccomp has one answer for each call, or the first of several.
		actions := map[string]string{}
		for _, call := range table.Filter.Syscalls {
			for _, name := range call.Names {
				is := fmt.Sprint(call.Action, len(call.Args) == 0)
				if was, ok := actions[name]; ok && was != is && name != "socketcall" {
					t.Errorf("%s has rules with different actions", name)
				}
				actions[name] = is
			}
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	for b.Loop() {
		if prog, err := Compile(Filter(options("amd64", false, false)), "amd64"); err != nil {
			b.Fatal(prog, err)
		}
	}
}

// TestWatched holds which calls somebody is told of.
func TestWatched(t *testing.T) {
	for arch, all := range abis {
		o := options(arch, false, false)
		o.Watched, o.Users = true, 65537
		prog, err := Compile(Filter(o), arch)
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t, prog)
		for _, a := range all {
			for _, tt := range []struct {
				call string
				args [6]uint64
				told bool
			}{
				{"mknodat", [6]uint64{0, 0, unix.S_IFCHR | 0o666, 7}, true},
				{"mknodat", [6]uint64{0, 0, unix.S_IFBLK}, true},
				{"mknodat", [6]uint64{0, 0, unix.S_IFIFO | 0o666}, false},
				{"mknodat", [6]uint64{0, 0, 0o666}, false},
				{"mknod", [6]uint64{0, unix.S_IFCHR | 0o666, 7}, true},
				{"mknod", [6]uint64{0, unix.S_IFSOCK | 0o666, 7}, false},
				{"fchownat", [6]uint64{0, 0, 65536, 65536, 0}, false},
				{"fchownat", [6]uint64{0, 0, 65537, 0, 0}, true},
				{"fchownat", [6]uint64{1 << 20, 1 << 20, 0, 65537, 1 << 20}, true},
				{"fchown", [6]uint64{1 << 20, 65537, 0, 0}, true},
				{"fchown", [6]uint64{1 << 20, 0, 65536, 1 << 20}, false},
				{"lchown", [6]uint64{0, 0, 65537}, true},
				{"chown32", [6]uint64{0, 65537, 0}, true},
			} {
				number, ok := numbers()[a.column][tt.call]
				if !ok {
					continue
				}
				want := uint32(unix.SECCOMP_RET_ALLOW)
				if tt.told {
					want = unix.SECCOMP_RET_USER_NOTIF
				}
				if got := m.run(t, a.audit, number, tt.args); got != want {
					t.Errorf("%s: %s%v: %#x; want %#x", a.column, tt.call, tt.args, got, want)
				}
			}
		}
	}
}
