package sandbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/cgroup"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/internal/sandbox"
)

// BenchmarkContainer starts a shell in a container and waits for its end, and each time the floor too: the same shell without a container. The root
// is mounted beforehand. The ratio of the medians is the figure to look at.
func BenchmarkContainer(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("only root can mount")
	}
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	check(err)
	// Mounts are for this thread alone, and for what it starts.
	runtime.LockOSThread()
	check(unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS))
	check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	top := b.TempDir()
	check(unix.Mount("bench", top, "tmpfs", 0, ""))
	defer func() { _ = unix.Unmount(top, unix.MNT_DETACH) }()
	lower, upper, work, box := filepath.Join(top, "lower"), filepath.Join(top, "upper"), filepath.Join(top, "work"), filepath.Join(top, "box")
	for _, dir := range []string{filepath.Join(lower, "bin"), upper, work, box} {
		check(os.MkdirAll(dir, 0o755))
	}
	program, err := os.ReadFile(busybox)
	check(err)
	check(os.WriteFile(filepath.Join(lower, "bin", "sh"), program, 0o755))
	var mounter rootfs.Mounter
	mount, err := mounter.Mount(rootfs.OverlayMount{Lower: []string{lower}, Upper: upper, Work: work})
	check(err)
	groups := cgroup.Maker{}
	groups.System, err = cgroup.Find()
	check(err)
	const group = cgroup.Top + "/bench/container-1"
	p := executor.Process{Argv: []string{"/bin/sh", "-c", ":"}, Dir: "/", Env: []string{"PATH=/bin"}}
	plan, err := rootfs.NewPlan(rootfs.RootDir{FD: int(mount.Fd())}, p, box, group, groups.System, nil)
	check(err)
	filter, err := rootfs.CompiledFilter(false, false, false)
	check(err)
	check(rootfs.Attach(box, rootfs.Attachment{Mounts: []*os.File{mount}, Files: plan.Files, Binds: plan.Binds}))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	check(err)
	defer null.Close()

	var networks sandbox.Networks
	var starters sandbox.Starters
	defer starters.Close()
	defer networks.Close()
	container := func() {
		g, err := groups.Make(group, plan.Spec.Linux.Resources)
		check(err)
		c := sandbox.Container{Spec: &plan.Spec, Filter: filter, Group: g, Networks: &networks, Starters: &starters, Stdin: null, Stdout: null}
		p, err := c.Start()
		check(err)
		state, err := p.Wait()
		check(err)
		if !state.Success() {
			b.Fatal(state)
		}
		check(groups.Remove(group))
	}
	shell := func() {
		p, err := os.StartProcess(filepath.Join(lower, "bin", "sh"), p.Argv, &os.ProcAttr{Files: []*os.File{null, null, null}})
		check(err)
		_, err = p.Wait()
		check(err)
	}
	var ours, floor []time.Duration
	for b.Loop() {
		start := time.Now()
		container()
		ours = append(ours, time.Since(start))
		b.StopTimer()
		start = time.Now()
		shell()
		floor = append(floor, time.Since(start))
		b.StartTimer()
	}
	groups.RemoveRun(group)
	ms := func(d []time.Duration) float64 { return float64(d[len(d)/2].Microseconds()) / 1000 }
	slices.Sort(ours)
	slices.Sort(floor)
	b.ReportMetric(ms(ours), "ms/container")
	b.ReportMetric(ms(floor), "ms/shell")
	b.ReportMetric(ms(ours)/ms(floor), "ratio")
}
