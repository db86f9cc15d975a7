// Package registry is the protocol by which machines share the results of steps: FORMAT.md, which this package owns, says how a result lies in a
// repository. A Cache is a repository with the rules of whom to believe: it finds, fetches and pushes results, and verifies, collects and copies what is
// there.
//
// What holds:
//
//   - Nothing is believed but what a record says, and that only as far as its signatures go.
//
//   - A result appears when its record does, last of all.
//
//   - What is missing, broken or not trusted is a miss, and told once a cause. It is no error.
//
// It refuses to know how results are used: it runs nothing, and decides nothing about a build. What names of base images mean, and which tags they have in a
// cache, is package images'; how bytes are sent, package repo's.
package registry
