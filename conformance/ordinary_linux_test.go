package conformance

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An ordinary is a test of obx as an ordinary user beside root.
type ordinary struct {
	*testing.T
	u    *OrdinaryUser
	obx  string
	base string
	root string // where root has its stores: not below what belongs to another
}

func newOrdinary(t *testing.T) *ordinary {
	t.Helper()
	RequireRoot(t)
	u, err := NewOrdinaryUser()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	o := &ordinary{T: t, u: u, base: filepath.Join(u.Dir, "busybox"), root: t.TempDir()}
	if o.obx, err = u.Put(BuildOBX(t)); err != nil {
		t.Fatal(err)
	}
	if err := WriteBusyboxLayout(o.base); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chmod", "-R", "a+rX", o.base).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return o
}

// spec writes a spec of steps on the base.
func (o *ordinary) spec(steps ...string) string {
	o.Helper()
	name := filepath.Join(o.u.Dir, fmt.Sprintf("%d.sexp", len(steps)))
	text := fmt.Sprintf("((from oci:%s) (shell /bin/sh -c)\n%s)", o.base, strings.Join(steps, "\n"))
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		o.Fatal(err)
	}
	return name
}

// run runs obx and gives what it prints.
func (o *ordinary) run(root bool, args ...string) (string, error) {
	o.Helper()
	var cmd *exec.Cmd
	if root {
		cmd = exec.Command(o.obx, args...)
		cmd.Env = append(Environ(), "OBX_STORE="+filepath.Join(o.root, "store"))
		cmd.Dir = o.u.Dir
	} else {
		cmd = o.u.Command(append([]string{o.obx}, args...)...)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (o *ordinary) succeeds(root bool, args ...string) string {
	o.Helper()
	out, err := o.run(root, args...)
	if err != nil {
		o.Fatalf("obx %q, root %t: %v\n%s", args, root, err, out)
	}
	return out
}

// TestOrdinaryUser runs obx as root does not.
func TestOrdinaryUser(t *testing.T) {
	o := newOrdinary(t)
	for name, test := range map[string]func(*ordinary){
		"Shares": testOrdinaryShares, "Limits": testOrdinaryLimits, "Groups": testOrdinaryGroups, "Local": testOrdinaryLocal,
		"Refused": testOrdinaryRefused,
	} {
		t.Run(name, func(t *testing.T) {
			own, user := *o, *o.u
			own.T, own.u = t, &user
			test(&own)
		})
	}
}

// testOrdinaryShares has a user begin what root goes on with, and the other way round, through a cache, and compares the bytes that both make.
func testOrdinaryShares(o *ordinary) {
	t := o.T
	registry := StartRegistry(t)
	cache := []string{"--cache", registry + "/cache", "--plain-http", registry}
	// All times are the spec's, so that the bytes can be compared.
	const end = " && touch -h -d '2001-02-03 04:05:06' / /d /d/* "
	all := []string{
		`(run (shell "mkdir -p /d/e && echo 1 > /d/one && ln /d/one /d/link && ln -s one /d/sym && chown 5:6 /d/e && chown -h 7:8 /d/sym && chmod 4755 /d/one` + end + `"))`,
		`(run (cache (c (target /c))) (shell "echo x > /c/x && mkfifo /d/pipe && chmod 1777 /d/e && mkdir /d/gone && touch /d/gone/f` + end + `"))`,
		`(run (network host) (shell "rm -r /d/gone && mkdir /d/gone && chown 65534:65534 /d/gone && setfattr -n user.x -v y /d/one 2>/dev/null; true` + end + `"))`,
		`(user (uid 1000) (gid 1000)) (run (shell "id -u && ls -ln /d && ! touch /d/no"))`,
	}
	used := func(out string) int { return strings.Count(out, `from cache`) - 1 } // the base
	o.succeeds(false, append(cache, "run", o.spec(all[:2]...))...)
	if n := used(o.succeeds(true, append(cache, "run", o.spec(all[:3]...))...)); n != 2 {
		t.Errorf("root takes %d steps of the user's", n)
	}
	if n := used(o.succeeds(false, append(cache, "--store", filepath.Join(o.u.Dir, "second"), "run", o.spec(all...))...)); n != 3 {
		t.Errorf("the user takes %d steps, two of which were pushed by the user and one by root", n)
	}
	var sums [2][sha256.Size]byte
	for i := range sums {
		dest := filepath.Join(o.u.Dir, fmt.Sprintf("out%d.tar", i))
		o.succeeds(i == 1, "run", o.spec(all...), "--store", filepath.Join([]string{o.u.Dir, o.root}[i], "alone"), "-o", "type=tar,dest="+dest)
		b, err := os.ReadFile(dest)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(b)
	}
	if sums[0] != sums[1] {
		t.Errorf("the user makes other bytes than root")
	}
	// Each run has a mount namespace of its own, and still takes what the run before has just written. (Each Command has one, too.)
	run := o.obx + " run --store twice " + o.spec(all...)
	out, err := o.u.Command("sh", "-ec", run+" >first 2>&1; "+run).CombinedOutput()
	if err != nil || used(string(out)) != len(all) {
		t.Errorf("the second run is not cached: %v\n%s", err, out)
	}
	o.succeeds(false, "cache", "prune", "--all", "--store", filepath.Join(o.u.Dir, "alone"))
	left, err := os.ReadDir(filepath.Join(o.u.Dir, "alone", "layers"))
	if err != nil || len(left) > 0 {
		t.Errorf("pruning leaves %d layers, %v", len(left), err)
	}
}

// testOrdinaryLimits: limits of a user without control groups do not hold, which is said, but for the number of processes, which is bounded.
func testOrdinaryLimits(o *ordinary) {
	out := o.succeeds(false, "run", o.spec(`(run (shell "ulimit -u"))`), "--memory", "64m")
	if !strings.Contains(out, "limits of memory, processors and processes do not hold") || !strings.Contains(out, "\n32768\n") {
		o.Error(out)
	}
}

// testOrdinaryGroups: obx makes groups below one that was given to the user, if it is alone in that, as systemd's scopes are given.
func testOrdinaryGroups(o *ordinary) {
	unified := ""
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} { // beside version 1, or alone
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil && unified == "" {
			unified = dir
		}
	}
	if unified == "" {
		o.Skip("this kernel has no control groups of version 2")
	}
	own := fmt.Sprintf("obx-test-%d", os.Getpid())
	o.Cleanup(func() {
		if out, err := exec.Command("find", filepath.Join(unified, own), "-depth", "-type", "d", "-delete").CombinedOutput(); err != nil {
			o.Errorf("%v: %s", err, out)
		}
	})
	o.u.Setup = `umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup
group=/sys/fs/cgroup/` + own + `; mkdir -p $group
chown ` + ordinaryUID + ` $group $group/cgroup.procs $group/cgroup.subtree_control
echo $$ >$group/cgroup.procs`
	const warning = "do not hold for steps: other processes than obx are in the control group"
	show := `(run (shell "cat /proc/self/cgroup; ls /sys/fs/cgroup | grep cgroup.procs; echo $RANDOM"))`
	run := o.obx + " run --rebuild 1 --store groups --cpus 1 " + o.spec(show)
	out, _ := o.u.Command("sh", "-c", run+"; echo status $?").CombinedOutput()
	if s := string(out); !strings.Contains(s, warning) || !strings.Contains(s, "status 0") {
		o.Errorf("beside a shell:\n%s", s)
	}
	if entries, err := filepath.Glob(filepath.Join(unified, own, "obx*")); err != nil || len(entries) > 0 {
		o.Errorf("left over: %q, %v", entries, err)
	}
	s := o.succeeds(false, "run", "--store", "alone", o.spec(show))
	if !strings.Contains(s, "0::/\ncgroup.procs\n") {
		o.Errorf("alone:\n%s", s)
	}
	if entries, err := filepath.Glob(filepath.Join(unified, own, "obx", "*", "cgroup.procs")); err != nil || len(entries) > 0 {
		o.Errorf("left over: %q, %v", entries, err)
	}
}

// testOrdinaryLocal holds that what a command could not make as an ordinary user keeps its result, and what is made of it, from others.
func testOrdinaryLocal(o *ordinary) {
	registry := StartRegistry(o.T)
	spec := o.spec(`(run (shell "echo 1 > /one"))`, `(run (shell "mknod /null c 1 3; echo $?"))`, `(run (shell "ls /null; id -u"))`)
	const why = "could not make a device node"
	// One Command: each has a mount namespace of its own.
	plain := " --store local --plain-http " + registry
	said, err := o.u.Command("sh", "-ec", o.obx+" run --cache "+registry+"/local"+plain+" "+spec+"; "+
		o.obx+" cache export --all --to "+registry+"/exported"+plain).CombinedOutput()
	for _, want := range []string{"results are not pushed: ", "/null: No such file", "2 results are left out", "exported 1 result "} {
		if !strings.Contains(string(said), want) {
			o.Errorf("%q is not said", want)
		}
	}
	if err != nil || o.Failed() || strings.Count(string(said), why) != 2 {
		o.Errorf("%v, the user is told:\n%s", err, said)
	}
	for _, from := range []string{"/local", "/exported"} {
		said := o.succeeds(true, "--cache", registry+from, "--plain-http", registry, "--push", "never", "--store", filepath.Join(o.root, from), "run", spec)
		if n := strings.Count(said, "from cache") - 1; n != 1 || !strings.Contains(said, "\n/null\n") {
			o.Errorf("root takes %d steps from %s:\n%s", n, from, said)
		}
	}
}

// testOrdinaryRefused holds that whoever cannot run steps is told what to do, and that other commands work all the same.
func testOrdinaryRefused(o *ordinary) {
	t := o.T
	spec := o.spec(`(run (shell "true"))`)
	o.u.Subordinate = ""
	out, err := o.run(false, "run", spec)
	if exitStatus(err) != 3 || !strings.Contains(out, "usermod --add-subuids") || !strings.Contains(out, "/etc/subgid and /etc/subuid") {
		t.Errorf("without subordinate ids: %v\n%s", err, out)
	}
	o.succeeds(false, "plan", spec)
	o.u.Subordinate = "700000:900"
	out, err = o.run(false, "run", o.spec(`(run (shell "true"))`, `(user (uid 1000) (gid 1000))`, `(run (shell "true"))`))
	if exitStatus(err) != 3 && exitStatus(err) != 1 || !strings.Contains(out, "does not have the user 1000:1000") {
		t.Errorf("with few ids: %v\n%s", err, out)
	}
	o.u.Subordinate = "700000:65536:x"
	if out, err = o.run(false, "run", spec); exitStatus(err) != 3 || !strings.Contains(out, "line 1: not USER:FIRST:COUNT") {
		t.Errorf("with odd ids: %v\n%s", err, out)
	}
}

func exitStatus(err error) int {
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return -1
}
