// Package qemu runs steps in virtual machines: hostile builds behind a hardware boundary, and other architectures. It owns root file systems:
// which machine has one, what goes into it, and what comes out of it as a layer.
//
// # A machine
//
// One machine is one root file system, from its first Run to its Close. Its kernel is the host's choice; its first process
// is obx's agent (package agent, embedded by package agents), which runs package overlay inside the machine: so what a process
// sees and what a step leaves is the same as without machines, and results are shared both ways.
//
//	obx                                          QEMU, which package vm starts and owns
//	layer directories, as one EROFS image
//	that nobody writes (package layerdisk),
//	served by NBD on a socket pair   --------->  disk "layers"
//	an unlinked sparse file          --------->  disk "scratch": ext4, for changes
//	requests, secrets, input         --------->  virtio-serial ports (packages guest and wire)
//	output, changes as tars          <---------
//
// The agent of a machine that goes on from a saved one sets the clock and reseeds the random generator. A killed obx leaves nothing behind.
//
// # Disk images
//
// A lowest layer with a disk (package qcow2) makes the root a machine that boots from it, and a step's change the next file of the disk. It is
// reached by the agent, too (package guest): by that of the disk, or by one that ssh puts into its memory. Only where
// the agent cannot make a sandbox (OpenBSD, Windows, old kernels) a process is one of the machine's own, and the agent talks by ssh. Machines of
// other systems than Linux are shut down before a step's disk is kept: their caches are written then.
//
// # What is done, and why, in machines
//
// More EROFS images can appear on the disk "layers" while a machine runs: as partitions, which the agent adds by an ioctl. Changes come back as tars, and
// are unpacked as any hostile layer is.
//
// A guest that breaks out of QEMU is a process of the machine's user (in a user namespace, of nobody), with the disks and sockets of this machine.
// Results are copied before they are believed. One thing it can reach: the memory that machines are copied from, which QEMU before 8.2 maps only if
// it may write to that file.
//
// While an agent works on an answer it beats (wire.BeatEvery), so a system that has crashed or hangs is noticed within minutes; with pvpanic, at once.
// /dev/kvm is tried once in each boot of the host: some can be opened, and never run a guest.
//
// A cache mount that is shared or locked is, in a machine, a snapshot of when the step began: directories of its own, with links to the files, so
// that other steps can change names meanwhile. What the step has changed is put into the host's directory when it ends.
//
// # And on disk images
//
// A step's change is the next file of the chain of disk/*.qcow2: after a sync in the guest, QEMU goes on with a new file above it, so the machine need not
// stop between steps. A file names the one below it by the names of disk/, so its bytes depend on no path; QEMU never follows the name. The 25th
// file has all changes since the base. Files that a copy brings are unpacked by the agent when the machine next runs something, and files that
// a copy takes are read by it, one by one.
//
// In the system of a disk, the agent is a service (`obx base agent`), or a program that obx puts into a tmpfs by ssh and starts. It runs a process in the
// machine's own files (rootfs.RunHere) instead of in layers, so limits, cache mounts, secrets and the sandbox are as elsewhere. Requests go by a port
// that only machines of obx have.
//
// A step must not see whether the machine of the step before still runs, or was booted since from its result. So /tmp is a directory of the disk
// (/var/lib/obx-agent/tmp) that no boot empties, and each process in a sandbox has a /run of its own. There it does not see the machine's systemd either,
// which it could not reach: so `systemctl enable` works on files, as in a container. Swap space and core dumps are off, for what is written of them
// would be kept.
//
// Where there is nothing to make a sandbox of (OpenBSD, Windows, a Linux without control groups of version 2), `agent plain` runs processes of the
// machine's own, and talks by the session of ssh that has started it. What it needs of a system is in process_*.go and files_*.go of the agent; the
// rest is one piece of code, tested on Linux and under Wine. Caches are sent as tars, and what has changed in them comes back. The agent stays on the disk
// where there is no file system in memory. A machine of another system than Linux is shut down after a step, for it is not known that a sync is enough.
//
// # What this package refuses to know
//
// Keys, specs, caches on registries, and what a step means; how QEMU is told what to do; what an agent says in which words. What comes from a machine is
// hostile: its tars are unpacked as any layer is.
package qemu
