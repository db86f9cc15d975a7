package conformance

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// StartContainerd starts a containerd of its own, with all that it keeps in a directory of its own, and stops it with
// the test: its address. With snapshotter btrfs, a new btrfs is mounted where it keeps snapshots. The test fails if there still is a shim then.
func StartContainerd(t testing.TB, snapshotter string) (address string) {
	t.Helper()
	RequireRoot(t)
	program := Program(t, "OBX_CONTAINERD", "containerd")
	dir, err := os.MkdirTemp("", "obx-containerd-") // short: it has sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	address = filepath.Join(dir, "sock")
	config := filepath.Join(dir, "config.toml")
	// Of the plugins, those for Kubernetes take time and write outside of dir.
	text := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[plugins.'io.containerd.server.v1.grpc']
address = %q
[plugins.'io.containerd.server.v1.ttrpc']
address = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), address, address+".ttrpc")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	after := "true"
	if snapshotter == "btrfs" {
		after = "umount " + mountBtrfs(t, dir)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// The shell outlives a test process that is killed, sees the end of its input, and ends containerd.
	cmd := exec.Command("sh", "-c", `"$@" & read -r _; kill $!; wait; `+after, "sh", program, "--config", config)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		noShims(t, address)
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("stop containerd: %v", err)
		}
	})
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", address); err == nil {
			c.Close()
			return address
		}
	}
	said, _ := os.ReadFile(log.Name())
	t.Fatalf("containerd does not start: %s", said)
	return ""
}

// mountBtrfs makes a file system where the containerd below dir keeps snapshots of btrfs.
func mountBtrfs(t testing.TB, dir string) string {
	t.Helper()
	at := filepath.Join(dir, "root", "io.containerd.snapshotter.v1.btrfs")
	image := filepath.Join(dir, "btrfs")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, args := range [][]string{{"/sbin/mkfs.btrfs", "-q", image}, {"mount", "-o", "loop", image, at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	return at
}

// shimPatience is more than containerd may take to end a shim whose creation was broken off: two clean-ups of 5 s, and 3 s for its end.
const shimPatience = 20 * time.Second

// noShims fails t if, a little later, a shim of the containerd at an address is there.
func noShims(t testing.TB, address string) {
	t.Helper()
	var left []int
	for deadline := time.Now().Add(shimPatience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if left = shims(address); len(left) == 0 {
			return
		}
	}
	for _, pid := range left {
		t.Errorf("left over: shim %d", pid)
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
}

func shims(address string) []int {
	var pids []int
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		b, _ := os.ReadFile(name)
		args := strings.Split(string(b), "\x00")
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && strings.Contains(string(b), address) {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(filepath.Dir(name)), &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
