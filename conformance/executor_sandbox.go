package conformance

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor"
)

// sandboxTests are about what a real process sees and may do.
func sandboxTests() []executorTest {
	return []executorTest{
		{"ForeignLayers", testForeignLayers},
		{"OutputOrder", testOutputOrder},
		{"MuchOutput", testMuchOutput},
		{"BrokenLog", testBrokenLog},
		{"Stdin", testStdin},
		{"Environment", testEnvironment},
		{"Home", testHome},
		{"User", testUser},
		{"Directory", testDirectory},
		{"Hostname", testHostname},
		{"NetworkNone", testNetworkNone},
		{"NetworkHost", testNetworkHost},
		{"Privileges", testPrivileges},
		{"Namespaces", testNamespaces},
		{"SystemMounts", testSystemMounts},
		{"Devices", testDevices},
		{"Seccomp", testSeccomp},
		{"SystemCalls", testSystemCalls},
		{"Refused", testRefused},
		{"Escapes", testEscapes},
		{"Traced", testTraced},
		{"GivenAway", testGivenAway},
		{"Swaps", testSwaps},
		{"ImageLinks", testImageLinks},
		{"OwnProgram", testOwnProgram},
		{"Bombs", testBombs},
		{"FastSync", testFastSync},
		{"Signal", testSignal},
		{"MemoryLimit", testMemoryLimit},
		{"ProcessLimit", testProcessLimit},
		{"DefaultProcessLimit", testDefaultProcessLimit},
		{"DiskLimit", testDiskLimit},
		{"InodeLimit", testInodeLimit},
		{"CPULimit", testCPULimit},
		{"BackgroundProcesses", testBackgroundProcesses},
		{"HardLinks", testHardLinks},
		{"SpecialFiles", testSpecialFiles},
		{"Depth", testDepth},
	}
}

// wantOutput runs a script and compares what it prints.
func wantOutput(t *testing.T, r executor.Root, p executor.Process, want string) {
	t.Helper()
	if got := run(t, r, p); got != want {
		t.Errorf("%s\nprints %q\n  want %q", p.Argv[len(p.Argv)-1], got, want)
	}
}

func testOutputOrder(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintf(&want, "out %d\nerr %d\n", i, i)
	}
	wantOutput(t, r, script("i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"), want.String())
	wantOutput(t, r, script("printf 'no newline'"), "no newline")
}

func testMuchOutput(t *testing.T, b *rig) {
	var count countingWriter
	want := countingWriter(100_000_000)
	if b.m.Machine { // which may be emulated
		want /= 10
	}
	if err := b.open(t, b.base).Run(t.Context(), script(fmt.Sprintf("head -c %d /dev/zero", want)), &count); err != nil {
		t.Fatal(err)
	}
	if count != want {
		t.Errorf("got %d bytes", count)
	}
}

type countingWriter int64

func (c *countingWriter) Write(p []byte) (int, error) {
	*c += countingWriter(len(p))
	return len(p), nil
}

type brokenWriter struct{}

var errBroken = errors.New("the disk is full")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func testBrokenLog(t *testing.T, b *rig) {
	start := time.Now()
	err := b.open(t, b.base).Run(t.Context(), script("echo x; sleep 60"), brokenWriter{})
	var exit *executor.ExitError
	if !errors.Is(err, errBroken) || errors.As(err, &exit) {
		t.Errorf("got %v, want %v", err, errBroken)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the process is not stopped, it took %v", took)
	}
}

func testStdin(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	wantOutput(t, r, script("cat; echo end"), "end\n")
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	p := script("cat; echo end")
	p.Stdin = f
	wantOutput(t, r, p, "typed\nend\n")
}

func testEnvironment(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	p := script("")
	p.Argv = []string{"env"}
	p.Env = []string{"B=2", "PATH=/bin", "A=a b\tc$PATH", "C=", "Ü=ß"}
	wantOutput(t, r, p, strings.Join(p.Env, "\n")+"\nHOME=/root\n")
	p.Env = []string{"HOME=/elsewhere", "PATH=/bin"}
	wantOutput(t, r, p, "HOME=/elsewhere\nPATH=/bin\n")
	p.Argv = []string{"/bin/busybox", "printf", "%s,", "a b", "", "$X", "\"'\\", "line\nline"}
	wantOutput(t, r, p, "a b,,$X,\"'\\,line\nline,")
}

func testHome(t *testing.T, b *rig) {
	r := b.open(t, b.base, loadTar(t, b.st, tar.Header{Name: "etc/passwd", Linkname: "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n"}))
	for uid, want := range map[int]string{0: "/root\n", 1000: "/home/u\n", 1234: "/\n"} {
		p := script("echo $HOME")
		p.UID = uid
		wantOutput(t, r, p, want)
	}
}

func testUser(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	p := script("id -u; id -g; grep Groups: /proc/self/status; touch /tmp/f; stat -c %u:%g /tmp/f; touch /f")
	p.UID, p.GID = 1000, 1001
	out, err := try(t, r, p)
	wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: 1})
	if fields := strings.Fields(out); len(fields) < 4 || !slices.Equal(fields[:4], []string{"1000", "1001", "Groups:", "1000:1001"}) {
		t.Errorf("got %q", out)
	}
}

func testDirectory(t *testing.T, b *rig) {
	link := tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/tmp", Mode: 0o777}
	r := b.open(t, b.base, loadTar(t, b.st, link))
	p := script("pwd; stat -c '%u:%g %a' /new /new/dir; touch f")
	p.Dir, p.UID, p.GID = "/new/dir", 1000, 1000
	out, err := try(t, r, p)
	wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: 1}) // it is not the user's
	if want := "/new/dir\n0:0 755\n0:0 755\n"; !strings.HasPrefix(out, want) {
		t.Errorf("got %q, want %q", out, want)
	}
	p = script("pwd > f")
	p.Dir = "/new/dir"
	run(t, r, p)
	wantContents(t, b.st, Freeze(t, r), "new", "new/dir", "new/dir/f")
	for dir, want := range map[string]string{"/tmp/a/b/c/..": "/tmp/a/b", "/tmp/./": "/tmp", "/link": "/tmp", "/tmp//a": "/tmp/a"} {
		p := script("readlink /proc/self/cwd")
		p.Argv = []string{"/bin/readlink", "/proc/self/cwd"}
		p.Dir = dir
		wantOutput(t, r, p, want+"\n")
	}
}

func testHostname(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	wantOutput(t, r, script("hostname; cat /etc/hosts"), "builder\n127.0.0.1 localhost builder")
	p := script("hostname; cat /etc/hosts")
	p.Hostname = "other"
	wantOutput(t, r, p, "other\n127.0.0.1 localhost other")
	for _, s := range []string{"echo x > /etc/hosts", "rm /etc/hosts", "hostname x", "umount /etc/hosts"} {
		if out, err := try(t, r, script(s)); err == nil {
			t.Errorf("%s succeeds: %s", s, out)
		}
	}
}

func testNetworkNone(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	wantOutput(t, r, script("ls /sys/class/net; cat /sys/class/net/lo/flags; test -e /etc/resolv.conf || echo none"), "lo\n0x9\nnone\n")
	// The loopback interface works. What listens has a standard input without end: where that ends, nc shuts its side down, and the
	// other nc may leave before it has sent a thing.
	wantOutput(t, r, script("mkfifo /tmp/open; nc -l -p 7777 > /tmp/got <> /tmp/open & "+
		"until echo hello | nc 127.0.0.1 7777 2>/dev/null; do sleep 0.1; done; wait; cat /tmp/got"), "hello\n")
}

func testNetworkHost(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	p := script("readlink /proc/self/ns/net; hostname; cat /etc/hosts; echo")
	if b.m.Machine {
		host = "10.0.2.15"
		p = script("ip -4 address show scope global | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p'; hostname; cat /etc/hosts; echo")
	}
	p.Network = executor.NetworkHost
	wantOutput(t, r, p, host+"\nbuilder\n127.0.0.1 localhost builder\n")
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("the layer has %q", contents(t, b.st, l))
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return // a machine without a network
	}
	p.Argv[2] = "cat /etc/resolv.conf; echo x > /etc/resolv.conf"
	if b.m.Machine {
		resolv = []byte("nameserver 10.0.2.3\n")
	}
	out, err := try(t, r, p)
	if err == nil || !strings.HasPrefix(out, string(resolv)) {
		t.Errorf("resolv.conf: %q, %v", out, err)
	}
}

func testPrivileges(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	const all, none = "00000000a80401fb", "0000000000000000"
	show := "grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tr -d '\\n\\t'; echo; umask; ulimit -n; ulimit -Hn"
	lines := func(prm string) string {
		return "CapInh:" + all + "CapPrm:" + prm + "CapEff:" + prm + "CapBnd:" + all + "CapAmb:" + none + "NoNewPrivs:0\n0022\n1024\n1024\n"
	}
	wantOutput(t, r, script(show), lines(all))
	p := script(show)
	p.UID, p.GID = 1000, 1000
	wantOutput(t, r, p, lines(none))
}

func testNamespaces(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	out := run(t, r, script("for n in pid ipc uts mnt net; do readlink /proc/self/ns/$n; done; echo $$"))
	got := strings.Fields(out)
	if len(got) != 6 || got[5] != "1" {
		t.Fatalf("got %q", out)
	}
	for i, n := range []string{"pid", "ipc", "uts", "mnt", "net"} {
		if host, err := os.Readlink("/proc/self/ns/" + n); err != nil || host == got[i] {
			t.Errorf("the %s namespace is the host's: %s, %v", n, host, err)
		}
	}
	if out := run(t, r, script("ls -d /proc/[0-9]* | wc -l")); strings.TrimSpace(out) > "9" || len(strings.TrimSpace(out)) > 1 {
		t.Errorf("the process sees %s processes", out)
	}
}

func testSystemMounts(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	out := run(t, r, script("cat /proc/mounts"))
	for _, want := range []string{
		"/proc proc rw,nosuid,nodev,noexec", "/dev tmpfs rw,nosuid", "/dev/pts devpts rw,nosuid,noexec", "/sys sysfs ro,nosuid,nodev,noexec",
		"/dev/shm tmpfs rw,nosuid,nodev,noexec", "/dev/mqueue mqueue rw,nosuid,nodev,noexec", "/proc/sys proc ro",
	} {
		found := false
		for line := range strings.Lines(out) {
			_, rest, _ := strings.Cut(line, " ")
			found = found || strings.HasPrefix(rest, want)
		}
		if !found {
			t.Errorf("no mount %q in\n%s", want, out)
		}
	}
	for _, s := range []string{
		"echo 1 > /proc/sys/kernel/printk", "echo x > /proc/sysrq-trigger", "mkdir /sys/fs/cgroup/memory/x",
		"mount -t tmpfs x /tmp", "umount /proc", "mount -o remount,rw /sys", "grep . /proc/kcore", "test -n \"$(ls /sys/firmware)\"",
		"chroot / mount -t proc x /tmp", "dd if=/dev/zero of=/dev/shm/f bs=1M count=65",
	} {
		if out, err := try(t, r, script(s)); err == nil {
			t.Errorf("%s succeeds: %s", s, out)
		}
	}
	run(t, r, script("dd if=/dev/zero of=/dev/shm/f bs=1M count=60; echo x > /dev/null; head -c 1 /dev/urandom > /tmp/x"))
}

func testDevices(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	const want = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
	run(t, r, script("cd /dev && ls -d "+want))
	if out := run(t, r, script("ls /dev | wc -l")); strings.TrimSpace(out) > "15" {
		t.Errorf("/dev has %s entries", out)
	}
	run(t, r, script("mknod /n c 1 3; mknod /m b 7 99; mkfifo /p; echo x > /n"))
	if out, err := try(t, r, script("head -c 1 /m")); err == nil {
		t.Errorf("a block device can be read: %q", out)
	}
}

func testSeccomp(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	wantOutput(t, r, script("grep Seccomp: /proc/self/status | tr -d '\\t'"), "Seccomp:2\n")
	p := script("unshare -U true")
	for _, uid := range []int{0, 1000} {
		p.UID = uid
		if out, err := try(t, r, p); err == nil {
			t.Errorf("user %d makes a user namespace: %s", uid, out)
		}
	}
	run(t, r, script("(sleep 0.01 &); sleep 0.02 & wait; ls -R / > /tmp/all 2>&1; chmod 4755 /tmp/all; chown 5:5 /tmp/all"))
}

// testSystemCalls compares, call by call and family by family, what a process reaches of the kernel with what it may.
func testSystemCalls(t *testing.T, b *rig) {
	for arch, program := range Probes(t, b.e.Platform().Architecture) {
		r := b.open(t, b.base, loadTar(t, b.st, tar.Header{Name: "probe", Linkname: string(program), Mode: 0o755}))
		for network, name := range map[executor.Network]string{executor.NetworkNone: "none", executor.NetworkHost: "host"} {
			p := script("")
			p.Argv, p.Network, p.FastSync = []string{"/probe", name}, network, true
			out, err := try(t, r, p)
			if arch != b.e.Platform().Architecture && err != nil && strings.Contains(fmt.Sprint(err, out), "exec format error") { // a kernel without 32-bit programs
				t.Logf("there are no programs for %s: %v", arch, err)
				continue
			}
			if err != nil {
				t.Errorf("%s, network %s: %v\n%s", arch, name, err, out)
			}
		}
	}
}

// Probes are programs for a machine of an architecture, by the architecture of the program: each compares what it reaches of the kernel with what it may.
// Its argument is the network that it has: none or host.
func Probes(t testing.TB, machine string) map[string][]byte {
	t.Helper()
	programs := []string{machine}
	if narrow, ok := map[string]string{"amd64": "386", "arm64": "arm"}[machine]; ok {
		programs = append(programs, narrow)
	}
	built := map[string][]byte{}
	for _, arch := range programs {
		built[arch] = buildFor(t, arch, "executor/internal/seccomp/probe")
	}
	return built
}

func testFastSync(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	for _, fast := range []bool{false, true} {
		p := script("dd if=/bin/busybox of=/f bs=1000 conv=fsync 2>/dev/null && sync && echo ok")
		p.FastSync = fast
		wantOutput(t, r, p, "ok\n")
	}
}

func testSignal(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	// A process that is the first of its namespace ignores what it sends itself; a fault kills it.
	_, err := try(t, r, script("f() { f; }; f"))
	wantExit(t, err, executor.ExitError{Reason: executor.Signaled, Signal: 11})
	// That of a child is the shell's exit status.
	_, err = try(t, r, script("sh -c 'kill -9 $$'; exit $?"))
	wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: 137})
}

func testMemoryLimit(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	p := script("dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?")
	p.Limits.Memory = 64 << 20
	_, err := try(t, r, p)
	wantExit(t, err, executor.ExitError{Reason: executor.OOM, Code: 137, Limit: "64MiB"})
	p.Argv = []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}
	_, err = try(t, r, p)
	wantExit(t, err, executor.ExitError{Reason: executor.OOM, Signal: 9, Limit: "64MiB"})
	p = script("exit 5")
	p.Limits.Memory = 64 << 20
	_, err = try(t, r, p)
	wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: 5})
}

func testProcessLimit(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	p := script("i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); done")
	p.Limits.PIDs = 30
	if out, err := try(t, r, p); err == nil {
		t.Errorf("it may have 40 processes: %s", out)
	}
	p.Limits.PIDs = 100
	run(t, r, p)
}

func testCPULimit(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	p := script("cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max")
	p.Limits.CPUs = 0.5
	wantOutput(t, r, p, "50000\n")
}

func testBackgroundProcesses(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	start := time.Now()
	wantOutput(t, r, script("sleep 1000 & (setsid sleep 1000 &) ; echo started"), "started\n")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	// Those of a cancelled step too; the end of the test looks for leftovers.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var out bytes.Buffer
	if err := r.Run(ctx, script("(setsid sleep 1000 &); trap '' TERM INT HUP; sleep 1000 & wait"), &out); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func testHardLinks(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	one := step(t, r, "mkdir /d; echo one > /d/a; ln /d/a /d/b; ln /d/a /c")
	same := "stat -c '%h' /c; [ /c -ef /d/a ] && [ /c -ef /d/b ] && echo same; cat /c"
	wantOutput(t, r, script(same), "3\nsame\none\n")
	two := step(t, r, "echo two > /c; ln /c /e")
	for _, r := range []executor.Root{r, b.open(t, b.base, one, two)} {
		wantOutput(t, r, script("stat -c '%h' /c; [ /c -ef /e ] && echo same; cat /e"), "2\nsame\ntwo\n")
		wantOutput(t, r, script("cat /d/a /d/b"), "one\none\n")
	}
}

func testSpecialFiles(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	if userns.Inside() {
		if _, err := try(t, r, script("mknod /n c 1 3")); err == nil {
			t.Error("a device is made in a user namespace")
		}
	} else {
		step(t, r, "mknod /n c 1 3; chmod 4755 /n")
		wantOutput(t, r, script("stat -c '%A %t %T' /n"), "crwsr-xr-x 1 3\n")
	}
	step(t, r, "mkfifo /p; ln -s nowhere /l; mkdir -m 1777 /sticky; mkdir -m 2755 /setgid")
	wantOutput(t, r, script("stat -c %A /p; readlink /l; stat -c %a /sticky /setgid"), "prw-r--r--\nnowhere\n1777\n2755\n")
	run(t, r, script("echo x > /.wh.x"))
	if _, err := r.Freeze(t.Context()); err == nil || !strings.Contains(err.Error(), ".wh.x") {
		t.Errorf("a name that no layer can hold: %v", err)
	}
	if out := run(t, r, script("cat /.wh.x 2>/dev/null || echo gone")); out != "gone\n" {
		t.Errorf("after a failed freeze: %q", out)
	}
}

// testDepth holds that a step may leave what is deeper than any path, and that what no layer can hold fails it: its files go all the same.
func testDepth(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	// A path of 4,000 bytes is made, and moved to the end of another.
	const dig = `way=$(printf "$1/%.0s" $(seq $2)); mkdir -p /a/$way; cd /a/$way; echo deep > file; cd /
for n in $(seq $3); do mkdir -p /b/$way; mv /a /b/$way; mv /b /a; done`
	deep := step(t, r, "set -- "+strings.Repeat("n", 200)+" 19 2; "+dig)
	next := b.open(t, b.base, deep)
	wantOutput(t, next, script("cd /a; while [ -d n* ] || [ -d a ]; do cd -P n* 2>/dev/null || cd -P a || break; done; cat file 2>/dev/null || echo lost"), "deep\n")
	r = b.open(t, b.base)
	run(t, r, script("set -- d 1900 2; "+dig))
	_, err := r.Freeze(t.Context())
	if err == nil || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "a/d/d/d/") || !strings.Contains(err.Error(), "too deep") {
		t.Errorf("what no layer can hold: %.1000v", err)
	}
}
