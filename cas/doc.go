// Package cas is the local store: everything that obx keeps on one machine. It owns the layout of one directory that
// many processes use at once, without a daemon and without a database. It does not know what a step is, what a layer
// holds, or how either is made: it keeps bytes, directories and small JSON documents, and says when they may go.
//
//	STORE/version                    the format of all that follows
//	STORE/blobs/sha256/HEX           bytes by digest
//	STORE/layers/NAME/               a layer directory: fs is its root, epoch its durability, size what it takes; the rest is whose it is
//	STORE/results/DOMAIN/KE/KEY      what is known of a key: a small JSON file
//	STORE/caches/DOMAIN/NAME/        a cache mount, see [CacheMount]
//	STORE/locks/DOMAIN/KEY.lock      held by who builds the key; KEY.log is what the step prints meanwhile
//	STORE/leases/RUN                 a live process: what it relies on, one reference a line; locked while it lives
//	STORE/dead/RUN                   a process that died in this boot, until [Store.ForgetRun]
//	STORE/unsynced/EPOCH-RUN-N       files not yet known to be durable, one path a line
//	STORE/hashes/                    what each [HashMemo] remembers
//	STORE/tmp/RUN/                   what a live process is making
//	STORE/NAME/                      what an executor keeps under a name of its own, see [PruneOptions.Derived]
//	STORE/trash/                     evicted, to be deleted when idle
//	STORE/gc.lock                    shared by who makes something visible, exclusive while a prune decides
//
// The directory is its user's alone (0700): layers hold other systems' setuid programs and devices, and a lock that others can open they can
// hold. Each Open looks at it, and at all that leads to it.
//
// # Visibility
//
// A thing becomes visible by one rename, last, and what is visible never changes. (Exceptions: the modes and times
// of files, by which durability and use are recorded, and shared cache mounts.) A failed write leaves nothing behind
// but what is in tmp, and that goes with the process.
//
// # Locks
//
// All locks are flock locks (LockFileEx on Windows) on open files, so they end with their holder, however it ends. A
// lock file may be unlinked only by who holds its lock; who gets a lock therefore looks whether the path still leads
// to the file that it has locked, and starts again if not.
//
// # Power cuts
//
// A result is not worth waiting for a disk. A blob without the mark is hashed by whoever wants it first. Everything else records the epoch in which it was written: a hash of the boot and the mount of the store. It is
// valid in that epoch, since what one process writes all others read from the same page cache. A background sync
// of the file system takes the write permission away from the files it has covered, which is the mark of what is
// valid for ever. After another boot or mount, what has no mark does not exist; prune removes it. (Processes that
// live at the same time and see each other's locks trust each other's epochs: two containers have two mounts of
// one file system.) Where the epoch cannot be told (any system but Linux), each commit syncs instead.
//
// What is marked refers only to what is marked: the layers, blobs and parents of a result are marked before it.
//
// # Garbage collection
//
// Results are the roots: a blob or layer that no result names is garbage, and a result goes before its parents do.
// Everything that this process has committed, was told is there, or holds by [Store.Hold] is leased until Close. A
// lease is written, and what it protects is looked at or made visible, in one go under the shared gc.lock; prune
// reads leases and removes under the exclusive one. So there is no moment in which something is relied upon but not
// protected.
package cas
