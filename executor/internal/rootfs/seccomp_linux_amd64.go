package rootfs

import "github.com/opencontainers/runtime-spec/specs-go"

// seccompArchitectures are all whose system calls the kernel takes from a program: calls of others kill it.
func seccompArchitectures() []specs.Arch {
	return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
}
