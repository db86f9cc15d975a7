package conformance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestManyAtOnce runs 200 steps at once. obx's own processes have had less than 300 MiB of memory by then, and nothing is left.
func TestManyAtOnce(t *testing.T) {
	const steps, limit = 200, 300 << 20
	m := newMachine(t)
	// Not the one for the race detector, which multiplies its memory.
	m.obx = filepath.Join(t.TempDir(), "obx")
	build := exec.Command("go", "build", "-trimpath", "-o", m.obx, "github.com/ocurrent/obx/cmd/obx")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var spec strings.Builder
	spec.WriteString("(")
	const shared = `(cache (c (target /c) (buildkit_options ((sharing shared)))))`
	for i := range steps {
		fmt.Fprintf(&spec, "(build s%d ((from busybox) (shell /bin/sh -c) (run %s (shell \"touch /c/%d; until [ -e /c/go ]; do sleep 1; done\"))))\n", i, shared, i)
	}
	spec.WriteString("(from scratch))")
	cmd := m.command(spec.String(), "--jobs", fmt.Sprint(steps), "--progress", "quiet")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	started := func() int { // each makes a file in the cache
		files, _ := filepath.Glob(filepath.Join(m.store, "caches/*/c/shared/fs/[0-9]*"))
		return len(files)
	}
	for started() < steps {
		select {
		case err := <-ended:
			t.Fatalf("obx has ended: %v\n%s", err, said.Bytes())
		case <-time.After(100 * time.Millisecond):
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("%d steps run at once", started())
		}
	}
	t.Logf("%d steps run after %v", steps, time.Since(began))
	total := 0
	for name, kB := range ownMemory(t, cmd.Process.Pid) {
		t.Logf("%s: %d kB", name, kB)
		total += kB << 10
	}
	if total == 0 || total > limit {
		t.Errorf("obx has %d bytes of memory, want %d at most", total, limit)
	}
	if out, err := m.command(`((from busybox) (shell /bin/sh -c) (run ` + shared + ` (shell "touch /c/go")))`).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := <-ended; err != nil {
		t.Fatalf("%v\n%s", err, said.Bytes())
	}
	Leftovers(t, m.store)
}

// ownMemory is how many kilobytes a process and its supervisors have had at most.
func ownMemory(t *testing.T, pid int) map[string]int {
	t.Helper()
	have := map[string]int{}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
		_, rest, _ := bytes.Cut(stat, []byte(") "))
		fields := strings.Fields(string(rest))
		if dir != fmt.Sprint("/proc/", pid) && (len(fields) < 2 || fields[1] != strconv.Itoa(pid)) {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		name, _, _ := strings.Cut(string(cmdline), "\x00")
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		for line := range strings.Lines(string(status)) {
			if kB, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				n, _ := strconv.Atoi(strings.Fields(kB)[0])
				have[filepath.Base(name)+" "+filepath.Base(dir)] = n
			}
		}
	}
	return have
}
