package seccomp

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. All architectures of abis are little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// privateARM is before the numbers of calls that only 32-bit ARM has, far above all others.
const privateARM = 0xf0000

// longestJump is how far a jump with a condition leads in the kernel's language.
const longestJump = 255

// Compiles reports whether Compile knows an architecture of machines.
func Compiles(arch string) bool { return abis[arch] != nil }

// Compile makes the kernel's program of a filter, for a machine of an architecture. It knows what Filter makes; another filter may be an
// error. Calls that the table of numbers does not have for an architecture do not exist there.
func Compile(s *specs.LinuxSeccomp, arch string) ([]unix.SockFilter, error) {
	all, ok := abis[arch]
	if !ok {
		return nil, fmt.Errorf("compile a seccomp filter: the system calls of %s are not known here", arch)
	}
	if s.DefaultAction != specs.ActErrno {
		return nil, fmt.Errorf("compile a seccomp filter: default action %q is unknown", s.DefaultAction)
	}
	prog := []unix.SockFilter{load(offArch)}
	for _, a := range all {
		if a != all[0] && !slices.Contains(s.Architectures, a.arch) {
			continue
		}
		part, err := compileABI(s, numbers()[a.column])
		if err != nil {
			return nil, fmt.Errorf("compile a seccomp filter for %s: %w", a.column, err)
		}
		prog = append(prog, jump(unix.BPF_JEQ, a.audit, 1, 0), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(part))})
		prog = append(prog, part...)
	}
	return append(prog, ret(unix.SECCOMP_RET_KILL_PROCESS)), nil
}

// compileABI makes the part for one way into the kernel: the calls in the order of their numbers, calls that follow each other and are
// answered alike as one. So most of what a step calls depends on its number alone, which the kernel (since 5.11) finds out once, to run no
// program then.
func compileABI(s *specs.LinuxSeccomp, numbers map[string]uint32) ([]unix.SockFilter, error) {
	rules, newest := byNumber(s, numbers)
	usual, err := action(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	newer, err := action(specs.ActErrno, errno(unix.ENOSYS))
	if err != nil {
		return nil, err
	}
	var all []segment
	add := func(from uint32, body []unix.SockFilter) {
		if n := len(all); n == 0 || !slices.Equal(all[n-1].body, body) {
			all = append(all, segment{from, body})
		}
	}
	next := uint32(0)
	gap := func(to uint32) { // nobody has a rule for what is before it
		if next < to && next <= newest {
			add(next, usual)
		}
		if next < to && to > newest {
			add(max(next, newest+1), newer)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(rules)) {
		gap(n)
		body, err := compileRules(rules[n], usual)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rules[n][0].Names, err)
		}
		add(n, body)
		next = n + 1
	}
	gap(^uint32(0))
	return append([]unix.SockFilter{load(offNumber)}, search(all)...), nil
}

// A segment is consecutive numbers of calls that are answered alike.
type segment struct {
	from uint32 // to where the next begins
	body []unix.SockFilter
}

// search finds the segment of a number by halves. A filter that is installed is asked about each number that there is: with one comparison after the
// other, that took a third of the time.
func search(all []segment) []unix.SockFilter {
	if len(all) == 1 {
		return all[0].body
	}
	half := len(all) / 2
	low, high := search(all[:half]), search(all[half:])
	from := all[half].from
	prog := []unix.SockFilter{jump(unix.BPF_JGE, from, uint8(len(low)), 0)}
	if len(low) > longestJump {
		prog = []unix.SockFilter{jump(unix.BPF_JGE, from, 0, 1), {Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(low))}}
	}
	return slices.Concat(prog, low, high)
}

// byNumber are the rules for each call, and the last number that there is a rule for.
func byNumber(s *specs.LinuxSeccomp, numbers map[string]uint32) (rules map[uint32][]specs.LinuxSyscall, newest uint32) {
	rules = map[uint32][]specs.LinuxSyscall{}
	for _, call := range s.Syscalls {
		for _, name := range call.Names {
			if n, ok := numbers[name]; ok {
				rules[n] = append(rules[n], call)
				if n < privateARM {
					newest = max(newest, n)
				}
			}
		}
	}
	return rules, newest
}

// compileRules is what answers one call: by the first of its rules that matches.
func compileRules(rules []specs.LinuxSyscall, usual []unix.SockFilter) ([]unix.SockFilter, error) {
	var body []unix.SockFilter
	for _, r := range rules {
		answer, err := action(r.Action, r.ErrnoRet)
		if err != nil {
			return nil, err
		}
		if len(r.Args) == 0 {
			return append(body, answer...), nil
		}
		if len(r.Args) > 1 {
			return nil, fmt.Errorf("it is not known here how to compare several arguments")
		}
		test, err := compare(r.Args[0])
		if err != nil {
			return nil, err
		}
		body = append(append(body, test...), answer...)
	}
	return append(body, usual...), nil
}

// compare is a test that skips one instruction, which comes after it, if an argument is not as it has to be.
func compare(a specs.LinuxSeccompArg) ([]unix.SockFilter, error) {
	low, high := uint32(offArgs+8*a.Index), uint32(offArgs+8*a.Index+4)
	switch a.Op {
	case specs.OpEqualTo:
		return []unix.SockFilter{
			load(high), jump(unix.BPF_JEQ, uint32(a.Value>>32), 0, 3),
			load(low), jump(unix.BPF_JEQ, uint32(a.Value), 0, 1),
		}, nil
	case specs.OpMaskedEqual: // Value is the mask
		return []unix.SockFilter{
			load(high), and(uint32(a.Value >> 32)), jump(unix.BPF_JEQ, uint32(a.ValueTwo>>32), 0, 4),
			load(low), and(uint32(a.Value)), jump(unix.BPF_JEQ, uint32(a.ValueTwo), 0, 1),
		}, nil
	case specs.OpGreaterThan:
		return []unix.SockFilter{
			load(high), jump(unix.BPF_JGT, uint32(a.Value>>32), 3, 0), jump(unix.BPF_JEQ, uint32(a.Value>>32), 0, 3),
			load(low), jump(unix.BPF_JGT, uint32(a.Value), 0, 1),
		}, nil
	}
	return nil, fmt.Errorf("comparison %q is unknown", a.Op)
}

func action(a specs.LinuxSeccompAction, errno *uint) ([]unix.SockFilter, error) {
	switch {
	case a == specs.ActAllow:
		return []unix.SockFilter{ret(unix.SECCOMP_RET_ALLOW)}, nil
	case a == specs.ActNotify:
		return []unix.SockFilter{ret(unix.SECCOMP_RET_USER_NOTIF)}, nil
	case a == specs.ActErrno && errno != nil && *errno <= unix.SECCOMP_RET_DATA:
		return []unix.SockFilter{ret(unix.SECCOMP_RET_ERRNO | uint32(*errno))}, nil
	}
	return nil, fmt.Errorf("action %q is unknown", a)
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func and(mask uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}
}

func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func ret(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

// Install makes the kernel judge by a compiled filter what this thread, and all that it starts, calls from now on.
func Install(prog []unix.SockFilter) error {
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("install a seccomp filter of %d instructions: %w", len(prog), errno)
	}
	return nil
}

// Annotation is the name under which crun takes a compiled filter, which it then installs instead of one that it compiles itself.
const Annotation = "run.oci.seccomp_bpf_data"

// Bytes gives a compiled filter as the kernel takes it.
func Bytes(prog []unix.SockFilter) []byte {
	b := make([]byte, 0, 8*len(prog))
	for _, i := range prog {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}
