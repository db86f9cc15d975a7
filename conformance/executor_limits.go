package conformance

import (
	"fmt"
	"testing"
	"time"

	"github.com/ocurrent/obx/executor"
)

// wantStopped runs a script that never ends by itself, but for a limit.
func wantStopped(t *testing.T, r executor.Root, p executor.Process, want executor.ExitError) {
	t.Helper()
	start := time.Now()
	_, err := try(t, r, p)
	wantExit(t, err, want)
	if took := time.Since(start); took > time.Minute {
		t.Errorf("it was stopped after %v", took)
	}
}

func cacheOf(b *rig, name, sharing string) executor.Mount {
	return executor.Mount{Target: "/" + name, Cache: &executor.Cache{Domain: b.domain, Name: name, Sharing: sharing}}
}

func testDiskLimit(t *testing.T, b *rig) {
	const limit = 16 << 20
	over := executor.ExitError{Reason: executor.DiskFull, Limit: "16MiB"}
	limited := func(s string, mounts ...executor.Mount) executor.Process {
		p := script(s)
		p.Limits.Disk, p.Mounts = limit, mounts
		return p
	}
	write := func(to string) string { return "dd if=/dev/zero bs=1M count=40 of=" + to + " 2>/dev/null; " }
	private, shared := cacheOf(b, "private", ""), cacheOf(b, "shared", "shared")
	for name, p := range map[string]executor.Process{
		"a file":               limited(write("/f") + "sleep 300"),
		"many files":           limited("i=0; while [ $i -lt 40 ]; do dd if=/dev/zero bs=1M count=1 of=/f$i 2>/dev/null; i=$((i+1)); done; sleep 300"),
		"a file without names": limited("exec 3>/f; rm /f; dd if=/dev/zero bs=1M count=40 >&3 2>/dev/null; sleep 300"),
		"a cache":              limited(write("/private/f")+"sleep 300", private),
		"a shared cache":       limited(write("/shared/f")+"sleep 300", shared),
		"both together":        limited("dd if=/dev/zero bs=1M count=10 of=/private/g; dd if=/dev/zero bs=1M count=10 of=/g; sleep 300", private),
		"deep down":            limited("i=0; while [ $i -lt 200 ]; do mkdir d; cd d; i=$((i+1)); done; " + write("f") + "sleep 300"),
	} {
		t.Run(name, func(t *testing.T) { wantStopped(t, b.open(t, b.base), p, over) })
	}
	t.Run("in another root", func(t *testing.T) { // the process leaves the root that it is known by at once; its file has no name
		cache := cacheOf(b, "root", "")
		run(t, b.open(t, b.base), limited("cp /bin/busybox /root/; mkdir /root/bin; ln -s ../busybox /root/bin/sh", cache))
		p := limited("exec 3>/f; /busybox rm /f; /busybox yes | /busybox head -c 40000000 >&3; exec /busybox sleep 300", cache)
		p.Argv = append([]string{"/bin/busybox", "chroot", "/root"}, p.Argv...)
		wantStopped(t, b.open(t, b.base), p, over)
	})
	t.Run("at the end", func(t *testing.T) {
		r := b.open(t, b.base)
		_, err := try(t, r, limited(write("/f")))
		wantExit(t, err, over)
		wantOutput(t, r, limited("ls /f 2>&1; exit 0"), "ls: /f: No such file or directory\n")
	})
	t.Run("what is kept", func(t *testing.T) {
		wantOutput(t, b.open(t, b.base), limited("ls /private; echo done", private), "done\n")
	})
	t.Run("enough", func(t *testing.T) {
		r := b.open(t, b.base)
		// What was there before, holes, and what is removed again do not count.
		run(t, r, limited("dd if=/dev/zero bs=1M count=10 of=/f 2>/dev/null; dd if=/dev/zero bs=1 count=1 seek=1T of=/holes 2>/dev/null; "+
			"for i in 1 2 3 4 5 6; do dd if=/dev/zero bs=1M count=4 of=/g 2>/dev/null; rm /g; done", shared))
	})
}

func testInodeLimit(t *testing.T, b *rig) {
	limited := func(s string) executor.Process {
		p := script(s)
		p.Limits.Inodes = 500
		return p
	}
	over := executor.ExitError{Reason: executor.TooManyFiles, Limit: "500"}
	files := "mkdir /d; i=0; while [ $i -lt 600 ]; do : > /d/$i; i=$((i+1)); done; "
	wantStopped(t, b.open(t, b.base), limited(files+"sleep 300"), over)
	_, err := try(t, b.open(t, b.base), limited(files))
	wantExit(t, err, over)
	// A file with many names is one.
	run(t, b.open(t, b.base), limited("mkdir /d; : > /d/f; i=0; while [ $i -lt 600 ]; do ln /d/f /d/$i; i=$((i+1)); done"))
}

func testDefaultProcessLimit(t *testing.T, b *rig) {
	show := "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"
	for pids, want := range map[int64]string{0: fmt.Sprintln(executor.DefaultPIDs), 77: "77\n", -1: "max\n"} {
		p := script(show)
		p.Limits.PIDs = pids
		wantOutput(t, b.open(t, b.base), p, want)
	}
}
