package qemu_test

import (
	"io"
	"slices"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor/qemu"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/layers"
)

// BenchmarkStep runs a trivial step in a machine of its own and freezes it: in one that goes on from a saved one, in one that
// boots, and, as the floor of what OBuilder does, in a Debian that boots from a disk and is reached by ssh. The ratios
// of the medians are the figures to look at. Next is one more step in the same machine.
func BenchmarkStep(b *testing.B) {
	st := conformance.OpenStore(b)
	base := conformance.Busybox(b, st)
	saved := newExecutor(b, vm.Options{Store: st})
	defer saved.Close()
	cold := newExecutor(b, vm.Options{Store: st, NoState: true})
	defer cold.Close()
	file, key := conformance.DebianDisk(b)
	ssh := newExecutor(b, vm.Options{Store: st, BootTimeout: 5 * time.Minute}, guest.Account{Key: key})
	defer ssh.Close()
	disk := conformance.DiskLayer(b, st, file)

	step := func(e *qemu.Executor, l layers.Layer, n int) (took []time.Duration) {
		start := time.Now()
		r, err := e.Open(b.Context(), []layers.Layer{l})
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		for range n {
			if err := r.Run(b.Context(), shell("echo x >> /log"), io.Discard); err != nil {
				b.Fatal(err)
			}
			if _, err := r.Freeze(b.Context()); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
			start = time.Now()
		}
		return took
	}
	step(saved, base, 1) // makes the state
	step(cold, base, 1)
	times := map[string][]time.Duration{}
	note := func(name string, d time.Duration) { times[name] = append(times[name], d) }
	for b.Loop() {
		s := step(saved, base, 2)
		note("saved", s[0])
		note("next", s[1])
		note("cold", step(cold, base, 1)[0])
		note("ssh", step(ssh, disk, 1)[0])
	}
	median := func(name string) float64 {
		d := times[name]
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds()) / 1000
	}
	for _, name := range []string{"saved", "next", "cold", "ssh"} {
		b.ReportMetric(median(name), "ms/"+name)
	}
	// What saved machines are for: well below a boot of the same machine, and a small part of the way by ssh.
	for _, target := range []struct {
		than string
		most float64
	}{{"cold", 0.4}, {"ssh", 0.1}} {
		ratio := median("saved") / median(target.than)
		b.ReportMetric(ratio, "saved/"+target.than)
		if ratio > target.most {
			b.Errorf("a step in a saved machine takes %.3f of one %s, more than %v", ratio, target.than, target.most)
		}
	}
}
