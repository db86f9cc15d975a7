package vm

import (
	"fmt"
	"os/exec"
	"runtime"
)

const hostArch = runtime.GOARCH

// A board is what a virtual machine of an architecture looks like.
type board struct {
	machine string
	cpu     string
	console string
	append  string // to the kernel's command line
	bus     string // the suffix of virtio devices
}

// device describes a virtio device.
func (b board) device(name, options string) string { return name + b.bus + "," + options }

// boardOf is the board of a machine.
func boardOf(h hardware) board {
	b := board{machine: "virt", cpu: "max", console: "ttyAMA0", bus: "-pci"}
	switch h.arch {
	case "amd64":
		b.machine, b.cpu, b.console = "pc,graphics=off,vmport=off,usb=off,hpet=off", "max,la57=off", "ttyS0"
		b.append = "no_timer_check tsc=reliable"
	case "riscv64":
		b.console, b.cpu = "ttyS0", "rv64"
	}
	if h.accel == "kvm" {
		b.cpu = "host"
	}
	return b
}

// programs are the names of QEMU by architecture.
var programs = map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64", "riscv64": "qemu-system-riscv64"}

func findQEMU(arch string) (string, error) {
	name, ok := programs[arch]
	if !ok {
		return "", fmt.Errorf("no virtual machines of architecture %q: it is neither amd64, arm64 nor riscv64", arch)
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed: run `%s`", name, installCommand(arch))
	}
	return p, nil
}
