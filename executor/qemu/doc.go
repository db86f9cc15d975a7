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
// # What this package refuses to know
//
// Keys, specs, caches on registries, and what a step means; how QEMU is told what to do; what an agent says in which words. What comes from a machine is
// hostile: its tars are unpacked as any layer is.
package qemu
