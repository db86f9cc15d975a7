package conformance

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A cacheBench is a bench with a registry on the same fresh file system. Times are taken without a proxy; requests are counted with one.
type cacheBench struct {
	*bench
	reg   *Registry
	proxy *Proxy
	n     int
}

func newCacheBench(b *testing.B, gigabytes int64) *cacheBench {
	x := &cacheBench{bench: newBench(b, gigabytes), reg: NewDebian(b)}
	x.proxy = StartProxy(b, x.reg.Addr)
	return x
}

// number makes names and salts that were not used before.
func (x *cacheBench) number() string {
	x.n++
	return fmt.Sprint(x.n)
}

// repo are the flags of a cache in the registry; counted ones go through the proxy.
func (x *cacheBench) repo(name string, counted bool) []string {
	addr := x.reg.Addr
	if counted {
		addr = x.proxy.Addr
	}
	return []string{"--cache", addr + "/" + name}
}

// fresh runs a spec on a machine with an empty store, removes that, and gives how long obx took.
func (x *cacheBench) fresh(spec string, more ...string) time.Duration {
	x.Helper()
	store := filepath.Join(x.dir, "store"+x.number())
	took := x.run(spec, "", append(more, "--store", store)...)
	if err := os.RemoveAll(store); err != nil {
		x.Fatal(err)
	}
	return took
}

// warm is fresh with the base image in the store already: what the steps alone take.
func (x *cacheBench) warm(spec string, more ...string) time.Duration {
	x.Helper()
	store := []string{"--store", filepath.Join(x.dir, "store"+x.number())}
	x.run("((from busybox))", "", store...)
	took := x.run(spec, "", append(more, store...)...)
	if err := os.RemoveAll(store[1]); err != nil {
		x.Fatal(err)
	}
	return took
}

// last gives steps with another command in the end.
func last(spec string) string {
	return strings.TrimSuffix(spec, ")") + ` (run (shell "echo 20 changed >> /log")))`
}

// BenchmarkCacheHit finds all of 20 steps on a fresh store, and replays their logs: at most 2 requests and 60 ms.
func BenchmarkCacheHit(b *testing.B) {
	x := newCacheBench(b, 4)
	x.fresh(steps(20, ""), x.repo("hit", false)...)
	for b.Loop() {
		x.proxy.Counts()
		x.fresh(steps(20, ""), append(x.repo("hit", true), "--progress", "plain")...)
		counts := x.proxy.Counts()
		hit := median(21, func(int) time.Duration {
			return x.fresh(steps(20, ""), append(x.repo("hit", false), "--progress", "plain")...)
		})
		b.ReportMetric(hit, "ms")
		b.ReportMetric(float64(Total(counts).Requests), "requests")
		b.ReportMetric(float64(Total(counts).Received), "bytes")
		b.ReportMetric(float64(counts["GET blob"].Requests), "blobs")
	}
}

// BenchmarkCacheResume runs the last of 20 steps on a fresh store: at most 300 ms.
func BenchmarkCacheResume(b *testing.B) {
	x := newCacheBench(b, 4)
	x.fresh(last(steps(19, "")), x.repo("resume", false)...)
	spec := strings.TrimSuffix(steps(19, ""), ")") + ` (run (shell "echo %s >> /log")))`
	for b.Loop() {
		x.proxy.Counts()
		x.fresh(fmt.Sprintf(spec, x.number()), x.repo("resume", true)...)
		counts := x.proxy.Counts()
		pull := median(7, func(int) time.Duration {
			return x.fresh(fmt.Sprintf(spec, x.number()), append(x.repo("resume", false), "--push", "never")...)
		})
		resume := median(7, func(int) time.Duration {
			return x.fresh(fmt.Sprintf(spec, x.number()), x.repo("resume", false)...)
		})
		b.ReportMetric(resume, "ms")
		b.ReportMetric(pull, "ms-without-push")
		b.ReportMetric(float64(Total(counts).Requests), "requests")
		b.ReportMetric(float64(Total(counts).Received), "bytes")
	}
}

// BenchmarkCacheResumeBase is BenchmarkCacheResume on a large base of one gzip layer: that of $OBX_BASES/dev, if it was made, or 200 MB of text
// and noise. Floor: gzip -dc | tar -x of the layer on the same disk.
func BenchmarkCacheResumeBase(b *testing.B) {
	x := newCacheBench(b, 16)
	layout := filepath.Join(os.Getenv("OBX_BASES"), "dev")
	if _, err := os.Stat(layout); err != nil {
		layout = x.largeBase()
	}
	base := []string{"--base", "large=oci:" + layout + ":latest"}
	spec := strings.Replace(steps(19, ""), "busybox", "large", 1)
	x.fresh(last(spec), append(x.repo("large", false), base...)...)
	blob := largestLayer(b, layout)
	spec = strings.TrimSuffix(spec, ")") + ` (run (shell "echo %s >> /log")))`
	for b.Loop() {
		floor := median(3, func(int) time.Duration {
			dir := filepath.Join(x.dir, "floor"+x.number())
			if err := os.Mkdir(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			start := time.Now()
			command(b, "sh", "-c", "gzip -dc "+blob+" | tar -x -C "+dir)
			took := time.Since(start)
			if err := os.RemoveAll(dir); err != nil {
				b.Fatal(err)
			}
			return took
		})
		resume := median(3, func(int) time.Duration {
			return x.fresh(fmt.Sprintf(spec, x.number()), append(x.repo("large", false), base...)...)
		})
		b.ReportMetric(resume, "ms")
		b.ReportMetric(floor, "floor-ms")
		b.ReportMetric(resume/floor, "x-floor")
		b.ReportMetric(float64(x.peak)/(1<<20), "peak-MiB")
	}
}

// largeBase makes a base image with 2,000 files.
func (x *cacheBench) largeBase() string {
	const script = `((from busybox) (shell /bin/sh -c) (run (shell "mkdir /data; cd /data; ` +
		`(head -c 50000000 /dev/urandom; yes 'The quick brown fox jumps over the lazy dog' | head -c 150000000) > all; ` +
		`i=0; while [ $i -lt 2000 ]; do dd if=all of=f$i bs=100000 count=1 skip=$i 2> /dev/null; i=$((i+1)); done; rm all")))`
	to := filepath.Join(x.dir, "large")
	x.fresh(script, "--compression", "gzip", "--output", "type=oci,dest="+to+"/,name=latest")
	return to
}

// largestLayer gives the file of the largest layer of a layout.
func largestLayer(t testing.TB, layout string) (file string) {
	t.Helper()
	file, _ = layerFiles(t, layout)
	return file
}

// layerFiles gives the files of the layers of a layout, and which is the largest.
func layerFiles(t testing.TB, layout string) (largest string, all []ocispec.Descriptor) {
	t.Helper()
	read := func(name string, v any) {
		b, err := os.ReadFile(filepath.Join(layout, name))
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index ocispec.Index
	var m ocispec.Manifest
	read(ocispec.ImageIndexFile, &index)
	read("blobs/sha256/"+index.Manifests[0].Digest.Encoded(), &m)
	size := int64(0)
	for _, l := range m.Layers {
		if l.Size > size {
			largest, size = filepath.Join(layout, "blobs/sha256", l.Digest.Encoded()), l.Size
		}
	}
	return largest, m.Layers
}

// BenchmarkCacheCold builds with a cache that is empty, and without one: steps of 0.2 s at most 1.10 times as long, trivial ones 1.7 times,
// with at most 9 requests for each step more; the base image's layer, which a new repository lacks, takes three beside.
func BenchmarkCacheCold(b *testing.B) {
	x := newCacheBench(b, 8)
	slow := strings.ReplaceAll(steps(20, ""), "echo", "sleep 0.2; echo")
	for b.Loop() {
		cold := func(spec string, n int) (with, without float64) {
			var a, c []float64
			for range n { // one of each in turn: other load hits both
				without := x.warm(spec, "--salt", x.number())
				with := x.warm(spec, append(x.repo("cold"+x.number(), false), "--salt", x.number())...)
				a, c = append(a, float64(with.Microseconds())/1e3), append(c, float64(without.Microseconds())/1e3)
			}
			return middle(a), middle(c)
		}
		count := func(n int) (int64, map[string]Count) {
			x.proxy.Counts()
			x.warm(steps(n, ""), x.repo("cold"+x.number(), true)...)
			counts := x.proxy.Counts()
			return int64(Total(counts).Requests), counts
		}
		with, without := cold(steps(20, ""), 7)
		slowWith, slowWithout := cold(slow, 3)
		twenty, counts := count(20)
		forty, _ := count(40)
		b.ReportMetric(with, "ms")
		b.ReportMetric(with/without, "x-without")
		b.ReportMetric(float64(forty-twenty)/20, "requests/step")
		b.ReportMetric(float64(twenty), "requests")
		b.ReportMetric(slowWith/slowWithout, "slow-x-without")
		b.Logf("\n%s", Format(counts))
	}
}

// middle is the median of times.
func middle(times []float64) float64 {
	i := 0
	return median(len(times), func(int) time.Duration {
		i++
		return time.Duration(times[i-1] * float64(time.Millisecond))
	})
}

// BenchmarkCacheBusy builds 20 steps with a cache in a registry that allows 20 requests a second, and answers others 429: steps take what they take
// with one that allows all, and the build what its pushes need at that rate.
func BenchmarkCacheBusy(b *testing.B) {
	x := newCacheBench(b, 4)
	build := func(name string) (step, whole float64) {
		m := &machine{TB: b, obx: x.obx, busybox: x.busybox, dir: x.dir}
		var times []float64
		step = median(3, func(int) time.Duration {
			m.store = filepath.Join(x.dir, "store"+x.number())
			start := time.Now()
			r := m.silent(20, 0, last(steps(19, "")), append(x.repo(name+x.number(), true), "--salt", x.number())...)
			times = append(times, float64(time.Since(start).Milliseconds()))
			if err := os.RemoveAll(m.store); err != nil {
				b.Fatal(err)
			}
			return r.finished
		})
		return step, middle(times)
	}
	for b.Loop() {
		x.proxy.SetRate(0)
		free, _ := build("free")
		x.proxy.SetRate(20)
		x.proxy.Counts()
		busy, whole := build("busy")
		b.ReportMetric(busy, "steps-ms")
		b.ReportMetric(busy/free, "x-free")
		b.ReportMetric(whole, "build-ms")
		b.ReportMetric(float64(Total(x.proxy.Counts()).Requests)/3, "requests")
	}
}

// BenchmarkCacheLarge builds 20,000 small files and two files of 1 GiB, one that cannot be compressed and one that can, cold and pushed (at most
// 1.25 times the time without a cache), and goes on from them on a fresh store. Floor of that: to decompress and untar the same layers, on both
// cores at once. obx itself stays below 200 MiB.
func BenchmarkCacheLarge(b *testing.B) {
	x := newCacheBench(b, 40)
	const spec = `((from busybox) (shell /bin/sh -c)
 (run (shell "mkdir /small; cd /small; head -c 58000000 /dev/urandom | od | awk '{f=\"f\" int(NR/180); print > f; if (NR%180==179) close(f)}'"))
 (run (shell "head -c 1073741824 /dev/urandom > /incompressible"))
 (run (shell "yes 'The quick brown fox jumps over the lazy dog 0123456789' | head -c 1073741824 > /compressible"))`
	for b.Loop() {
		settle := func() { command(b, "sync") } // what was written before is not for the next one to wait for
		settle()
		without := x.warm(spec+")", "--salt", x.number())
		settle()
		salt := []string{"--salt", x.number()}
		name := "big" + x.number()
		repo := x.repo(name, false)
		cold := x.warm(spec+")", append(repo, salt...)...)
		coldPeak := x.peak
		layout := filepath.Join(x.dir, "layout"+x.number())
		x.peak = 0
		settle()
		resume := x.fresh(spec+` (run (shell "ls / | wc -l")))`, append(append(repo, salt...), "--push", "never")...)
		peak := x.peak
		x.fresh(spec+")", append(append(repo, salt...), "--output", "type=oci,dest="+layout+"/,name=latest")...)
		_, layers := layerFiles(b, layout)
		var script strings.Builder
		for i, l := range layers[1:] {
			dir := filepath.Join(x.dir, fmt.Sprintf("floor%s-%d", x.number(), i))
			fmt.Fprintf(&script, "mkdir %[1]s && (zstd -dcq %[2]s | tar -x -C %[1]s) &\n", dir, filepath.Join(layout, "blobs/sha256", l.Digest.Encoded()))
		}
		script.WriteString("wait")
		var floor time.Duration
		if _, err := exec.LookPath("zstd"); err == nil {
			settle()
			start := time.Now()
			command(b, "sh", "-c", script.String())
			floor = time.Since(start)
			b.ReportMetric(floor.Seconds(), "resume-floor-s")
			b.ReportMetric(resume.Seconds()/floor.Seconds(), "resume-x-floor")
		}
		b.ReportMetric(cold.Seconds(), "s")
		b.ReportMetric(cold.Seconds()/without.Seconds(), "x-without")
		b.ReportMetric(resume.Seconds(), "resume-s")
		b.ReportMetric(float64(coldPeak)/(1<<20), "peak-MiB")
		b.ReportMetric(float64(peak)/(1<<20), "resume-peak-MiB")
	}
}

// BenchmarkCacheMachines has steps in virtual machines: what a trivial one pushes, in a container image and on a disk of Debian, and how long it takes
// on a fresh store to go on from eight of them. Floor of that: the same in containers, and for the disk the whole build without a cache.
func BenchmarkCacheMachines(b *testing.B) {
	x := newCacheBench(b, 16)
	disk, key := DebianDisk(b)
	machines := []string{"--executor", "qemu", "--qemu-accel", "tcg", "--qemu-kernel", Kernel(b, "amd64")}
	onDisk := append([]string{"--base", "debian=qcow2:" + disk, "--qemu-ssh-key", key, "--qemu-boot-time", "5m"}, machines...)
	debian := func(n int) string { return strings.Replace(steps(n, ""), "busybox", "debian", 1) }
	pushed := func(spec string, flags []string) (name string, bytes int64, took time.Duration) {
		name = "machines" + x.number()
		x.proxy.Counts()
		took = x.fresh(spec, append(flags, x.repo(name, true)...)...)
		return name, Total(x.proxy.Counts()).Sent, took
	}
	for b.Loop() {
		name, eight, _ := pushed(steps(8, ""), machines)
		_, four, _ := pushed(steps(4, ""), machines)
		resume := func(flags []string) float64 {
			return median(3, func(int) time.Duration {
				return x.fresh(last(steps(8, "")), append(flags, append(x.repo(name, false), "--push", "never")...)...)
			})
		}
		vm, container := resume(machines), resume(nil)

		diskName, diskTwo, whole := pushed(debian(2), onDisk)
		_, diskOne, _ := pushed(debian(1), onDisk)
		diskResume := x.fresh(last(debian(2)), append(onDisk, append(x.repo(diskName, false), "--push", "never")...)...)
		b.ReportMetric(float64(eight-four)/4, "pushed-bytes/step")
		b.ReportMetric(vm, "resume-ms")
		b.ReportMetric(vm/container, "resume-x-container")
		b.ReportMetric(float64(diskTwo-diskOne), "disk-pushed-bytes/step")
		b.ReportMetric(float64(diskResume.Milliseconds()), "disk-resume-ms")
		b.ReportMetric(diskResume.Seconds()/whole.Seconds(), "disk-resume-x-whole")
	}
}
