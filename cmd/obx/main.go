// Command obx runs a build described by an S-expression step by step in sandboxes, and keeps each step's result under
// a key, so that no step runs twice. It only parses, calls and prints: see the packages keys, cas and executor/build.
package main

import (
	"os"

	"github.com/ocurrent/obx/executor/overlay"
)

func main() {
	if overlay.IsSupervisor() {
		overlay.Supervise(nil)
		return
	}
	os.Exit(execute(os.Args[1:]))
}
