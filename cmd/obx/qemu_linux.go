package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/vm"
)

// qemuFlags are about virtual machines.
type qemuFlags struct {
	kernel   string
	firmware string
	accel    string
	memory   string
	cpus     int
	boot     time.Duration
	guest    guest.Account
	of       [2]string // --qemu-guest-os and -arch

	system, arch string // of the build
}

func (q *qemuFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&q.kernel, "qemu-kernel", "", "boot virtual machines with the Linux kernel in `FILE` (default: $OBX_QEMU_KERNEL, the store's, or one in /boot)")
	f.StringVar(&q.accel, "qemu-accel", "auto", "run virtual machines by `WAY`: kvm, tcg, or auto, which tries KVM and remembers")
	f.StringVar(&q.memory, "qemu-memory", "1g", "give a virtual machine `SIZE` of memory, as 512m; a number alone is gigabytes")
	f.IntVar(&q.cpus, "qemu-cpus", 0, "give a virtual machine `N` processors (default: this machine's, at most 8)")
	f.StringVar(&q.firmware, "qemu-firmware", "", "boot disk images by the firmware in `FILE`, or by what is installed of uefi (default: BIOS on amd64, else uefi)")
	f.StringVar(&q.guest.User, "qemu-ssh-user", "", "log in to machines of disk images as `USER` (default: root, or Administrator); another than root needs sudo or doas without a password")
	f.StringVar(&q.guest.Key, "qemu-ssh-key", "", "log in to machines of disk images without obx's agent with the private key in `FILE`")
	f.IntVar(&q.guest.Port, "qemu-ssh-port", 22, "reach sshd in machines of disk images on `PORT`")
	q.boot = 2 * time.Minute
	f.Var((*secondsValue)(&q.boot), "qemu-boot-time", "wait up to `TIME` for a machine to boot, or to shut down; a number alone is seconds")
	f.Var(&guestValue{cmd, &q.of, 0}, "qemu-guest-os", "build for machines of `OS`: linux, openbsd, windows; short for --platform OS/ARCH")
	f.Var(&guestValue{cmd, &q.of, 1}, "qemu-guest-arch", "build for machines of `ARCH`: amd64, arm64, riscv64; short for --platform OS/ARCH")
	fixedValues(cmd, "qemu-accel", "auto", "kvm", "tcg")
	fixedValues(cmd, "qemu-guest-os", "linux", "openbsd", "windows")
	fixedValues(cmd, "qemu-guest-arch", "amd64", "arm64", "riscv64")
}

// A secondsValue is a duration; a number alone is seconds, OBuilder's way.
type secondsValue time.Duration

func (v *secondsValue) String() string { return time.Duration(*v).String() }
func (v *secondsValue) Type() string   { return "duration" }

func (v *secondsValue) Set(s string) error {
	if _, err := strconv.Atoi(s); err == nil {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	if err == nil && d <= 0 {
		err = errors.New("it is not positive")
	}
	*v = secondsValue(d)
	return err
}

// A guestValue is a part of the platform, by the name that OBuilder's flag has.
type guestValue struct {
	cmd  *cobra.Command
	of   *[2]string
	part int // of OS/ARCH
}

// platform is the command's --platform, and its parts: the default's where nothing is said.
func (v *guestValue) platform() (*pflag.Flag, []string) {
	f := v.cmd.Flags().Lookup("platform")
	said := ""
	if f != nil {
		said = f.Value.String()
		if list, ok := f.Value.(pflag.SliceValue); ok { // of a command that takes several
			said = strings.Join(list.GetSlice(), ",")
		}
	}
	if said == "" {
		d := defaultPlatform()
		return f, []string{d.OS, d.Architecture}
	}
	return f, strings.SplitN(said, "/", 2)
}

// String is "" for the default: help has it with --platform.
func (v *guestValue) String() string { return "" }
func (v *guestValue) Type() string   { return "string" }

func (v *guestValue) Set(s string) error {
	f, parts := v.platform()
	if f.Changed {
		return errors.New("--platform says it already")
	}
	if s == "" || strings.Contains(s, "/") {
		return errors.New("for example --qemu-guest-os openbsd --qemu-guest-arch amd64")
	}
	v.of[v.part], parts[v.part] = s, s
	platform := strings.Join(parts, "/")
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.Replace([]string{platform})
	}
	return f.Value.Set(platform)
}

func (q *qemuFlags) options(st *cas.Store, warn func(string)) (vm.Options, error) {
	o := vm.Options{Store: st, OS: q.system, Arch: q.arch, Kernel: q.kernel, Firmware: q.firmware, Accel: q.accel, CPUs: q.cpus, BootTimeout: q.boot, Warn: warn}
	if q.of[0] != "" && q.of[0] != o.OS || q.of[1] != "" && q.of[1] != o.Arch {
		return o, usage("", "--platform and --qemu-guest-os or --qemu-guest-arch say different things")
	}
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
