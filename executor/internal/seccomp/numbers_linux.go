package seccomp

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// syscalls has the numbers of system calls: a line a call, a column an architecture. golang.org/x/sys has them only as constants, and only those of the
// architecture that is compiled for: a filter needs them by name, and those of 32-bit programs too. TestNumbers compares the table with its sources, and
// makes it anew with -update.
//
//go:embed syscalls.txt
var syscalls string

// An abi is one way into a kernel that a program can take: its system calls have their own numbers.
type abi struct {
	arch   specs.Arch
	audit  uint32 // what the kernel calls it
	column string // of syscalls
}

// abis are, by the architecture of a machine, the ways into its kernel that Compile knows: the machine's own first.
var abis = map[string][]abi{
	"amd64":   {{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, "amd64"}, {specs.ArchX86, unix.AUDIT_ARCH_I386, "386"}},
	"arm64":   {{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, "arm64"}, {specs.ArchARM, unix.AUDIT_ARCH_ARM, "arm"}},
	"riscv64": {{specs.ArchRISCV64, unix.AUDIT_ARCH_RISCV64, "riscv64"}},
}

// numbers are the system calls of each column.
var numbers = sync.OnceValue(func() map[string]map[string]uint32 {
	byColumn := map[string]map[string]uint32{}
	var columns []string
	for line := range strings.Lines(syscalls) {
		fields := strings.Fields(line)
		if columns == nil { // the head
			columns = fields[1:]
			for _, c := range columns {
				byColumn[c] = map[string]uint32{}
			}
			continue
		}
		for i, c := range columns {
			if n, err := strconv.ParseUint(fields[1+i], 0, 32); err == nil { // else "-", that it has no such call
				byColumn[c][fields[0]] = uint32(n)
			}
		}
	}
	return byColumn
})
