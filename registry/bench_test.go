package registry_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry/internal/repotest"
)

// BenchmarkFind looks builds up in a registry that is near and in some that are farther: whole ones, ones that lack their last step, and ones of which
// nothing is there: 1, 2 and 3 round trips, the third of as many requests as there are steps, which have to connect. Floor: one request.
func BenchmarkFind(b *testing.B) {
	needRoot(b)
	p := conformance.StartProxy(b, conformance.NewDebian(b).Addr)
	for _, steps := range []int{1, 5, 20} {
		name := fmt.Sprint(p.Addr, "/cache", steps)
		a, _ := machine(b, repotest.Open(b, name))
		build := newChain(b, a.Store, name)
		for range steps {
			build.step("hello\n")
		}
		p.SetDelay(0)
		push(b, a, build.results...)
		hit := build.ids()[:steps]
		changed := func(n int) []keys.ID { // of a build whose last n steps are others, above one that is there
			ids := slices.Clone(build.ids()[:max(steps, n+1)])
			for i := range n {
				ids[i][0]++
			}
			return ids
		}
		for _, delay := range []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond} {
			for _, c := range []struct {
				name string
				ids  []keys.ID
				hit  bool
			}{{"all", hit, true}, {"all but one", changed(1), true}, {"none", changed(steps)[:steps], false}} {
				b.Run(fmt.Sprintf("steps=%d/delay=%v/%s", steps, delay, c.name), func(b *testing.B) {
					var floors, all []time.Duration
					p.SetDelay(delay)
					for b.Loop() {
						b.StopTimer()
						cache, _ := machine(b, repotest.Open(b, name))
						_, _ = cache.Repo.Head(b.Context(), "connects")
						began := time.Now()
						_, _, _ = cache.Repo.Manifest(b.Context(), c.ids[0].String()+".rec")
						floors = append(floors, time.Since(began))
						p.Counts()
						b.StartTimer()
						began = time.Now()
						r := find(b, cache, c.ids...)
						all = append(all, time.Since(began))
						if (r != nil) != c.hit {
							b.Fatalf("found %+v", r)
						}
					}
					slices.Sort(floors)
					slices.Sort(all)
					floor, took := floors[len(floors)/2], all[len(all)/2]
					b.ReportMetric(float64(took.Microseconds())/1e3, "ms")
					b.ReportMetric(float64(floor.Microseconds())/1e3, "floor-ms")
					b.ReportMetric(float64(took)/float64(floor), "x-floor")
					b.ReportMetric(float64(conformance.Total(p.Counts()).Requests), "requests")
				})
			}
		}
	}
}
