// Package repo reaches repositories: blobs by digest, and manifests by digest and by tag, wherever they are. A Repo is one of a registry, an OCI layout in
// a directory or a tar archive (Layout), or one in memory (Memory). A Client opens them, and is all that reaches registries.
//
// What holds:
//
//   - A Repo verifies nothing that it gives: its readers do. ReadBlob and Verified help them.
//
//   - A credential goes to the host that it was stored for, and to the token server that this host names. It goes nowhere else on a redirect,
//     and stands in no error.
//
//   - One Client waits for a host for seconds, not for minutes, however many requests are made of it.
//
//   - Each call ends soon when its context does.
//
//   - A layout is whole at any moment, for all who write to it and read it at the same time.
//
// It refuses to know what is kept: an image, a result, what a tag means. oras-go stays inside; no exported name shows it.
package repo
