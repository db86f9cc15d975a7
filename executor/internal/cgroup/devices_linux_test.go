package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDevices opens devices in a group of each version that this machine has.
func TestDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root, to make control groups and devices")
	}
	cg, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	judge := func(dir string) error {
		program, err := loadDevices()
		if err != nil {
			return err
		}
		defer program.Close()
		return restrictDevices(dir, program)
	}
	restrict := map[string]func(dir string) error{"devices": allowDevices}
	at := map[string]string{"devices": cg.Controllers["devices"]}
	if !cg.Unified || at["devices"] == "" {
		at["version 2"], restrict["version 2"] = cg.Hierarchies[len(cg.Hierarchies)-1], judge
	}
	for name, limit := range restrict {
		t.Run(name, func(t *testing.T) {
			if at[name] == "" {
				t.Skip("this machine has none")
			}
			dir := filepath.Join(at[name], Top, fmt.Sprint("test-", os.Getpid()))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(dir)
			if err := limit(dir); err != nil {
				t.Fatal(err)
			}
			nodes := t.TempDir()
			for file, d := range map[string][2]uint32{"null": {1, 3}, "mem": {1, 1}, "kmsg": {1, 11}, "ram": {1, 0}, "full": {1, 7}, "loop": {7, 0}, "vcs": {7, 1}} {
				mode := uint32(unix.S_IFCHR | 0o600)
				if file == "loop" || file == "ram" {
					mode = unix.S_IFBLK | 0o600
				}
				if err := unix.Mknod(filepath.Join(nodes, file), mode, int(unix.Mkdev(d[0], d[1]))); err != nil {
					t.Fatal(err)
				}
			}
			script := "echo 0 > " + dir + "/cgroup.procs && cd " + nodes + ` &&
				for f in *; do (exec 3<$f) 2>/dev/null && echo "$f"; done
				mknod b1 b 8 0 && mknod c1 c 1 1 && echo made
				exec 3<b1`
			out, _ := exec.Command("sh", "-c", script).CombinedOutput()
			if s := string(out); !strings.HasPrefix(s, "full\nnull\nmade\n") || !strings.Contains(s, "Operation not permitted") && !strings.Contains(s, "ermission denied") {
				t.Errorf("got %q", s)
			}
		})
	}
}
