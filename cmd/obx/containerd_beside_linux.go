//go:build !containerd

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// containerdProgram is obx with the client of containerd linked in, which a run would pay for at its start, used or not: see ARCHITECTURE.md.
const containerdProgram = "obx-containerd"

// containerdKind is the executor in the program beside this one, which this process becomes.
var containerdKind = executorKind{
	name:  "containerd",
	about: containerdAbout,
	become: func() error {
		if filepath.Base(os.Args[0]) == containerdProgram {
			return fmt.Errorf("%s was built without the client of containerd: `make build` builds it with that", containerdProgram)
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find %s: %w", containerdProgram, err)
		}
		program := filepath.Join(filepath.Dir(self), containerdProgram)
		err = syscall.Exec(program, append([]string{containerdProgram}, os.Args[1:]...), os.Environ())
		return fmt.Errorf("--executor containerd is in a program of its own, beside this one: execute %s: %w\n  `make build` builds both, and that one works alone too", program, err)
	},
}
