// Package hcs runs steps through a containerd: Windows containers by the Host Compute Service, and on Linux whatever
// containerd runs there.
//
// One driver speaks to containerd's API, in a namespace of its own (obx): lease, snapshot, container, task, output, exit
// status, clean-up. What differs by platform is in files of their own: which snapshots there are and how a layer
// becomes one, the runtime and its configuration, networks.
//
// # Linux
//
// A root file system is an overlay of the store's layer directories, made by package rootfs as for executor/overlay,
// upon a scratch snapshot of containerd that takes what the step changes. So nothing of a layer is ever copied into
// containerd, a step's change is exactly what executor/overlay would have found, byte for byte and nanosecond for nanosecond (containerd's
// own differ cuts times to seconds and drops attributes), and any snapshotter whose snapshots can be written to will do. The change
// is moved into the store if it is on the same file system, else copied as its layer's bytes would be.
//
// containerd's shim calls the OCI runtime by a small script that gives the process one pipe for output and errors, for their order. The shim makes one
// number of exit status and signal; which it was is asked of the process's descriptor (Linux 6.15; before it, a signal is a status of 128 and more).
//
// # Windows
//
// The layers become a chain of snapshots by containerd's differ. What a step has changed is diffed against its direct parent into the store, and applied
// again upon that parent, as a pull would; the scratch is dropped. So no second copy of the data is kept, and what is pushed is known to be a layer
// that can be gone on from. Snapshots of layers stay for two weeks after their last use. This chain is tested on Linux too, with the differ there.
// Copies are written in Windows's layer format by package layers, without running anything.
//
// A real Windows has not seen any of this: conformance/windows.ps1 is what to run there. Under Wine, a containerd that is a fake drives the Windows part:
// the order of calls, configurations, clean-up after each call that fails, cancel, kill.
//
// # Invariants
//
// Everything that a process makes in containerd carries the process's run: by a label, and by one lease. It is removed at
// the end, and by the next New when the process was killed: a run whose lock nobody holds is a dead one. Nothing is kept by
// anything but that lease, so nothing that is left can keep containerd from pruning for longer.
//
// # What this package refuses to know
//
// Keys, specs, caches on registries, what a step means.
package hcs

import "github.com/ocurrent/obx/cas"

// Options of New.
type Options struct {
	Store *cas.Store

	// Address is containerd's socket or named pipe; "" is its default.
	Address string

	// Snapshotter is the one of containerd's that gives scratch space; "" is overlayfs. Windows has but one.
	Snapshotter string

	// Runtime is on Linux the name or path of the OCI runtime that containerd's shim calls; "" is runc.
	Runtime string

	// Isolation is of Windows: process, hyperv, or auto (""), which takes hyperv where the host's build would refuse the
	// image's.
	Isolation string
}
