package rootfs

// A CacheUse is one use of a cache mount by one process. Exactly one of Lower and Shared is used, see cas.CacheMount.
type CacheUse struct {
	Lower  []string // directories in overlay form, base first; empty for a new cache
	Shared string   // the one directory to mount read-write

	// Commit takes the directory upper, which has what changed above Lower. It is called only when a process came to its
	// own end.
	Commit func(upper string) error
	Close  func() error
}
