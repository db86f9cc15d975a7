// Package rootfs is what the executors for Linux containers share: root file systems that are overlays of a store's
// layer directories, and what a process finds and may do in one.
//
// It owns the mounts (detached ones, of overlayfs), mount points and their traces, cache directories, the configuration that an OCI
// runtime is given, limits, the judgement whether a process can start at all, and what a step leaves: its change, as
// a layer directory. So a step's result is the same whatever starts its process.
//
// # Who does what
//
// A [Machine] makes roots. Whoever starts processes is its [Runner]: a supervisor with an OCI runtime in executor/overlay, a
// containerd in executor/hcs. A Runner gets mounts that are open files, and a configuration that names paths in a
// directory of its choice, where it has to attach them before it starts the process ([Attach]).
//
// # What a step leaves
//
// Exactly what its process changed. Mount points that had to be made are removed again, directories that were copied
// up only for them too, and times are put back, so that a command that changes nothing gives the zero layer.
//
// # What this package refuses to know
//
// How a process is started, keys, specs, caches on registries, what a step means, and how a layer is packed.
package rootfs
