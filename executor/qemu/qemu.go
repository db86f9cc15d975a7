// Package qemu runs steps in virtual machines: hostile builds behind a hardware boundary, and other architectures.
//
// # A machine
//
// One machine is one root file system, from its first Run to its Close. Its kernel is the host's choice; its first process
// is obx's agent (package agent, embedded by package agents), which runs package overlay inside the machine: so what a process
// sees and what a step leaves is the same as without machines, and results are shared both ways.
//
//	obx                                          QEMU: a process without privileges, that dies with obx
//	layer directories, as one EROFS image
//	that nobody writes (layerdisk),
//	served by NBD on a socket pair   --------->  disk "layers"
//	an unlinked sparse file          --------->  disk "scratch": ext4, for changes
//	requests, secrets, input         --------->  virtio-serial ports (package wire)
//	output, changes as tars          <---------
//
// Nothing has a name: all of QEMU's files are descriptors, so a killed obx leaves nothing behind. It runs as a user that is only this machine's, in no group but that of /dev/kvm.
//
// # Saved machines
//
// A machine is booted once for each kernel, QEMU, and size, and saved when the agent greets: nothing of a build is in it. Machines
// go on from there, each with a private copy of the memory that costs what it writes, and a copy of the small disk. The agent then sets the clock and reseeds the random generator. Where that does not work, machines boot; those of
// riscv64 always do, since QEMU does not save their timers.
//
// # Disk images
//
// A machine that boots from a disk image is reached by the agent, too: by that of the disk, or by one that ssh puts into its memory. Only where
// the agent cannot make a sandbox (OpenBSD, Windows, old kernels) a process is one of the machine's own, and the agent talks by ssh. Machines of
// other systems than Linux are shut down before a step's disk is kept: their caches are written then.
//
// # What this package refuses to know
//
// Keys, specs, caches on registries, and what a step means. What comes from a machine is hostile: its tars are unpacked
// as any layer is, its words are bounded.
package qemu

import (
	"time"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/qemu/guest"
)

// Options of New. Zero fields mean the default.
type Options struct {
	Store *cas.Store

	OS          string        // of the machines: linux (the default), or openbsd or windows, which boot from disk images only
	Arch        string        // of the machines: amd64, arm64, riscv64; the default is this machine's
	Kernel      string        // a file; the default is the store's, or one in /boot
	Accel       string        // "kvm", "tcg" or "auto"
	Memory      int64         // of a machine, in bytes; a process whose limit is higher gets a larger one
	CPUs        int           // of a machine
	BootTimeout time.Duration // for the agent to greet, or the sshd of a disk image to answer
	NoState     bool          // boot every machine
	Firmware    string        // that boots disk images: a file, or UEFI; the default is BIOS on amd64, UEFI elsewhere
	Guest       guest.Account // of disk images

	// Warn is told what is not as it should be, once each.
	Warn func(msg string)
}

const (
	defaultMemory      = 1 << 30
	defaultBootTimeout = 2 * time.Minute
)
