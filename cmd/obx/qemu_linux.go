package main

import (
	"os"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/qemu"
)

// qemuFlags are about virtual machines.
type qemuFlags struct {
	kernel string
	accel  string
	memory string
	cpus   int
	boot   time.Duration
	guest  qemu.Guest

	arch string // of the build
	warn func(string)
}

func (q *qemuFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&q.kernel, "qemu-kernel", "", "boot virtual machines with the Linux kernel in `FILE` (default: $OBX_QEMU_KERNEL, the store's, or one in /boot)")
	f.StringVar(&q.accel, "qemu-accel", "auto", "run virtual machines by `WAY`: kvm, tcg, or auto, which tries KVM and remembers")
	f.StringVar(&q.memory, "qemu-memory", "1g", "give a virtual machine `SIZE` of memory, as 512m; a number alone is gigabytes")
	f.IntVar(&q.cpus, "qemu-cpus", 0, "give a virtual machine `N` processors (default: this machine's, at most 8)")
	f.StringVar(&q.guest.User, "qemu-ssh-user", "root", "log in to machines of disk images as `USER`; another than root needs sudo without a password")
	f.StringVar(&q.guest.Key, "qemu-ssh-key", "", "log in to machines of disk images without obx's agent with the private key in `FILE`")
	f.IntVar(&q.guest.Port, "qemu-ssh-port", 22, "reach sshd in machines of disk images on `PORT`")
	f.DurationVar(&q.boot, "qemu-boot-time", 2*time.Minute, "wait up to `TIME` for a machine to boot; of a disk image, for its agent or sshd to answer")
	fixedValues(cmd, "qemu-accel", "auto", "kvm", "tcg")
}

func (q *qemuFlags) options(st *cas.Store) (qemu.Options, error) {
	o := qemu.Options{Store: st, Arch: q.arch, Kernel: q.kernel, Accel: q.accel, CPUs: q.cpus, BootTimeout: q.boot, Guest: q.guest, Warn: q.warn}
	if o.Kernel == "" {
		o.Kernel = os.Getenv("OBX_QEMU_KERNEL")
	}
	size := q.memory
	if _, err := strconv.Atoi(size); err == nil { // OBuilder's way
		size += "g"
	}
	var err error
	if o.Memory, err = parseSize("qemu-memory", size); err != nil {
		return o, err
	}
	if o.Memory < 256*units.MiB || o.CPUs < 0 {
		return o, usage("", "a virtual machine needs at least 256m of memory, and a processor")
	}
	o.Memory = o.Memory / units.MiB * units.MiB
	return o, nil
}
