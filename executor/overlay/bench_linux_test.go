package overlay_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// BenchmarkStep runs a trivial step and freezes it, and each time the floor too: `runc run` of the same command in a
// plain directory, with the configuration that `runc spec` writes. The ratio of the medians is the figure to look at.
func BenchmarkStep(b *testing.B) {
	conformance.RequireRoot(b)
	st := conformance.OpenStore(b)
	e := newExecutor(b, st)
	base, err := layers.Unpack(b.Context(), st, conformance.Busybox(b, st))
	if err != nil {
		b.Fatal(err)
	}
	bundle := runcBundle(b, st.LayerPath(base.Dir))
	r, err := e.Open(b.Context(), []layers.Layer{base})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	p := executor.Process{Argv: []string{"/bin/sh", "-c", "echo x >> /log"}, Dir: "/", Env: []string{"PATH=/bin"}}
	step := func() {
		if err := r.Run(b.Context(), p, io.Discard); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Freeze(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	step() // starts the supervisor
	var ours, floor []time.Duration
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		step()
		ours = append(ours, time.Since(start))
		b.StopTimer()
		start = time.Now()
		if out, err := exec.Command("runc", "run", "--bundle", bundle, "obx-bench-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(i)).CombinedOutput(); err != nil {
			b.Fatalf("runc: %v\n%s", err, out)
		}
		floor = append(floor, time.Since(start))
		b.StartTimer()
	}
	ms := func(d []time.Duration) float64 { return float64(d[len(d)/2].Microseconds()) / 1000 }
	slices.Sort(ours)
	slices.Sort(floor)
	b.ReportMetric(ms(ours), "ms/step")
	b.ReportMetric(ms(floor), "ms/floor")
	b.ReportMetric(ms(ours)/ms(floor), "ratio")
}

// runcBundle is a directory with runc's default configuration.
func runcBundle(b *testing.B, root string) string {
	dir := b.TempDir()
	if out, err := exec.Command("cp", "-a", root, filepath.Join(dir, "rootfs")).CombinedOutput(); err != nil {
		b.Fatalf("cp: %v\n%s", err, out)
	}
	cmd := exec.Command("runc", "spec")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("runc spec: %v\n%s", err, out)
	}
	name := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	var spec map[string]any
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&spec); err != nil {
		b.Fatal(err)
	}
	process := spec["process"].(map[string]any)
	process["terminal"] = false
	process["args"] = []string{"/bin/sh", "-c", "echo x >> /log"}
	spec["root"].(map[string]any)["readonly"] = false
	if data, err = json.Marshal(spec); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		b.Fatal(err)
	}
	return dir
}
