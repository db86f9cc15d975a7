package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A machine is an obx command with a store and a base image to build on.
type machine struct {
	testing.TB
	obx, store, busybox, dir string

	net *network // nil: this machine's own; else each command has a namespace of its own on it
}

func newMachine(tb testing.TB) *machine {
	tb.Helper()
	RequireRoot(tb)
	dir := tb.TempDir()
	m := &machine{TB: tb, obx: BuildOBX(tb), store: filepath.Join(dir, "store"), busybox: filepath.Join(dir, "busybox"), dir: dir}
	raw, err := busyboxTar(nil)
	if err == nil {
		err = writeLayout(m.busybox, raw)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func (m *machine) command(spec string, more ...string) *exec.Cmd {
	m.Helper()
	dir := m.TempDir()
	file := filepath.Join(dir, "spec")
	if err := os.WriteFile(file, []byte(spec), 0o644); err != nil {
		m.Fatal(err)
	}
	args := append([]string{"run", file, m.dir, "--store", m.store, "--base", "busybox=oci:" + m.busybox + ":latest"}, more...)
	cmd := exec.Command(m.obx, args...)
	cmd.Env = Environ()
	if m.net != nil {
		m.net.enter(cmd)
	}
	return cmd
}

// counts runs a spec to its end and gives how many steps ran and hit.
func (m *machine) counts(spec string, more ...string) (runs, hits int, err error) {
	cmd := m.command(spec, append(more, "--progress", "json")...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("%w\n%s", err, stderr.Bytes())
	}
	events := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	var done struct {
		Event      string
		Runs, Hits int
	}
	if err := json.Unmarshal([]byte(events[len(events)-1]), &done); err != nil || done.Event != "done" {
		return 0, 0, fmt.Errorf("last event %s: %v", events[len(events)-1], err)
	}
	return done.Runs, done.Hits, nil
}

// clean fails the test if a process, a mount or a cgroup of the store's runs is left.
func (m *machine) clean() {
	m.Helper()
	var left []string
	for range 50 {
		if left = m.leftovers(); len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.Errorf("left behind: %s", strings.Join(left, "; "))
}

func (m *machine) leftovers() []string {
	var left []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		line, _ := os.ReadFile(p)
		if bytes.Contains(line, []byte(m.store)) || bytes.Contains(line, []byte("obx-crash-step")) {
			left = append(left, p+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.SplitSeq(string(mounts), "\n") {
		if strings.Contains(line, m.store+"/") {
			left = append(left, line)
		}
	}
	return left
}

// cgroups lists the cgroups of the store's runs.
func (m *machine) cgroups() []string {
	var left []string
	runs, _ := os.ReadDir(filepath.Join(m.store, "tmp"))
	for _, r := range runs {
		for _, pattern := range []string{"/sys/fs/cgroup/obx/", "/sys/fs/cgroup/*/obx/"} {
			found, _ := filepath.Glob(pattern + r.Name() + "*")
			left = append(left, found...)
		}
	}
	return left
}

// crashSpec has all that can be left half done: stages side by side, copies, a cache mount, a secretless long run.
func crashSpec(salt string) string {
	return fmt.Sprintf(`
((build a ((from busybox) (shell /bin/sh -c)
  (run (shell "echo %[1]s > /a; : obx-crash-step"))
  (run (cache (c (target /var/cache/c))) (shell "echo %[1]s >> /var/cache/c/log; i=0; while [ $i -lt 200 ]; do echo $i > /f$i; i=$((i+1)); done"))))
 (build b ((from busybox) (shell /bin/sh -c)
  (run (shell "mkdir -p /d/e/f; rm /bin/vi; echo b > /d/e/f/b; sleep 0.05; : obx-crash-step %[1]s"))))
 (from busybox) (shell /bin/sh -c)
 (copy (from (build a)) (src /a) (dst /a))
 (copy (from (build b)) (src /d) (dst /d))
 (run (shell "cat /a /d/e/f/b; rm -r /d; : obx-crash-step"))
 (run (shell "test ! -e /d && cat /a")))`, salt)
}

// TestKills kills obx at random moments, a hundred times, on one store. Nothing stays, and the store stays whole.
func TestKills(t *testing.T) {
	m := newMachine(t)
	n := 100
	if testing.Short() {
		n = 20
	}
	rnd := rand.New(rand.NewSource(1))
	for i := range n {
		cmd := m.command(crashSpec(fmt.Sprint(i/3)), "--progress", "quiet") // some find what others have saved
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rnd.Intn(400)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed, or done before
		if i%10 == 9 {
			m.clean()
		}
	}
	m.clean()
	for i := range 3 {
		if _, _, err := m.counts(crashSpec(fmt.Sprint(i))); err != nil {
			t.Errorf("a good run after the kills: %v", err)
		}
	}
	if out, err := exec.Command(m.obx, "cache", "verify", "--store", m.store).CombinedOutput(); err != nil {
		t.Errorf("verify: %v\n%s", err, out)
	}
	m.clean()
	if left := m.cgroups(); len(left) > 0 {
		t.Errorf("cgroups left: %v", left)
	}
	runs, err := os.ReadDir(filepath.Join(m.store, "tmp"))
	if err != nil || len(runs) > 0 {
		t.Errorf("left in tmp: %v %v", runs, err)
	}
}

// TestKilledSandbox kills the step's first process: a failed step, not a broken store.
func TestKilledSandbox(t *testing.T) {
	m := newMachine(t)
	cmd := m.command(`((from busybox) (shell /bin/sh -c) (run (shell "sleep 61.7; : obx-crash-step")))`, "--progress", "plain")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	for range 100 {
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range procs {
			line, _ := os.ReadFile(p)
			if bytes.HasPrefix(line, []byte("/bin/sh\x00-c\x00sleep 61.7")) {
				var pid int
				if _, err := fmt.Sscanf(p, "/proc/%d/cmdline", &pid); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
					killed = true
				}
			}
		}
		if killed {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	err := cmd.Wait()
	if !killed || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "signal 9") {
		t.Errorf("killed %v: %v\n%s", killed, err, stderr.String())
	}
	m.clean()
}

// TestInterrupt stops a run by SIGINT: exit status 130, what was done is saved.
func TestInterrupt(t *testing.T) {
	m := newMachine(t)
	spec := `((from busybox) (shell /bin/sh -c) (run (shell "echo first > /first")) (run (shell "echo running; sleep 30; : obx-crash-step")))`
	cmd := m.command(spec, "--progress", "plain")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "\nrunning\n") {
		n, err := out.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v\n%s%s", err, seen.String(), stderr.String())
		}
	}
	start := time.Now()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || time.Since(start) > 5*time.Second {
		t.Errorf("exit status %d after %v\n%s", code, time.Since(start), stderr.String())
	}
	if !strings.Contains(stderr.String(), "1 step") {
		t.Errorf("it does not say what was saved:\n%s", stderr.String())
	}
	m.clean()
	if _, hits, err := m.counts(`((from busybox) (shell /bin/sh -c) (run (shell "echo first > /first")))`); err != nil || hits != 1 {
		t.Errorf("the first step was not saved: %d hits, %v", hits, err)
	}
}

// TestEightAtOnce runs eight processes on one store, building overlapping specs, half of them with the stages the other
// way round, all with one job: each key is built once, and nobody waits for ever.
func TestEightAtOnce(t *testing.T) {
	m := newMachine(t)
	stage := func(name string) string {
		return fmt.Sprintf(`(build %[1]s ((from busybox) (shell /bin/sh -c) (run (shell "sleep 0.1; echo %[1]s > /%[1]s")) (run (shell "sleep 0.1; cat /%[1]s"))))`, name)
	}
	final := `(from busybox) (shell /bin/sh -c) (copy (from (build a)) (src /a) (dst /a)) (copy (from (build b)) (src /b) (dst /b)) (run (shell "cat /a /b"))`
	specs := []string{"(" + stage("a") + stage("b") + final + ")", "(" + stage("b") + stage("a") + final + ")"}
	const distinct = 2 + 2 + 3
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for i := range 8 {
		wg.Go(func() {
			runs, hits, err := m.counts(specs[i%2], "--jobs", "1")
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("process %d: %v", i, err)
			}
			if runs+hits != distinct {
				t.Errorf("process %d: %d runs and %d hits, want %d in all", i, runs, hits, distinct)
			}
			total += runs
		})
	}
	wg.Wait()
	if total != distinct {
		t.Errorf("%d steps ran, want each of %d once", total, distinct)
	}
	m.clean()
}

// TestStoreImageCopied copies the image of the store's file system while obx works in it, as a power cut would leave
// it, and goes on from the copy.
func TestStoreImageCopied(t *testing.T) {
	m := newMachine(t)
	mnt := freshFS(t, 1)
	image := filepath.Join(filepath.Dir(mnt), "image")
	m.store = filepath.Join(mnt, "store")
	cmd := m.command(steps(40, " power"), "--progress", "quiet")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		time.Sleep(700 * time.Millisecond)
		copied := filepath.Join(t.TempDir(), "copy")
		command(t, "cp", "--sparse=always", image, copied)
		_ = exec.Command("/sbin/e2fsck", "-fp", copied).Run() // it repairs; what it could not, the mount below tells
		at := filepath.Join(filepath.Dir(copied), "mnt")
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mount", "-o", "loop", copied, at).CombinedOutput(); err != nil {
			t.Logf("copy %d, made of a live device without a snapshot, is no file system: %s", i, out)
			continue
		}
		after := *m
		after.store = filepath.Join(at, "store")
		out := filepath.Join(t.TempDir(), "out")
		runs, hits, err := after.counts(steps(40, " power"), "--output", "type=local,dest="+out)
		if err != nil || runs+hits != 40 {
			t.Errorf("copy %d: %d runs, %d hits, %v", i, runs, hits, err)
		}
		log, err := os.ReadFile(filepath.Join(out, "log"))
		if n := bytes.Count(log, []byte("\n")); err != nil || n != 40 {
			t.Errorf("copy %d: the result has %d lines, want 40: %v", i, n, err)
		}
		if out, err := exec.Command(m.obx, "cache", "verify", "--store", after.store).CombinedOutput(); err != nil {
			t.Errorf("copy %d: verify: %v\n%s", i, err, out)
		}
		after.clean()
		command(t, "umount", at)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
