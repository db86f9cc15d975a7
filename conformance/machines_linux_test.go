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
 (run (cache (c (target /c))) (shell "rm /gone; echo two >> /d/one; rm -r /copied; mkdir /copied; echo $(uname -r) > /copied/kernel; touch /c/x; chmod 4755 /d/one"))`
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
