// Package vm makes virtual machines with QEMU. It owns how QEMU is started and spoken with, what machines of an architecture are made of, their kernels,
// firmware and acceleration, and saved machines: one is booted for each kernel, QEMU and size, saved when its agent greets, and others go on from there.
//
// QEMU is hostile as soon as a guest has run in it. It runs without privileges, as a user that is only this machine's, in no group but that of /dev/kvm;
// it gets every file as a descriptor, and ends with this process, however that ends. Nothing of a machine has a name, but what is saved, in the store.
// A machine is of use until it has ended or failed: then it tells the first reason, in words that are printable.
//
// The package refuses to know steps, roots and caches, and what is in a layer or on a disk. What is asked of a machine's agent is package guest's business.
package vm

import (
	"time"

	"github.com/ocurrent/obx/cas"
)

// Options of New. Zero fields mean the default.
type Options struct {
	Store *cas.Store

	OS          string        // of the machines: linux (the default), or openbsd or windows, which boot from disk images only
	Arch        string        // of the machines: amd64, arm64, riscv64; the default is this machine's
	Kernel      string        // a file; the default is the store's, or one in /boot
	Accel       string        // "kvm", "tcg" or "auto", the default
	Memory      int64         // of a machine, in bytes; the default is 1 GiB
	CPUs        int           // of a machine; the default is this machine's, at most 8
	BootTimeout time.Duration // for the agent to greet, or the sshd of a disk image to answer; the default is 2 minutes
	NoState     bool          // boot every machine
	Firmware    string        // that boots disk images: a file, or UEFI; the default is BIOS on amd64, UEFI elsewhere

	// Warn is told what is not as it should be, once each.
	Warn func(msg string)
}

// Foreign reports machines that can only boot from disks, which have their kernels, and which have no use for what Linux machines get of obx.
func (o Options) Foreign() bool { return o.OS != "" && o.OS != "linux" }

const (
	defaultMemory      = 1 << 30
	defaultBootTimeout = 2 * time.Minute
)

// UEFI as Options.Firmware is the firmware that this system has installed for the architecture.
const UEFI = "uefi"

// StateDir is where a store keeps saved machines: STORE/qemu/state/BOOT-KEY/{memory,disk,devices}. A state appears by one rename, and
// is as good as lost when the host boots: a file may be short after a power cut. Then it is made again.
const StateDir = "qemu/state"
