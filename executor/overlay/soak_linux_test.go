package overlay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
	"github.com/ocurrent/obx/layers"
)

// TestSoak runs many steps of all kinds, four at once: what they take of the machine does not grow with their number, and nothing stays. By default there
// are few; `make long` runs 10,000.
func TestSoak(t *testing.T) {
	conformance.RequireRoot(t)
	total := 200
	if s := os.Getenv("OBX_TEST_STEPS"); s != "" {
		var err error
		if total, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	st := conformance.OpenStore(t)
	base := conformance.Busybox(t, st)
	open := func() *overlay.Executor {
		e, err := overlay.New(overlay.Options{Store: st, Runtime: overlay.Builtin})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := open()
	r, err := e.Open(t.Context(), []layers.Layer{base})
	if err == nil { // what Go's runtime and the store have from the first step on
		err = errors.Join(soakStep(t.Context(), r, 0), r.Close(), e.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	before := takeSample(t, st)
	e = open()
	var done atomic.Int64
	var samples []sample
	every := int64(max(total/90, 1))
	sampling := make(chan struct{}, total)
	var steps, sampler errgroup.Group
	for range 4 {
		steps.Go(func() error {
			var r executor.Root
			var err error
			for {
				n := done.Add(1)
				if n > int64(total) {
					break
				}
				if n%20 == 1 || r == nil { // chains of a few layers
					if r != nil {
						if err := r.Close(); err != nil {
							return err
						}
					}
					if r, err = e.Open(t.Context(), []layers.Layer{base}); err != nil {
						return err
					}
				}
				if err := soakStep(t.Context(), r, int(n)); err != nil {
					return fmt.Errorf("step %d: %w", n, err)
				}
				if n%every == 0 {
					sampling <- struct{}{}
				}
			}
			if r == nil {
				return nil
			}
			return r.Close()
		})
	}
	sampler.Go(func() error {
		for range sampling {
			samples = append(samples, takeSample(t, st))
		}
		return nil
	})
	began := time.Now()
	if err := steps.Wait(); err != nil {
		t.Error(err)
	}
	close(sampling)
	_ = sampler.Wait()
	t.Logf("%d steps in %v", total, time.Since(began))
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	conformance.Leftovers(t, st.Dir(), st.RunID())

	third := len(samples) / 3
	for i, name := range sampleNames {
		first, last := medianOf(samples[:third], i), medianOf(samples[len(samples)-third:], i)
		t.Logf("%-32s before %9d, first third %9d, last third %9d", name, before[i], first, last)
		if room := first/10 + sampleRoom[name]; last > first+room {
			t.Errorf("%s grow: %d in the first third, %d in the last", name, first, last)
		}
	}
	var left []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) { // the store is still syncing layers
		left = nil
		for i, now := range takeSample(t, st) {
			room := map[string]int64{"threads": 20, "kB of memory": 20_000}[sampleNames[i]] // Go's runtime never ends a thread
			if now > before[i]+room {
				left = append(left, fmt.Sprintf("%s at the end: %d, at the beginning %d", sampleNames[i], now, before[i]))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, l := range left {
		t.Error(l)
	}
}

// soakStep runs one step of ten kinds.
func soakStep(ctx context.Context, r executor.Root, n int) error {
	p := shell("date >> /f; echo $$")
	cache := func(name, sharing string) executor.Mount {
		return executor.Mount{Target: "/" + name, Cache: &executor.Cache{Domain: "default", Name: name, Sharing: sharing}}
	}
	var want any
	var exit *executor.ExitError
	var start *executor.StartError
	switch n % 10 {
	case 1:
		p.Argv[2], want = "exit 3", &exit
	case 2:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(n/10%30)*time.Millisecond) // in all phases
		defer cancel()
		p.Argv[2], want = "sleep 100 & sleep 100", nil
	case 3:
		p.Limits.Timeout, p.Argv[2], want = 10*time.Millisecond, "sleep 100", &exit
	case 4:
		p.Mounts = []executor.Mount{cache("private", ""), {Target: "/run/secrets/s", Secret: &executor.Secret{Data: []byte("x")}}}
	case 5:
		p.Network, p.Mounts = executor.NetworkHost, []executor.Mount{cache("shared", "shared")}
	case 6:
		p.Limits.Memory, p.Limits.PIDs, p.Limits.CPUs = 64<<20, 50, 1
	case 7:
		p.Argv, want = []string{"/bin/nosuch"}, &start
	case 8:
		p.Argv[2] = "sleep 100 & (setsid sleep 100 &) ; echo x > /g"
	case 9:
		p.UID, p.GID, p.Argv[2] = 1000, 1000, "cat /f"
	}
	err := r.Run(ctx, p, io.Discard)
	switch {
	case n%10 == 2:
		if !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("it is not cancelled: %w", err)
		}
		return nil
	case want != nil && !errors.As(err, want):
		return fmt.Errorf("it does not fail as it should: %w", err)
	case want == nil && err != nil && !(n%10 == 9 && errors.As(err, &exit)): // the file may not be there
		return err
	}
	if n%7 == 0 {
		if _, err := r.Files(ctx); err != nil {
			return err
		}
	}
	c, err := r.Freeze(ctx)
	if err != nil {
		return err
	}
	return c.Close()
}

// A sample is how much of the machine this process, its supervisors and their steps have; as sampleNames.
type sample [9]int64

var sampleNames = [...]string{
	"threads", "descriptors", "namespaces", "mounts", "control groups", "processes", "processes that are dead", "kB of memory", "files of the run in the store",
}

// sampleRoom is by how much a figure may differ by chance, beside a tenth.
var sampleRoom = map[string]int64{
	"threads": 6, "descriptors": 30, "namespaces": 8, "mounts": 12, "control groups": 12, "processes": 8, "processes that are dead": 2,
	"kB of memory": 20_000, "files of the run in the store": 60,
}

func takeSample(t *testing.T, st *cas.Store) (s sample) {
	t.Helper()
	namespaces := map[string]bool{}
	ours := map[int]bool{os.Getpid(): true}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b string) int { return pidOf(a) - pidOf(b) })
	for _, dir := range all {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		_, rest, _ := bytes.Cut(stat, []byte(") "))
		f := strings.Fields(string(rest))
		parent, _ := strconv.Atoi(f[1])
		pid := pidOf(dir)
		if !ours[pid] && !ours[parent] {
			continue
		}
		ours[pid] = true
		s[5]++
		if f[0] == "Z" {
			s[6]++
		}
		links, _ := filepath.Glob(filepath.Join(dir, "ns/*"))
		fds, _ := filepath.Glob(filepath.Join(dir, "fd/*"))
		var syncing int // what the store marks durable just now: hundreds of files, now and then
		for _, l := range append(links, fds...) {
			to, err := os.Readlink(l)
			if strings.HasPrefix(to, filepath.Join(st.Dir(), "layers")+"/") && filepath.Base(to) == "epoch" {
				syncing++
			}
			if err == nil && strings.Contains(to, ":[") && !strings.HasPrefix(to, "pipe") && !strings.HasPrefix(to, "socket") {
				namespaces[to] = true
			}
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		supervisor := bytes.HasPrefix(cmdline, []byte("obx-supervisor\x00"))
		if pid != os.Getpid() && !supervisor { // a step's
			continue
		}
		n, _ := strconv.ParseInt(f[17], 10, 64)
		s[0] += n
		s[1] += int64(len(fds) - syncing)
		mounts, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
		if !supervisor { // this process sees mounts of whoever else
			mounts = bytes.Repeat([]byte("\n"), bytes.Count(mounts, []byte(st.Dir()+"/")))
		}
		s[3] += int64(bytes.Count(mounts, []byte("\n")))
		rollup, _ := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		for line := range strings.Lines(string(rollup)) {
			if kb, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(kb)[0], 10, 64)
				s[7] += n
			}
		}
	}
	s[2] = int64(len(namespaces))
	for _, top := range []string{"/sys/fs/cgroup/obx/", "/sys/fs/cgroup/*/obx/"} {
		groups, _ := filepath.Glob(top + st.RunID() + "*/*")
		for _, g := range groups {
			if info, err := os.Stat(g); err == nil && info.IsDir() {
				s[4]++
			}
		}
	}
	_ = filepath.WalkDir(st.TempDir(), func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			s[8]++
		}
		return nil
	})
	return s
}

func pidOf(dir string) int {
	n, _ := strconv.Atoi(filepath.Base(dir))
	return n
}

func medianOf(all []sample, i int) int64 {
	var values []int64
	for _, s := range all {
		values = append(values, s[i])
	}
	slices.Sort(values)
	if len(values) == 0 {
		return 0
	}
	return values[len(values)/2]
}
