package qemu_test

import (
	"testing"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/vm"
)

func shell(script string) executor.Process {
	return executor.Process{Argv: []string{"/bin/sh", "-c", script}, Dir: "/", Env: []string{"PATH=/bin"}}
}

func newExecutor(t testing.TB, o vm.Options, account ...guest.Account) *qemu.Executor {
	t.Helper()
	conformance.RequireRoot(t)
	o.Kernel = conformance.Kernel(t, "amd64")
	if o.Accel == "" {
		o.Accel = "tcg"
	}
	e, err := qemu.New(o, append(account, guest.Account{})[0])
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// essential are the tests of the suite that look at what is done here in another way than in package overlay, which runs in the machine
// as it does outside: how files go in and come out, the process's sandbox, the network, input, caches, the end of machines.
var essential = []string{
	"RunWritesFile", "Whiteout", "OpaqueDirectory", "ForeignLayers", "FailureDropsChanges", "TwoRunsOneFreeze", "Add", "NoLayers", "Cancel", "Timeout",
	"OutputOrder", "Stdin", "NetworkHost", "Privileges", "SystemMounts", "Seccomp", "SystemCalls", "Escapes", "OwnProgram", "MemoryLimit", "HardLinks", "SpecialFiles",
	"MountPoints", "Secrets", "CacheKeepsChanges", "CacheShared",
}

func TestExecutor(t *testing.T) {
	conformance.RequireRoot(t)
	only := essential
	if conformance.LongMachines() {
		only = nil
	}
	maker := machines
	maker.Only = only
	conformance.Executor(t, maker)
}

var machines = conformance.ExecutorMaker{
	Sandbox: true,
	Machine: true,
	New: func(t testing.TB, st *cas.Store) executor.Executor {
		return newExecutor(t, vm.Options{Store: st})
	},
}

// TestTerminal runs a process on a terminal of the machine, which is joined to one here.
func TestTerminal(t *testing.T) { conformance.Terminal(t, machines) }
