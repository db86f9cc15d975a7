package userns

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// first is the inode of the machine's own user namespace: PROC_USER_INIT_INO of the kernel.
const first = 0xEFFFFFFD

// Inside reports whether this process is in another user namespace than the machine's own.
var Inside = sync.OnceValue(func() bool {
	info, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Ino != first
})

// Nobody is whom, in a user namespace, everything belongs to that is of users the namespace does not have: the machine's root among
// them. -1 where all users are known.
var Nobody = sync.OnceValue(func() int {
	if !Inside() {
		return -1
	}
	b, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return -1
	}
	uid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return uid
})

// HasUser reports whether the namespace has a user.
func HasUser(uid int) bool { return users().end(uid) > uid }

// HasGroup reports whether the namespace has a group.
func HasGroup(gid int) bool { return groups().end(gid) > gid }

// Count is how many ids there are, from 0 on, that the namespace has as users and as groups.
func Count() (n int) {
	for {
		end := min(users().end(n), groups().end(n))
		if end == n {
			return n
		}
		n = end
	}
}

// A process that enters a namespace executes itself: its maps never change.
var users, groups = sync.OnceValue(func() idMap { return readMap("uid") }), sync.OnceValue(func() idMap { return readMap("gid") })

// An idMap is the kernel's: lines of the first id within, the first outside, and how many there are.
type idMap string

func readMap(kind string) idMap {
	m, err := os.ReadFile("/proc/self/" + kind + "_map")
	if err != nil { // a kernel without namespaces
		return "0 0 4294967295"
	}
	return idMap(m)
}

// end is behind the last of the ids from this one on that the map has; the id itself if it does not have that.
func (m idMap) end(id int) int {
	for line := range strings.Lines(string(m)) {
		var n [3]int
		for i, f := range strings.Fields(line) {
			if i < len(n) {
				n[i], _ = strconv.Atoi(f)
			}
		}
		if id >= n[0] && id-n[0] < n[2] {
			return n[0] + n[2]
		}
	}
	return id
}
