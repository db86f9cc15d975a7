// Package images knows images: what their names say (Normalize), what a name means today (Resolver.Resolve) and what it meant before (the store's records,
// and a Lockfile), how their bytes come here (Resolver.Pull), and the forms in which an image leaves (WriteOCI, WriteOCIDir, WriteDocker, Publication).
// Base images and what their names mean travel with caches, too (PublishBase, Import, CopyBases).
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
//   - Outputs are functions of the image: the same layers and config give the same bytes.
//
// It refuses to know what an image is for, and how a registry is spoken to, which is package repo's.
package images
