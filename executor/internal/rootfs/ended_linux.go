package rootfs

import (
	"slices"
	"strings"

	"github.com/docker/go-units"

	"github.com/ocurrent/obx/executor"
)

const sigkill = 9

// An Exit is how a process has ended.
type Exit struct {
	Code, Signal int
	OOM          bool // the kernel killed at least one process of it for want of memory
}

// Err tells it as a Root does; nil if the process ended well. stopped says that it was killed when its time was over.
func (x Exit) Err(l executor.Limits, stopped bool) error {
	switch {
	case x.Code == 0 && x.Signal == 0:
		return nil
	case stopped && x.Signal == sigkill:
		return TimedOut(l)
	case x.OOM:
		return &executor.ExitError{Reason: executor.OOM, Code: x.Code, Signal: x.Signal, Limit: units.BytesSize(float64(l.Memory))}
	case x.Signal != 0:
		return &executor.ExitError{Reason: executor.Signaled, Signal: x.Signal}
	}
	return &executor.ExitError{Reason: executor.Exited, Code: x.Code}
}

// TimedOut is the error of a process whose time was over.
func TimedOut(l executor.Limits) error {
	return &executor.ExitError{Reason: executor.TimedOut, Limit: l.Timeout.String()}
}

// startMessages tell a StartError from broken infrastructure: what a runtime says when it cannot start a process because of the spec or the image, and
// checkProcess could not see it.
var startMessages = []string{
	"exec: \"", "exec format error", "executable file", "eaccess", "open executable", // the program
	"chdir to", "set in config.json failed", "cannot set working directory", // the directory
	"not a directory", "is a directory", // a mount target
}

// StartError judges what a runtime said that could not start a process: nil if it is not the spec's or the image's fault.
func StartError(said string) error {
	if slices.ContainsFunc(startMessages, func(m string) bool { return strings.Contains(said, m) }) {
		return startError("cannot start the process: %s", cleanMessage(said))
	}
	return nil
}

// cleanMessage takes from a runtime's message what it was doing.
func cleanMessage(s string) string {
	for _, cut := range []string{"runc create failed: ", "runc run failed: ", "unable to start container process: "} {
		if _, rest, ok := strings.Cut(s, cut); ok {
			s = rest
		}
	}
	return s
}
