// Package publish moves what a build has made to where others find it, and brings what others have made here as a whole.
//
// A [Queue] publishes results in the first cache while the build goes on. [Mounts] are the cache mounts that travel. [Transfer] exports results of the
// store and imports those of a cache, with base images and what their names mean.
//
// # What holds
//
//   - What another machine has made is never signed here: it travels under the envelope that it came with.
//   - A result is described, and its layers are packed, when it is its turn to be published, not before. What the cache has is not packed.
//   - A cache mount that travels is brought here before the first step that has it, and published when the build is over: what the
//     private steps leave is one directory of the store, what the shared and locked ones do is another, and both go by the mount's
//     name. The latter is written to in place, so its files are copied both ways, under its lock, which is not waited for long.
//     A union is published over nothing but what it was merged with.
//
// It refuses to know why a result is published, and what runs. It fails no build: its errors are for the caller to judge.
package publish
