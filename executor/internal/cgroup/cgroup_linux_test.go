package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// TestKillAll ends a process in a group below the one that is named, as killed runs leave it, and removes both groups.
func TestKillAll(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root, to make control groups")
	}
	cg, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("%s/test-%d", Top, os.Getpid())
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := cg.Hierarchies[len(cg.Hierarchies)-1] // cgroup v2 where it is mounted: others want to be set up first
	dir := filepath.Join(h, group, "step")
	err = os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		t.Fatal(err)
	}
	cg.KillAll(group)
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
		t.Errorf("the process ended by itself: %v", err)
	}
	if err := cg.Remove(group); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(h, group)); err == nil {
		t.Error("the group is still there")
	}
}
