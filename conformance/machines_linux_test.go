package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMachines has a build begun in containers, continued in virtual machines on another store, and finished in
// containers on a third one: only what is new runs, each time.
func TestMachines(t *testing.T) {
	f := newFleet(t, NewDebian(t)).with(t)
	kernel := Kernel(t, "amd64")
	const begun = `(from base) (shell /bin/sh -c)
 (run (shell "mkdir /d; echo one > /d/one; echo x > /gone; ln /d/one /d/link; mknod /d/null c 1 3; chmod 4755 /d/one"))
 (copy (src file) (dst /copied/))`
	const continued = begun + `
 (user (uid 1000) (gid 1000))
 (run (shell "id -u; cat /copied/file"))
 (user (uid 0) (gid 0))
 (run (cache (c (target /c)))
  (shell "rm /gone; echo two >> /d/one; rm -r /copied; mkdir /copied; echo $(uname -r) > /copied/kernel; touch /c/x; chmod 4755 /d/one"))`
	const finished = continued + `
 (run (cache (c (target /c))) (shell "cat /d/one /d/link; ls -l /gone 2>/dev/null; ls /copied /c; stat -c '%a %h' /d/one; test -c /d/null"))`
	build := func(steps string) string {
		return `((build other ((from base) (shell /bin/sh -c) (run (shell "echo in a stage > /f")))) ` + steps + ` (copy (from (build other)) (src /f) (dst /f)))`
	}
	cache := f.reg.Addr + "/machines"
	flags := func(m *machine, more ...string) []string {
		return append(more, "--base", "base="+f.reg.Addr+"/bases/busybox:latest", "--cache", cache, "--plain-http", f.reg.Addr)
	}
	run := func(runs, hits int, spec string, more ...string) (told, *machine) {
		m := f.machine()
		if err := os.WriteFile(filepath.Join(m.dir, "file"), []byte("copied\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return m.silent(runs, hits, spec, flags(m, more...)...), m
	}
	machines := []string{"--executor", "qemu", "--qemu-accel", "tcg", "--qemu-kernel", kernel}
	run(4, 0, build(begun))
	second, _ := run(3, 3, build(continued), machines...)
	if !strings.Contains(second.logs, "1000\ncopied\n") {
		t.Errorf("the machines printed %q", second.logs)
	}
	dir := filepath.Join(t.TempDir(), "out")
	third, m := run(2, 5, build(finished), "--output", "type=local,dest="+dir)
	if want := "one\ntwo\none\n/c:\n\n/copied:\nkernel\n4755 1\n"; !strings.Contains(third.logs, want) {
		t.Errorf("the containers printed %q, want %q", third.logs, want)
	}
	if got := m.file(dir, "f"); got != "in a stage\n" {
		t.Errorf("the copied file has %q", got)
	}
	// All of it in machines, and from the store.
	fourth, m := run(0, 7, build(finished), append(machines, "--output", "type=local,dest="+dir+"2")...)
	if fourth.key != third.key || m.file(dir+"2", "copied/kernel") != m.file(dir, "copied/kernel") {
		t.Errorf("another result: %s, %s", fourth.key, third.key)
	}
}

// TestDiskImages builds on a disk of Debian that knows nothing of obx: begun on one store, cached there, finished on another,
// with files that are copied into the machine and out of it.
//
// It boots Debian twice, for minutes where the processor is emulated: only `make machines` runs it.
func TestDiskImages(t *testing.T) {
	if !LongMachines() {
		t.Skip("it boots Debian twice: `make machines` runs it")
	}
	f := newFleet(t, NewDebian(t)).with(t)
	disk, key := DebianDisk(t)
	cache := f.reg.Addr + "/disks"
	const begun = `(build vm ((from debian) (shell /bin/sh -c)
 (run (shell "echo step one; cat /etc/debian_version; hostname; echo $HOME; echo one > /one"))
 (env NAME value) (workdir /srv/dir)
 (run (secrets (s (target /run/secrets/s))) (shell "echo $NAME; pwd; cat /run/secrets/s; echo two > two"))
 (copy (src file) (dst /copied/))
 (run (shell "cat /copied/file /one two; rm /one; test ! -e /run/secrets/s"))
 (user (uid 1000) (gid 1000))
 (run (shell "id -u; id -g; echo $HOME; test ! -e /one; echo done > /var/tmp/done"))`
	finish := `
 (user (uid 0) (gid 0))
 (run (shell "stat -c '%U %a' /copied/file; cat /var/tmp/done; mkdir /out; ln -s file /out/link; echo made > /out/file; chmod 4750 /out/file"))`
	build := func(steps string) string {
		return `(` + steps + `)) (from busybox) (shell /bin/sh -c) (copy (from (build vm)) (src /srv) (dst /srv)) (run (shell "cat /srv/dir/two")))`
	}
	run := func(m *machine, runs, hits int, spec string, more ...string) told {
		t.Helper()
		if err := os.WriteFile(filepath.Join(m.dir, "file"), []byte("copied\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		flags := []string{
			"--executor", "qemu", "--qemu-accel", "tcg", "--qemu-kernel", Kernel(t, "amd64"), "--qemu-ssh-key", key, "--qemu-boot-time", "5m",
			"--base", "debian=qcow2:" + disk, "--cache", cache, "--plain-http", f.reg.Addr, "--secret", f.secret("secret\n"), "--compression", "zstd:1",
		}
		flags[len(flags)-3] = strings.Replace(flags[len(flags)-3], "value=", "s=", 1)
		return m.silent(runs, hits, spec, append(flags, more...)...)
	}
	a := f.machine()
	first := run(a, 7, 0, build(begun))
	for _, want := range []string{"step one\n12.", "\nbuilder\n/root\n", "value\n/srv/dir\nsecret\n", "copied\none\ntwo\n", "1000\n1000\n/\n"} {
		if !strings.Contains(first.logs, want) {
			t.Errorf("%q is not in what was printed:\n%s", want, first.logs)
		}
	}
	t.Logf("pushed %d bytes", first.pushed)
	if again := run(a, 0, 7, build(begun)); again.key != first.key {
		t.Errorf("another key: %s, %s", again.key, first.key)
	}
	second := run(f.machine(), 1, 7, build(begun+finish))
	if !strings.Contains(second.logs, "root 644\ndone\n") {
		t.Errorf("the other machine printed %q", second.logs)
	}
	t.Logf("pulled %d bytes", second.pulled)
}

// TestDiskAgent publishes a disk of Debian, puts obx's agent on it, by ssh, and goes on by the agent, without the key: then steps have what they have
// elsewhere.
func TestDiskAgent(t *testing.T) {
	if !LongMachines() {
		t.Skip("it boots Debian three times: `make machines` runs it")
	}
	f := newFleet(t, NewDebian(t)).with(t)
	disk, key := DebianDisk(t)
	const install = `(from debian) (shell /bin/sh -c)
 (copy (src obx-agent) (dst /usr/local/sbin/obx-agent))
 (copy (src obx-agent.service) (dst /etc/systemd/system/obx-agent.service))
 (copy (src file) (dst /tmp/))
 (run (shell "systemctl enable obx-agent; echo kept > /tmp/kept; chmod 700 /tmp/kept; echo gone > /run/gone"))`
	const steps = `
 (run (cache (c (target /new/cache) (buildkit_options ((sharing locked)))))
  (shell "hostname; echo $HOME; grep Seccomp: /proc/self/status; ls /run/obx-agent; echo x >> /new/cache/n; sleep 1000 & echo bg"))
 (copy (src file) (dst /copied/))
 (run (cache (c (target /new/cache) (buildkit_options ((sharing locked)))))
  (shell "echo x >> /new/cache/n; cat /new/cache/n /copied/file; ps ax | grep -c '[s]leep' || true"))
 (run (secrets (s (target /run/secrets/s)))
  (shell "cat /run/secrets/s; ls /sys/class/net; cat /sys/fs/cgroup/memory.max /proc/self/oom_score_adj; wc -l < /proc/swaps"))
 (run (shell "cat /tmp/file; stat -c '%a %n' /tmp /tmp/kept; ls /run; ls /var/lib/obx-agent; cat /proc/sys/kernel/core_pattern"))
 (user (uid 1000) (gid 1000)) (workdir /var/tmp)
 (run (shell "id -u; ls -d /new /run/secrets; cat /proc/mounts | grep -c obx-agent; echo made > made"))`
	flags := []string{
		"--executor", "qemu", "--qemu-accel", "tcg", "--qemu-kernel", Kernel(t, "amd64"), "--qemu-boot-time", "5m",
		"--base", "debian=" + f.reg.Addr + "/base:debian", "--cache", f.reg.Addr + "/disks", "--plain-http", f.reg.Addr,
		"--secret", strings.Replace(f.secret("secret\n"), "value=", "s=", 1), "--compression", "zstd:1",
	}
	machine := func() *machine {
		m := f.machine()
		command(t, m.obx, "base", "agent", m.dir)
		if err := os.WriteFile(filepath.Join(m.dir, "file"), []byte("copied\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return m
	}
	publisher := f.machine()
	command(t, publisher.obx, "base", "qcow2", "--store", publisher.store, "--plain-http", f.reg.Addr, "--compression", "zstd:1", disk, f.reg.Addr+"/base:debian")
	machine().silent(4, 0, "("+install+")", append(flags, "--qemu-ssh-key", key)...)
	b := machine()
	const contained = `(build container ((from busybox) (shell /bin/sh -c) (run (shell "echo contained > /c"))))`
	const copied = ` (user (uid 0) (gid 0)) (copy (from (build container)) (src /c) (dst /c)) (run (shell "cat /c"))`
	all := `((build vm (` + contained + install + steps + copied + `)) (from busybox) (copy (from (build vm)) (src /var/tmp/made) (dst /made)))`
	got := b.silent(10, 4, all, append(flags, "--memory", "300m")...)
	for _, want := range []string{
		"builder\n/root\nSeccomp:\t2\nls: cannot access '/run/obx-agent': No such file or directory\nbg\n",
		"x\nx\ncopied\n0\n", "secret\nlo\n314572800\n0\n1\n",
		"copied\n1777 /tmp\n700 /tmp/kept\nlock\nshm\ntmp\n|/bin/false\n",
		"1000\n", "No such file or directory\n", "\n0\n", "contained\n",
	} {
		if !strings.Contains(got.logs, want) {
			t.Errorf("%q is not in what was printed:\n%s", want, got.logs)
		}
	}
	short := b.try("("+install+` (run (shell "tail /dev/zero")))`, append(flags, "--memory", "64m")...)
	if short.err == nil || !strings.Contains(short.stderr, "used more memory than") {
		t.Errorf("a step without enough memory: %v\n%s", short.err, short.stderr)
	}
}
