// Package registry reaches images where they are kept: in registries, and in OCI layout directories.
//
// It owns names (Normalize), what a name means today (Images.Resolve) and what it meant before (the store's records, and a Lockfile), the way
// bytes come here (Images.Pull), and the forms in which an image leaves (WriteOCI, WriteOCIDir, WriteDocker).
//
// What holds:
//
//   - Nothing is believed. A manifest, a config and a layer enter the store only when their digest is right, a layer only if its diff id is
//     right, too. A registry that lies can make a pull fail, and do no other harm.
//   - A name is resolved once: one process never sees two answers for a name and platform.
//   - What is in the store is not fetched: pulling an image again needs no network.
//   - A credential goes to the host that it was stored for, and to the token server that this host names. It goes nowhere else on a redirect,
//     and stands in no error.
//   - Outputs are functions of the image: the same layers and config give the same bytes.
//
// It refuses to know how an image is used: it has no word for a sandbox, a step or a build. oras-go stays inside; no exported name shows it.
package registry
