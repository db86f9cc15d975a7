package cas

import (
	"os"
	"strconv"
	"strings"
	"sync"
)

// nobodyKnown is whom, in a user namespace, everything belongs to that is of users the namespace does not have: the host's root among
// them. -1 where all users are known.
var nobodyKnown = sync.OnceValue(func() int {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295" {
		return -1
	}
	b, err = os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return -1
	}
	uid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return uid
})
