package qemu

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/layers"
)

// debianExecutor runs processes on a disk of Debian that `make test-disks` has made.
func debianExecutor(t *testing.T, warn func(string)) (*Executor, layers.Layer) {
	t.Helper()
	if !conformance.LongMachines() {
		t.Skip("it boots Debian several times: `make machines` runs it")
	}
	disk, key := conformance.DebianDisk(t)
	st := conformance.OpenStore(t)
	e := testExecutor(t, vm.Options{Store: st, BootTimeout: 5 * time.Minute, Warn: warn}, guest.Account{Key: key})
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, conformance.DiskLayer(t, st, disk)
}

// A machine of another system needs a disk to boot from, and one that obx has an agent for.
func TestForeignSystems(t *testing.T) {
	st := conformance.OpenStore(t)
	e := testExecutor(t, vm.Options{Store: st, OS: "openbsd"})
	defer e.Close()
	if p := e.Platform(); p.OS != "openbsd" || p.Architecture != "amd64" {
		t.Errorf("they are of %+v", p)
	}
	r, err := e.Open(t.Context(), []layers.Layer{conformance.Busybox(t, st)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Run(t.Context(), script("true"), io.Discard); err == nil || !strings.Contains(err.Error(), "has no disk") {
		t.Errorf("got %v", err)
	}
	_, err = New(vm.Options{Store: st, OS: "windows", Arch: "riscv64"}, guest.Account{})
	if err == nil || !strings.Contains(err.Error(), "windows on riscv64") {
		t.Errorf("got %v", err)
	}
}

// TestPlainDisk runs steps without a sandbox, on a machine that is shut down after each: as OpenBSD and Windows have it, on a system that can be had
// here.
func TestPlainDisk(t *testing.T) {
	e, disk := debianExecutor(t, func(msg string) {
		if !strings.Contains(msg, "limits of memory") {
			t.Error(msg)
		}
	})
	e.foreign = true
	chain := []layers.Layer{disk}
	r, err := e.Open(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { r.Close() }()
	run := func(p executor.Process, want string) {
		t.Helper()
		var out bytes.Buffer
		if err := r.Run(t.Context(), p, &out); err != nil || out.String() != want {
			t.Fatalf("printed %q, %v; want %q", out.String(), err, want)
		}
	}
	freeze := func() {
		t.Helper()
		l := conformance.Freeze(t, r)
		if l.IsZero() {
			t.Fatal("nothing has changed")
		}
		chain = append(chain, l)
	}
	with := func(s string, change func(*executor.Process)) executor.Process {
		p := script(s)
		change(&p)
		return p
	}
	cache := func(name, sharing, target string) executor.Mount {
		return executor.Mount{Target: target, Cache: &executor.Cache{Domain: "d", Name: name, Sharing: sharing}}
	}
	run(with(`hostname; id -u; id -g; echo "$HOME $A"; pwd; cat; echo x > f; ls -d /new/cache /etc/skel; ls -A /etc/skel; echo 1 > /new/cache/n
		echo 2 > /etc/skel/m; mkdir /etc/skel/sub; echo err >&2; echo out`, func(p *executor.Process) {
		p.UID, p.GID, p.Dir = 1000, 1001, "/var/tmp"
		p.Env = append(p.Env, "A=b c")
		p.Mounts = []executor.Mount{cache("one", "", "/new/cache"), cache("two", "locked", "/etc/skel")}
		p.Limits.Memory = 64 << 20
	}), "builder\n1000\n1001\n/ b c\n/var/tmp\n/etc/skel\n/new/cache\nerr\nout\n")
	freeze()
	run(with(`cat /var/tmp/f /c/n /etc/skel/m; rm -r /c/n /etc/skel/sub; test ! -e /new; cat /run/secrets/a /etc/hostname
		grep -c obx /proc/mounts; echo more >> /etc/skel/m`, func(p *executor.Process) {
		p.Mounts = []executor.Mount{
			cache("one", "", "/c"), cache("two", "locked", "/etc/skel"),
			{Target: "/run/secrets/a", Secret: &executor.Secret{Data: []byte("secret\n"), Mode: 0o400}},
			{Target: "/etc/hostname", Secret: &executor.Secret{Data: []byte("over\n")}},
		}
	}), "x\n1\n2\nsecret\nover\n4\n")
	run(with("ls -A /c /etc/skel; cat /etc/skel/m; ls -d /run/secrets 2>/dev/null; grep -c over /etc/hostname", func(p *executor.Process) {
		p.Argv[2] += "; true"
		p.Mounts = []executor.Mount{cache("one", "", "/c"), cache("two", "locked", "/etc/skel")}
	}), "/c:\n\n/etc/skel:\nm\n2\nmore\n0\n")
	freeze()
	run(script("ls -A /etc/skel | grep -c rc; ls -d /c /new 2>/dev/null; true"), "1\n")

	tree, err := r.Files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := fs.ReadFile(tree, "var/tmp/f"); err != nil || string(b) != "x\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if _, err := tree.Lstat("etc/nothing/at/all"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if list, err := tree.ReadDir("proc"); err != nil || len(list) > 0 {
		t.Errorf("files of the kernel's own: %d, %v", len(list), err)
	}

	master, tty := conformance.OpenPTY(t)
	defer master.Close()
	var exit *executor.ExitError
	err = r.Run(t.Context(), with("tty; id -u; echo the end; exit 3", func(p *executor.Process) {
		p.UID, p.Terminal, p.Stdin = 1000, true, tty
	}), io.Discard)
	if !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("on a terminal: %v", err)
	}
	if screen := conformance.Screen(t, master, "the end"); !strings.Contains(screen, "/dev/pts/") || !strings.Contains(screen, "1000") {
		t.Errorf("the terminal shows %q", screen)
	}
	var start *executor.StartError
	if err := r.Run(t.Context(), executor.Process{Argv: []string{"/no/such"}, Dir: "/"}, io.Discard); !errors.As(err, &start) {
		t.Errorf("a program that is not there: %v", err)
	}
}

// TestBrokenAgent has a disk with the agent of another obx, which gives way to that which ssh brings; and then one on which no agent can make a
// sandbox: steps do without, and the user is told.
func TestBrokenAgent(t *testing.T) {
	warned := 0
	e, disk := debianExecutor(t, func(msg string) {
		if !strings.Contains(msg, "without a sandbox") {
			t.Error(msg)
		}
		warned++
	})
	chain := []layers.Layer{disk}
	open := func() executor.Root {
		t.Helper()
		r, err := e.Open(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	// then runs a step, and has the next one boot the disk again.
	then := func(command string) (printed string) {
		t.Helper()
		r := open()
		defer r.Close()
		var out bytes.Buffer
		if err := r.Run(t.Context(), script(command), &out); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		chain = append(chain, conformance.Freeze(t, r))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		e.parked.end()
		e.parked = nil
		return out.String()
	}
	then(`set -e; cat > /usr/local/sbin/obx-agent <<'E'
#!/bin/sh
for p in /sys/class/virtio-ports/*; do
	if [ "$(cat $p/name)" = obx.control ]; then exec 3<>/dev/${p##*/}; fi
done
printf 'H\015\000\000\000{"Version":1}' >&3
echo started > /started
exec sleep 1000
E
cat > /etc/systemd/system/obx-agent.service <<'E'
[Service]
ExecStart=/usr/local/sbin/obx-agent serve
[Install]
WantedBy=multi-user.target
E
chmod 755 /usr/local/sbin/obx-agent; systemctl enable obx-agent`)
	got := then("cat /started; grep Seccomp: /proc/self/status; rm /usr/local/sbin/obx-agent /started; echo 'f /run/obx-agent' > /etc/tmpfiles.d/obx.conf")
	if got != "started\nSeccomp:\t2\n" || warned != 0 {
		t.Errorf("with the agent of another obx, a step printed %q, and there are %d warnings", got, warned)
	}
	r := open()
	defer func() { r.Close() }()
	var out bytes.Buffer
	err := r.Run(t.Context(), script("grep Seccomp: /proc/self/status; echo x > /x; cat /x; kill -9 $$"), &out)
	if err == nil || err.Error() != "killed by signal 9" || out.String() != "Seccomp:\t0\nx\n" {
		t.Errorf("printed %q, %v", out.String(), err)
	}
	err = r.Run(t.Context(), script("PATH=/sbin:/bin; modprobe pvpanic-mmio; echo c > /proc/sysrq-trigger; sleep 1000"), io.Discard)
	if err == nil || !strings.Contains(err.Error(), "crashed") {
		t.Errorf("a system that crashes: %v", err)
	}
	if warned != 1 {
		t.Errorf("%d warnings", warned)
	}
}

// Files that would be lost, or that would be taken for the disk's own, are not copied to a disk.
func TestCopyToDisk(t *testing.T) {
	for file, want := range map[string]string{
		"etc/run/x":                "",
		"disk/mine.qcow2":          "",
		"disk/005.qcow2 004.qcow2": "so are its own files called",
		"run/x":                    "memory",
		"run/a/b/c":                "memory",
		"run -> /etc":              "",
	} {
		dir := t.TempDir()
		fill(t, dir, file)
		r := &diskRoot{e: &Executor{}}
		if err := r.takes(dir); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
	dir := t.TempDir()
	fill(t, dir, "run/x")
	if err := (&diskRoot{e: &Executor{foreign: true}}).takes(dir); err != nil {
		t.Errorf("on another system than Linux: %v", err)
	}
}

// fill makes a file of a layer: "NAME BACKING" is a disk, "NAME -> TARGET" a link.
func fill(t *testing.T, dir, file string) {
	t.Helper()
	name, more, _ := strings.Cut(file, " ")
	name = filepath.Join(dir, name)
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if target, ok := strings.CutPrefix(more, "-> "); ok {
		err = errors.Join(err, os.Symlink(target, name))
	} else if more != "" {
		command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", more, name, "1M")
	} else {
		err = errors.Join(err, os.WriteFile(name, nil, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a tool that makes disks.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s (make test-deps)", name, err, out)
	}
}
