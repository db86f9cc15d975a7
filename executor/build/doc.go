// Package build walks a plan: it asks for results, has missing steps run, and keeps what they give.
//
// It is the only package that sees both where results come from (package results: the store, and image registries) and what runs steps (an
// executor), and it knows neither's insides: platforms are chosen by its caller.
//
// # What holds
//
//   - A stage goes on from the deepest of its steps that has a result, wherever that is.
//   - A step is looked up by its input key, which is known before anything runs. A copy from another build that misses
//     so is looked up by content key once that build's files are there, and so are the steps after it.
//   - A stage that nothing needs is not built: its consumers' results answer for it. Nested builds that nobody copies
//     from are built for their own sake.
//   - One process at a time builds a key. The lock is held while that one step runs; a waiter shows the step's output
//     and holds no job slot; it takes over when the holder dies.
//   - A result is visible only when all of it is in the store. A failed, cancelled or killed step leaves nothing.
//   - Everything that a run may use is leased before it is looked up.
//   - Files come from a cache when something is to use them, and results go to the first of the caches behind the build. What another
//     machine has made is never signed here.
//   - Nobody can tell what a cache mount has made of a result. So builds with Trust have cache mounts of their own, private,
//     shared and locked ones, which only builds that trust the same keys write to, and into which nothing comes from a cache
//     that none of these keys has signed; a step that had other mounts is not believed. With other keys, mounts begin empty.
//   - Who signs (registry.Cache.Signer) must have Trust: then all that a signature covers was made here in the build's domain, or
//     is signed itself. Results of the store that were made without keys are so signed when they are published.
package build
