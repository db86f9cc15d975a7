// Package results knows what was made before, and where it is: in the local store, and behind it in shared caches. To who builds, these are one row of
// places, nearest first.
//
// A [Result] is the files after a step, or a base image: which steps led there, what they printed, which layers it has. [Places.Find] gives the
// deepest one of some keys. Only a Result knows whether its bytes are in the store or still in a cache; what is in a cache is brought into the store
// when something will use it.
//
// # What holds
//
//   - A result is whole, or there is none: in the store, its record, those below it and all their bytes; in a cache, what its record says. What is
//     broken, lost, of other steps or not believed is a miss, never an error, and the next best is looked for.
//   - The places are asked in their order, each for what is deeper than what is known. What the store has is taken from there, even if only a cache knows
//     what the key that was asked for means.
//   - One rule of trust: without trusted keys all is believed. With them, what a cache has counts if one of them has signed it; what the store has, if it
//     was made here in the first domain, with cache mounts of the same trust, or came from a cache and is signed. The store's aliases
//     do not count then, since nobody has signed what led to them.
//   - Results are kept under content keys. An input key that led to one is an alias, written when what it leads to is in the store.
//   - What came from a cache keeps its envelope, and is a result of its own: nothing below it is needed, and nothing of it is signed here.
//   - Who is to use a result holds its keys before it asks.
//
// It refuses to know how steps run, what a plan is and which results are needed, and it publishes nothing.
package results
