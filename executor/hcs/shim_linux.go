package hcs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// endShim ends the shim of a container that has no task. When a client is killed while containerd starts a shim, containerd kills the program that
// starts it, and does not know of the shim that this has started already. No call reaches that one.
func endShim(container string) error {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, name := range all {
		if !isShim(name, container) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return err
		}
		p, err := os.FindProcess(pid) // holds it: no other process is killed if it ends now
		if err != nil {
			return err
		}
		if isShim(name, container) {
			err = p.Kill()
		}
		_ = p.Release()
		if err != nil && err != os.ErrProcessDone {
			return fmt.Errorf("end the shim of container %s: %w", container, err)
		}
	}
	return nil
}

// isShim reports whether a file of a command's arguments is that of a container's shim.
func isShim(name, container string) bool {
	b, err := os.ReadFile(name)
	if err != nil {
		return false
	}
	args := strings.Split(string(b), "\x00")
	follows := func(flag, value string) bool {
		i := slices.Index(args, flag)
		return i >= 0 && i+1 < len(args) && args[i+1] == value
	}
	return strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && follows("-namespace", namespace) && follows("-id", container)
}
