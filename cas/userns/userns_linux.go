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
func HasUser(uid int) bool { return users(uid) }

// HasGroup reports whether the namespace has a group.
func HasGroup(gid int) bool { return groups(gid) }

// A process that enters a namespace executes itself: the maps never change.
var users, groups = has("uid"), has("gid")

func has(kind string) func(id int) bool {
	read := sync.OnceValues(func() ([]byte, error) { return os.ReadFile("/proc/self/" + kind + "_map") })
	return func(id int) bool {
		m, err := read()
		return err != nil || contains(string(m), id)
	}
}

// contains looks for an id in a map of the kernel's: lines of the first id within, the first outside, and how many there are.
func contains(m string, id int) bool {
	for line := range strings.Lines(m) {
		var n [3]int
		for i, f := range strings.Fields(line) {
			if i < len(n) {
				n[i], _ = strconv.Atoi(f)
			}
		}
		if id >= n[0] && id-n[0] < n[2] {
			return true
		}
	}
	return false
}
