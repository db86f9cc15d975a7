// Package cachedir is about directories that many change at once: cache mounts that are shared between steps, where machines are, which cannot mount
// what is on the host. A machine sees a Snapshot of the directory as it was when a step began, and what the step has changed is put into it by Apply.
//
// All that is in such a directory, and in a change, is hostile, and may become something else at any time: no link is followed. The package
// refuses to know what a cache is called, who may use it, and how files get into a machine.
package cachedir
