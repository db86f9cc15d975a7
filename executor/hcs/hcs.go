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
