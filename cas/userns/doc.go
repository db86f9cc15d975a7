// Package userns tells in which user namespace this process is. In another than the machine's own it may be root of what belongs to the
// namespace, and of nothing else: it cannot make devices, nor give files to users that the namespace does not have, nor set attributes of the
// name space "trusted".
//
// It only reads. Package executor/rootless is what enters a namespace.
package userns

import (
	"os"
	"strconv"
)

// CallerVariable is set, by who executes this program in a user namespace, to the user who has called it.
const CallerVariable = "_OBX_CALLER"

// Entered reports whether the program was executed again to be in a user namespace.
func Entered() bool { return os.Getenv(CallerVariable) != "" && Inside() }

// Caller is the user who has called this program, who may be root of a namespace by now. -1 on systems without users' numbers.
func Caller() int {
	if uid, err := strconv.Atoi(os.Getenv(CallerVariable)); err == nil && Inside() {
		return uid
	}
	return os.Getuid()
}
