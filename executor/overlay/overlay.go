// Package overlay is the Linux executor: overlayfs puts the layer directories of a store one upon the other, package sandbox
// or an OCI runtime (crun or runc) makes the sandbox. There is no daemon. Root file systems, and what a process finds in one, are those
// of package rootfs: this one starts processes.
//
// # Who does what
//
// The process that calls New mounts and prepares; a supervisor runs. The supervisor is this same program once more
// (a main function, and a TestMain, calls Supervise first if IsSupervisor says so), as the first process of a pid
// namespace and with a mount namespace of its own. The kernel kills it when its maker dies, whatever the reason, and with it ends
// every process and every mount of every step: that is the invariant on which everything here rests. What can survive
// a killed obx are empty cgroups and files below the store's tmp; the next New removes both.
//
//	maker                                       supervisor (pid 1 of its namespace)
//	fsopen, fsconfig, fsmount: a mount that
//	no namespace shows; makes mount points
//	request, mount and pipe fds ------------->  move_mount below a tmpfs that nobody else sees,
//	                                            files and secrets there too; starts the container
//	reads the pipe as it fills  <-------------  started
//	                                            waits for the container's process, unmounts
//	removes mount points again  <-------------  exited: status, out of memory
//	Freeze: the upper directory
//	becomes a layer by one rename
//
// # What this package refuses to know
//
// Keys, specs, caches on registries, what a step means, and how a layer is packed.
package overlay

import (
	"context"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
)

// Builtin is the name of the sandbox that needs no OCI runtime.
const Builtin = "builtin"

// Options of New.
type Options struct {
	Store *cas.Store

	// Runtime is Builtin, or the name or path of an OCI runtime with runc's command line. "" takes the first of Builtin, crun and runc that
	// works here; which one does is remembered in the store.
	Runtime string

	// Warn, if it is not nil, gets told that another runtime than Builtin was taken, and which limits do not hold.
	Warn func(string)

	// OldMounts mounts as on kernels before 6.7, which have no lowerdir+ option. It is chosen by itself where needed.
	OldMounts bool

	// NoAppArmor runs steps without the AppArmor profile that confines them where the kernel has AppArmor.
	NoAppArmor bool

	// OpenCache begins a use of a cache mount. Nil takes the Store's.
	OpenCache func(context.Context, executor.Cache) (*rootfs.CacheUse, error)
}
