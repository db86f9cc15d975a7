package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Table is what a filter says of the calls of one kind of programs, read rule by rule: what compiled filters, and processes under them, are
// compared with.
type Table struct {
	Numbers map[string]uint32 // of all calls that are known, by their names
	Filter  *specs.LinuxSeccomp

	rules  map[uint32][]specs.LinuxSyscall
	newest uint32
}

// NewTable reads a filter for programs of an architecture, as runtime.GOARCH has it: amd64, 386, arm64, arm or riscv64.
func NewTable(s *specs.LinuxSeccomp, programs string) Table {
	t := Table{Numbers: numbers()[programs], Filter: s}
	t.rules, t.newest = byNumber(s, t.Numbers)
	return t
}

// Answer is what a call gets without that the kernel does it: an error number, which may be 0. reached says that the kernel does it.
func (t Table) Answer(number uint32, args [6]uint64) (errno unix.Errno, reached bool) {
	for _, call := range t.rules[number] {
		if slices.ContainsFunc(call.Args, func(a specs.LinuxSeccompArg) bool { return !holds(a, args[a.Index]) }) {
			continue
		}
		if call.Action == specs.ActAllow || call.Action == specs.ActNotify { // Watch lets it go on
			return 0, true
		}
		return unix.Errno(*call.ErrnoRet), false
	}
	if number > t.newest && t.rules[number] == nil {
		return unix.ENOSYS, false
	}
	return unix.Errno(*t.Filter.DefaultErrnoRet), false
}

func holds(a specs.LinuxSeccompArg, got uint64) bool {
	switch a.Op {
	case specs.OpEqualTo:
		return got == a.Value
	case specs.OpMaskedEqual:
		return got&a.Value == a.ValueTwo
	case specs.OpGreaterThan:
		return got > a.Value
	case specs.OpLessThan:
		return got < a.Value
	}
	panic("unknown comparison " + a.Op)
}
