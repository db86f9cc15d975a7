// Package registry reaches what is kept in registries and in OCI layouts: images, and the results of steps that machines
// share.
//
// A Repo is one repository, wherever it is. A Cache is a Repo with the rules of whom to believe: it finds, fetches and
// publishes results in the wire format of FORMAT.md, which this package owns.
//
// Of images it owns names (Normalize), what a name means today (Images.Resolve) and what it meant before (the store's records, and a Lockfile), the way
// bytes come here (Images.Pull), and the forms in which an image leaves (WriteOCI, WriteOCIDir, WriteDocker, Publication).
//
// What holds:
//
//   - Nothing is believed. A manifest, a config and a layer enter the store only when their digest is right, a layer only if its diff id is
//     right, too. A registry that lies can make a pull fail, and do no other harm.
//
//   - A name is resolved once: one process never sees two answers for a name and platform.
//
//   - What is in the store is not fetched: pulling an image again needs no network.
//
//   - A credential goes to the host that it was stored for, and to the token server that this host names. It goes nowhere else on a redirect,
//     and stands in no error.
//
//   - Outputs are functions of the image: the same layers and config give the same bytes.
//
//   - A result appears when its record does, last of all. What is missing, broken or not trusted is a miss.
//
// It refuses to know how images and results are used: it runs nothing and decides nothing about a build. oras-go stays inside; no exported name shows it.
package registry
