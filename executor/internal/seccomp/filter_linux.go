package seccomp

import (
	"maps"
	"slices"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Options are what a filter depends on.
type Options struct {
	Arch         string    // as runtime.GOARCH has it
	Kernel       [2]uint64 // version and revision, as 6 and 18
	Capabilities []string  // all that the process can get
	HostNetwork  bool
	FastSync     bool // calls that write files to disks do nothing

	// Watched tells of calls that only root of the machine can make; see [Watch]. They go on as without it. Users are those that the process's user
	// namespace has, from 0 on, and no fewer groups.
	Watched bool
	Users   uint64
}

// families are those of which a process may make sockets.
var families = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// syncing are the calls that do nothing with FastSync.
var syncing = []string{
	"fsync", "fdatasync", "sync", "syncfs", "msync", "sync_file_range", "sync_file_range2", "arm_sync_file_range",
}

// socketCall is the number of socket among the calls that socketcall makes.
const socketCall = 1

// Filter is what a process may call. Of several rules for one call, the first that matches counts.
func Filter(o Options) *specs.LinuxSeccomp {
	docker := moby.DefaultProfile()
	s := &specs.LinuxSeccomp{DefaultAction: docker.DefaultAction, DefaultErrnoRet: docker.DefaultErrnoRet, Architectures: architectures(o.Arch, docker)}
	own, replaced := o.rules()
	s.Syscalls = own
	always := map[string]bool{} // allowed whatever the arguments
	for _, rule := range o.applying(docker.Syscalls) {
		rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(name string) bool { return slices.Contains(replaced, name) })
		if rule.Action == specs.ActAllow && len(rule.Args) == 0 {
			for _, name := range rule.Names {
				always[name] = true
			}
		} else if len(rule.Names) > 0 {
			s.Syscalls = append(s.Syscalls, rule)
		}
	}
	s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: slices.Sorted(maps.Keys(always)), Action: specs.ActAllow})
	return s
}

// rules are those that are not Docker's, and the calls whose rules of Docker's they replace.
func (o Options) rules() (own []specs.LinuxSyscall, replaced []string) {
	allow := func(name string, arg specs.LinuxSeccompArg) {
		own = append(own, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg}})
	}
	// That the first of the arguments is an int of 32 bits does not matter: to be equal, all 64 have to be.
	replaced = []string{"socket", "socketpair", "name_to_handle_at"}
	if (o.Arch == "amd64" || o.Arch == "386") && !o.HostNetwork {
		replaced = append(replaced, "socketcall")
		// The mask makes it another comparison than libseccomp's own for the rules of socket; see the package.
		own = append(own, specs.LinuxSyscall{
			Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: errno(unix.EAFNOSUPPORT),
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0x7fffffff, ValueTwo: socketCall, Op: specs.OpMaskedEqual}},
		})
		allow("socketcall", specs.LinuxSeccompArg{Index: 0, Value: socketCall, Op: specs.OpGreaterThan})
	}
	for _, f := range families {
		allow("socket", specs.LinuxSeccompArg{Index: 0, Value: f, Op: specs.OpEqualTo})
	}
	allow("socketpair", specs.LinuxSeccompArg{Index: 0, Value: unix.AF_UNIX, Op: specs.OpEqualTo})
	if o.FastSync {
		own = append(own, specs.LinuxSyscall{Names: syncing, Action: specs.ActErrno, ErrnoRet: errno(0)})
		replaced = append(replaced, syncing...)
	}
	if o.Watched {
		own = append(own, o.watched()...)
	}
	return own, replaced
}

// watched are the rules for calls that make what no user namespace can: a device node, or a file of a user that the namespace does not have.
func (o Options) watched() (rules []specs.LinuxSyscall) {
	notify := func(arg specs.LinuxSeccompArg, names ...string) {
		rules = append(rules, specs.LinuxSyscall{Names: names, Action: specs.ActNotify, Args: []specs.LinuxSeccompArg{arg}})
	}
	for _, kind := range []uint64{unix.S_IFCHR, unix.S_IFBLK} {
		notify(specs.LinuxSeccompArg{Index: 1, Value: unix.S_IFMT, ValueTwo: kind, Op: specs.OpMaskedEqual}, "mknod")
		notify(specs.LinuxSeccompArg{Index: 2, Value: unix.S_IFMT, ValueTwo: kind, Op: specs.OpMaskedEqual}, "mknodat")
	}
	for _, index := range []uint{1, 2} { // -1, which is nobody, too: Watch knows better
		notify(specs.LinuxSeccompArg{Index: index, Value: o.Users - 1, Op: specs.OpGreaterThan}, owned...)
		notify(specs.LinuxSeccompArg{Index: index + 1, Value: o.Users - 1, Op: specs.OpGreaterThan}, "fchownat")
	}
	return rules
}

// owned are the calls that give a file, their first argument, to a user and a group, the second and third.
var owned = []string{"chown", "fchown", "lchown", "chown32", "fchown32", "lchown32"}

func errno(n unix.Errno) *uint {
	u := uint(n)
	return &u
}

// applying are the rules of Docker's whose conditions are met.
func (o Options) applying(docker []*moby.Syscall) (rules []specs.LinuxSyscall) {
	for _, call := range docker {
		if o.meets(call.Includes, true) && !o.meets(call.Excludes, false) {
			rules = append(rules, call.LinuxSyscall)
		}
	}
	return rules
}

// meets reports whether what Docker's profile has as a condition is met: all of a condition that includes a rule, or any of one
// that excludes it.
func (o Options) meets(f *moby.Filter, includes bool) bool {
	if f == nil {
		return includes
	}
	var met []bool
	if len(f.Arches) > 0 {
		met = append(met, slices.Contains(f.Arches, dockerArch(o.Arch)))
	}
	for _, c := range f.Caps {
		met = append(met, slices.Contains(o.Capabilities, c))
	}
	if min := f.MinKernel; min != nil {
		met = append(met, slices.Compare(o.Kernel[:], []uint64{min.Kernel, min.Major}) >= 0)
	}
	if includes {
		return !slices.Contains(met, false)
	}
	return slices.Contains(met, true)
}

// dockerArch is the name that Docker's conditions have for an architecture.
func dockerArch(arch string) string {
	if arch == "386" {
		return "x86"
	}
	return arch
}

// architectures are those whose system calls a process may make: calls of others end it. Nil is the machine's own alone.
func architectures(arch string, docker *moby.Seccomp) []specs.Arch {
	own := map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[arch]
	for _, a := range docker.ArchMap {
		if a.Arch == own {
			return append([]specs.Arch{own}, slices.DeleteFunc(slices.Clone(a.SubArches), func(s specs.Arch) bool { return s == specs.ArchX32 })...)
		}
	}
	return nil
}
