package hcs_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/hcs"
	"github.com/ocurrent/obx/layers"
)

// BenchmarkStep runs a trivial step and freezes it, and each time the floor too: a task of the same command with containerd's own
// configuration, on a plain directory, created, started, waited for and deleted. The ratio of the medians is the figure
// to look at.
func BenchmarkStep(b *testing.B) {
	for _, snapshotter := range []string{"overlayfs", "btrfs"} {
		b.Run(snapshotter, func(b *testing.B) { benchmarkStep(b, snapshotter) })
	}
}

func benchmarkStep(b *testing.B, snapshotter string) {
	address := conformance.StartContainerd(b, snapshotter)
	st := conformance.OpenStore(b)
	e := maker(hcs.Options{Address: address, Snapshotter: snapshotter}).New(b, st)
	defer e.Close()
	base, err := layers.Unpack(b.Context(), st, conformance.Busybox(b, st))
	if err != nil {
		b.Fatal(err)
	}
	floor := newFloor(b, address, st.LayerPath(base.Dir))
	r, err := e.Open(b.Context(), []layers.Layer{base})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	p := executor.Process{Argv: []string{"/bin/sh", "-c", "echo x >> /log"}, Dir: "/", Env: []string{"PATH=/bin"}}
	times := map[string][]time.Duration{}
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		if err := r.Run(b.Context(), p, io.Discard); err != nil {
			b.Fatal(err)
		}
		ran := time.Now()
		if _, err := r.Freeze(b.Context()); err != nil {
			b.Fatal(err)
		}
		times["step"] = append(times["step"], time.Since(start))
		times["freeze"] = append(times["freeze"], time.Since(ran))
		b.StopTimer()
		floor.run(b, i, times)
		b.StartTimer()
	}
	ms := func(phase string) float64 {
		d := slices.Sorted(slices.Values(times[phase]))
		return float64(d[len(d)/2].Microseconds()) / 1000
	}
	b.ReportMetric(ms("step"), "ms/step")
	b.ReportMetric(ms("freeze"), "ms/freeze")
	for _, phase := range []string{"create", "start", "wait", "delete", "floor"} {
		b.ReportMetric(ms(phase), "ms/floor-"+phase)
	}
	b.ReportMetric(ms("step")/ms("floor"), "ratio")
}

// A floor is what the least client of containerd does.
type floor struct {
	c   *client.Client
	ctx context.Context
	dir string
}

func newFloor(b *testing.B, address, files string) *floor {
	dir := b.TempDir()
	if out, err := exec.Command("cp", "-a", files+"/.", dir).CombinedOutput(); err != nil {
		b.Fatalf("cp: %v\n%s", err, out)
	}
	for _, name := range []string{"proc", "sys", "dev", "run"} {
		if err := os.MkdirAll(dir+"/"+name, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	c, err := client.New(address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return &floor{c, namespaces.WithNamespace(context.Background(), "floor"), dir}
}

func (f *floor) run(b *testing.B, i int, times map[string][]time.Duration) {
	b.Helper()
	id := "floor-" + strconv.Itoa(i)
	spec, err := oci.GenerateSpec(f.ctx, f.c, &containers.Container{ID: id}, oci.WithProcessArgs("/bin/sh", "-c", "echo x >> /log"))
	if err != nil {
		b.Fatal(err)
	}
	c, err := f.c.NewContainer(f.ctx, id, client.WithSpec(spec), client.WithRuntime("io.containerd.runc.v2", nil))
	if err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	last := begin
	phase := func(name string, err error) {
		b.Helper()
		if err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		times[name] = append(times[name], time.Since(last))
		last = time.Now()
	}
	task, err := c.NewTask(f.ctx, cio.NullIO, client.WithRootFS([]mount.Mount{{Type: "bind", Source: f.dir, Options: []string{"rbind", "rw"}}}))
	phase("create", err)
	exited, err := task.Wait(f.ctx)
	if err != nil {
		b.Fatal(err)
	}
	phase("start", task.Start(f.ctx))
	phase("wait", (<-exited).Error())
	_, err = task.Delete(f.ctx)
	phase("delete", err)
	times["floor"] = append(times["floor"], last.Sub(begin))
	if err := c.Delete(f.ctx); err != nil {
		b.Fatal(err)
	}
}
