//go:build linux

package main

import "golang.org/x/sys/unix"

// abis are those of 64-bit programs (x32's numbers are the same with one more bit), and of 32-bit ones.
var abis = []abi{
	{audit: unix.AUDIT_ARCH_X86_64, numbers: nativeNumbers, mask: 0x3fffffff},
	{audit: unix.AUDIT_ARCH_I386, numbers: map[string]uint32{
		"add_key": 286, "keyctl": 288, "request_key": 287, "bpf": 357, "perf_event_open": 336, "userfaultfd": 374,
		"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "kcmp": 349, "pidfd_getfd": 438, "process_madvise": 440,
		"mbind": 274, "migrate_pages": 294, "move_pages": 317, "set_mempolicy": 276, "set_mempolicy_home_node": 450, "get_mempolicy": 275,
		"fanotify_init": 338, "name_to_handle_at": 341, "open_by_handle_at": 342, "clone": 120, "unshare": 310, "clone3": 435,
		"fsync": 118, "fdatasync": 148, "sync": 36, "syncfs": 344, "msync": 144, "sync_file_range": 314,
	}},
}
