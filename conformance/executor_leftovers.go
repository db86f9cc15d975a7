package conformance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience is how long something may take to end on a busy machine. On an idle one it takes milliseconds.
const patience = 5 * time.Second

// Leftovers fails t if, a little later, there still is a process or a mount of an executor on the store directory, in
// whatever namespace, or a cgroup of one of the runs (cas.Store.RunID).
func Leftovers(t testing.TB, store string, runs ...string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left = findLeftovers(store, runs)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	for _, l := range left {
		t.Errorf("left over: %s", l)
	}
}

// noSteps fails t if, a little later, a run still has the cgroup of a step, or processes in the one that steps share.
func noSteps(t testing.TB, run string) {
	t.Helper()
	var groups []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		groups = nil
		for _, top := range []string{"/sys/fs/cgroup/obx/", "/sys/fs/cgroup/*/obx/"} {
			found, _ := filepath.Glob(top + run + "/*/cgroup.procs")
			for _, name := range found {
				if b, err := os.ReadFile(name); !strings.HasSuffix(filepath.Dir(name), "-shared") || err == nil && len(b) > 0 {
					groups = append(groups, name)
				}
			}
		}
		if len(groups) == 0 {
			return
		}
	}
	t.Errorf("steps that are over have cgroups: %q", groups)
}

func findLeftovers(store string, runs []string) []string {
	var left []string
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(filepath.Join(pid, "cmdline"))
		args := strings.Split(string(cmdline), "\x00")
		if args[0] == "obx-supervisor" && len(args) > 1 && strings.HasPrefix(args[1], store+"/") {
			left = append(left, fmt.Sprintf("process %s: %q", filepath.Base(pid), args))
		}
		// What a process of a step sees as its root names the store's layers.
		mounts, _ := os.ReadFile(filepath.Join(pid, "mountinfo"))
		for line := range bytes.Lines(mounts) {
			if bytes.Contains(line, []byte(store+"/")) {
				left = append(left, fmt.Sprintf("mount that process %s (%q) sees: %s", filepath.Base(pid), args, line))
				break
			}
		}
	}
	for _, run := range runs {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/obx/" + run)
		group, _ := filepath.Glob("/sys/fs/cgroup/obx/" + run)
		for _, g := range append(groups, group...) {
			left = append(left, "cgroup "+g)
		}
	}
	return left
}
