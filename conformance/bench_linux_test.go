package conformance

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These benchmarks run the obx command on a freshly made ext4, since one in which many files have been deleted makes
// every benchmark that creates files lie. Each takes its floor in the same run and reports the ratio.

// freshFS mounts a new ext4 of some size and gives its path.
func freshFS(tb testing.TB, gigabytes int64) string {
	tb.Helper()
	RequireRoot(tb)
	dir := tb.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	f, err := os.Create(image)
	if err != nil {
		tb.Fatal(err)
	}
	if err := f.Truncate(gigabytes << 30); err != nil {
		tb.Fatal(err)
	}
	f.Close()
	if err := os.Mkdir(mnt, 0o755); err != nil {
		tb.Fatal(err)
	}
	command(tb, "/sbin/mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
	command(tb, "mount", "-o", "loop", image, mnt)
	tb.Cleanup(func() { command(tb, "umount", mnt) })
	return mnt
}

func command(tb testing.TB, name string, args ...string) {
	tb.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// A bench is an obx command, a base image, and a fresh file system to work on.
type bench struct {
	testing.TB
	obx, dir, busybox string
	peak              int64 // largest resident set of any obx process so far, in bytes
}

func newBench(tb testing.TB, gigabytes int64) *bench {
	b := &bench{TB: tb, obx: BuildOBX(tb), dir: freshFS(tb, gigabytes)}
	b.busybox = filepath.Join(tb.TempDir(), "busybox")
	raw, err := busyboxTar(nil)
	if err == nil {
		err = writeLayout(b.busybox, raw)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// run runs a spec and gives how long the whole process took.
func (b *bench) run(spec, ctx string, more ...string) time.Duration {
	b.Helper()
	file := filepath.Join(b.TempDir(), "spec")
	if err := os.WriteFile(file, []byte(spec), 0o644); err != nil {
		b.Fatal(err)
	}
	if ctx == "" {
		ctx = filepath.Dir(file)
	}
	args := append([]string{"run", file, ctx, "--store", filepath.Join(b.dir, "store"),
		"--base", "busybox=oci:" + b.busybox + ":latest", "--progress", "quiet"}, more...)
	cmd := exec.Command(b.obx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatalf("obx: %v\n%s", err, stderr.Bytes())
	}
	took := time.Since(start)
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		b.peak = max(b.peak, u.Maxrss<<10)
	}
	return took
}

func steps(n int, salt string) string {
	var s strings.Builder
	s.WriteString("((from busybox)\n (shell /bin/sh -c)\n")
	for i := range n {
		fmt.Fprintf(&s, " (run (shell \"echo %d%s >> /log\"))\n", i+1, salt)
	}
	return s.String() + ")"
}

// median of n runs of f, in milliseconds.
func median(n int, f func(i int) time.Duration) float64 {
	times := make([]time.Duration, n)
	for i := range times {
		times[i] = f(i)
	}
	slices.Sort(times)
	return float64(times[n/2].Microseconds()) / 1e3
}

// runtimeFloor is what the OCI runtime alone takes to run a step's command with its default configuration.
func (b *bench) runtimeFloor(n int) float64 {
	bundle := filepath.Join(b.dir, "bundle")
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o755); err != nil {
		b.Fatal(err)
	}
	raw, err := busyboxTar(nil)
	if err != nil {
		b.Fatal(err)
	}
	untar := exec.Command("tar", "-x", "-C", filepath.Join(bundle, "rootfs"))
	untar.Stdin = bytes.NewReader(raw)
	if err := untar.Run(); err != nil {
		b.Fatal(err)
	}
	command(b, "sh", "-c", "cd "+bundle+" && rm -f config.json && runc spec && "+
		`sed -i 's/"terminal": true/"terminal": false/; s/"readonly": true/"readonly": false/; s#"sh"#"/bin/sh","-c","echo 1 >> /log"#' config.json`)
	defer os.RemoveAll(bundle)
	return median(n, func(i int) time.Duration {
		start := time.Now()
		command(b, "runc", "--root", filepath.Join(b.dir, "runc"), "run", "--bundle", bundle, fmt.Sprintf("floor-%d-%d", os.Getpid(), i))
		return time.Since(start)
	})
}

// BenchmarkSteps20 runs 20 trivial steps on a base that is present. Floor: `runc run` of each command.
func BenchmarkSteps20(b *testing.B) {
	x := newBench(b, 4)
	x.run("((from busybox))", "")
	floor := x.runtimeFloor(20)
	for b.Loop() {
		empty := median(5, func(int) time.Duration { return x.run("((from busybox))", "") })
		n := 0
		cold := median(5, func(int) time.Duration { n++; return x.run(steps(20, fmt.Sprint(" ", b.N, n)), "") })
		x.run(steps(20, ""), "")
		cached := median(11, func(int) time.Duration { return x.run(steps(20, ""), "") })
		b.ReportMetric(cold/20, "ms/step")
		b.ReportMetric(floor, "floor-ms/step")
		b.ReportMetric(cold/20/floor, "x-floor")
		b.ReportMetric(cached, "cached-ms")
		b.ReportMetric(empty, "base-only-ms")
	}
}

// BenchmarkSteps400 runs 400 trivial steps. Floor: a step of 100, so that 1 is linear.
func BenchmarkSteps400(b *testing.B) {
	x := newBench(b, 4)
	for b.Loop() {
		few := x.run(steps(100, " few"), "").Seconds() * 1e3 / 100
		many := x.run(steps(400, " many"), "").Seconds() * 1e3 / 400
		cached := x.run(steps(400, " many"), "")
		b.ReportMetric(many, "ms/step")
		b.ReportMetric(few, "floor-ms/step")
		b.ReportMetric(many/few, "x-floor")
		b.ReportMetric(float64(cached.Microseconds())/1e3, "cached-ms")
	}
}

// BenchmarkCopy10k copies 10,000 files of 2 kB. Floor: `cp -a` onto the same file system.
func BenchmarkCopy10k(b *testing.B) {
	x := newBench(b, 4)
	src := filepath.Join(x.dir, "context")
	rnd := rand.New(rand.NewSource(1))
	data := make([]byte, 2000)
	for i := range 10000 {
		dir := fmt.Sprintf("%s/d%02d", src, i/100)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		rnd.Read(data)
		if err := os.WriteFile(fmt.Sprintf("%s/f%05d.txt", dir, i), data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	x.run("((from busybox))", "")
	const spec = `((from busybox) (shell /bin/sh -c) (comment "%d") (copy (src .) (dst /src/)) (run (shell "find /src -type f | wc -l")))`
	n := 0
	for b.Loop() {
		floor := median(3, func(int) time.Duration {
			n++
			start := time.Now()
			command(b, "cp", "-a", src, fmt.Sprintf("%s/cp%d", x.dir, n))
			return time.Since(start)
		})
		cold := median(3, func(int) time.Duration {
			n++
			return x.run(fmt.Sprintf(spec, n), src, "--salt", fmt.Sprint(n))
		})
		unchanged := median(5, func(int) time.Duration { return x.run(fmt.Sprintf(spec, n), src, "--salt", fmt.Sprint(n)) })
		if err := os.WriteFile(src+"/d00/f00000.txt", []byte(fmt.Sprint("changed ", n)), 0o644); err != nil {
			b.Fatal(err)
		}
		changed := x.run(fmt.Sprintf(spec, n), src, "--salt", fmt.Sprint(n))
		b.ReportMetric(cold, "cold-ms")
		b.ReportMetric(floor, "floor-ms")
		b.ReportMetric(cold/floor, "x-floor")
		b.ReportMetric(unchanged, "unchanged-ms")
		b.ReportMetric(float64(changed.Milliseconds()), "one-changed-ms")
	}
}

// BenchmarkStages4 builds four stages that each take two seconds, side by side. Floor: one `sleep 2`.
func BenchmarkStages4(b *testing.B) {
	x := newBench(b, 1)
	x.run("((from busybox))", "")
	var spec strings.Builder
	spec.WriteString("(")
	for _, s := range []string{"a", "b", "c", "d"} {
		fmt.Fprintf(&spec, "(build %s ((from busybox) (shell /bin/sh -c) (run (shell \"sleep 2; echo %s > /%s\"))))\n", s, s, s)
	}
	spec.WriteString("(from busybox) (shell /bin/sh -c)\n")
	for _, s := range []string{"a", "b", "c", "d"} {
		fmt.Fprintf(&spec, "(copy (from (build %s)) (src /%s) (dst /%s))\n", s, s, s)
	}
	spec.WriteString("(run (shell \"cat /a /b /c /d\")))")
	n := 0
	for b.Loop() {
		n++
		start := time.Now()
		command(b, "sleep", "2")
		floor := time.Since(start)
		took := x.run(spec.String(), "", "--salt", fmt.Sprint(n))
		b.ReportMetric(took.Seconds(), "s")
		b.ReportMetric(took.Seconds()/floor.Seconds(), "x-floor")
	}
}

// BenchmarkLargeFile makes a file of 1 GiB in a step, and packs it for an output. Floor of the memory: none; the
// limit is 150 MiB for obx itself.
func BenchmarkLargeFile(b *testing.B) {
	x := newBench(b, 8)
	n := 0
	for b.Loop() {
		n++
		took := x.run(`((from busybox) (shell /bin/sh -c) (run (shell "head -c 1073741824 /dev/zero > /large")))`, "",
			"--salt", fmt.Sprint(n), "--output", "type=oci,dest="+x.dir+"/out.tar")
		b.ReportMetric(took.Seconds(), "s")
		b.ReportMetric(float64(x.peak)/(1<<20), "peak-MiB")
	}
}
