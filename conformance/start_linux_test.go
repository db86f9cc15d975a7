package conformance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// notAtStart lists packages, and with them what is below them, that a run has no use for when all its steps are cached. A package is initialised when the
// program starts, used or not, so none of them may be linked into obx; ARCHITECTURE.md says what to do instead. The figures are page faults of their own.
var notAtStart = map[string]string{
	"github.com/containerd/containerd":  "containerd's client and its API's messages, 60: they are in obx-containerd",
	"github.com/Microsoft/hcsshim":      "of Windows, and of the client of containerd",
	"google.golang.org/grpc":            "for containerd's client only, 30 with x/net/trace",
	"google.golang.org/protobuf":        "registers all messages that are linked in, 60",
	"go.opentelemetry.io":               "traces of containerd's client, which nobody reads, 10",
	"golang.org/x/net/trace":            "a web page of gRPC's, with html/template, 11",
	"github.com/spf13/cobra/doc":        "brings a Markdown parser, 57, and YAML, 10, for man pages: cmd/obx/man.go writes them",
	"github.com/distribution/reference": "compiles ten regular expressions, 111: registry/reference reads names",
	"encoding/gob":                      "builds tables of types, 36",
	"html/template":                     "10",
	"expvar":                            "starts with the web server's default handler",
	"net/http/pprof":                    "the same",
}

// mayAllocate lists the packages that may allocate more than heavyInit when they are initialised, and why they are there all the same.
var mayAllocate = map[string]string{
	"oras.land/oras-go/v2/registry":       "two regular expressions of the package that speaks to registries",
	"github.com/opencontainers/go-digest": "five regular expressions of the type that names all content",
	"github.com/klauspost/compress/flate": "tables of the compressor",
	"golang.org/x/crypto/ssh":             "primes, of what speaks to disk images of virtual machines",
}

const heavyInit = 12 << 10 // bytes

// TestStart runs a build that is cached, and looks at what packages do before main does anything.
func TestStart(t *testing.T) {
	m := newMachine(t)
	spec := steps(3, "")
	if _, _, err := m.counts(spec); err != nil {
		t.Fatal(err)
	}
	cmd := m.command(spec, "--progress", "quiet")
	cmd.Env = append(cmd.Env, "GODEBUG=inittrace=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("obx: %v\n%s", err, stderr.Bytes())
	}
	count, total := 0, 0
	denied := map[string][]string{}
	for line := range strings.Lines(stderr.String()) {
		// init PACKAGE @0.1 ms, 0.01 ms clock, 123 bytes, 4 allocs
		words := strings.Fields(line)
		if len(words) != 11 || words[0] != "init" {
			continue
		}
		name := words[1]
		bytes, err := strconv.Atoi(words[7])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		count, total = count+1, total+bytes
		for p := range notAtStart {
			if name == p || strings.HasPrefix(name, p+"/") {
				denied[p] = append(denied[p], name)
			}
		}
		if _, ok := mayAllocate[name]; bytes > heavyInit && !ok {
			t.Errorf("%s allocates %d bytes when it is initialised: see ARCHITECTURE.md (The start) for what to do", name, bytes)
		}
	}
	for p, names := range denied {
		t.Errorf("a cached run initialises %s (%s)", strings.Join(names, ", "), notAtStart[p])
	}
	if count < 50 { // the standard library's are more
		t.Fatalf("%d packages say that they are initialised:\n%s", count, stderr.Bytes())
	}
	t.Logf("%d packages are initialised, and allocate %d bytes", count, total)
}

// BenchmarkStart runs a build of 5 steps that are all cached: at most 4 times the floor, the start of a Go program that says hello. Both take turns.
func BenchmarkStart(b *testing.B) {
	x := newBench(b, 1)
	hello := buildHello(b)
	spec := filepath.Join(b.TempDir(), "spec")
	if err := os.WriteFile(spec, []byte(steps(5, "")), 0o644); err != nil {
		b.Fatal(err)
	}
	cached := []string{
		x.obx, "run", spec, b.TempDir(), "--store", filepath.Join(x.dir, "store"), "--base", "busybox=oci:" + x.busybox + ":latest", "--progress", "quiet",
	}
	start(b, cached)
	for b.Loop() {
		var run, floor []started
		for range 40 {
			floor = append(floor, start(b, []string{hello}))
			run = append(run, start(b, cached))
		}
		wall := func(s started) float64 { return s.wall.Seconds() * 1e3 }
		cpu := func(s started) float64 { return s.cpu.Seconds() * 1e3 }
		faults := func(s started) float64 { return float64(s.faults) }
		least, middle := figures(run, wall)
		floorLeast, floorMiddle := figures(floor, wall)
		b.ReportMetric(middle, "ms")
		b.ReportMetric(least, "min-ms")
		b.ReportMetric(floorMiddle, "floor-ms")
		b.ReportMetric(middle/floorMiddle, "x-floor")
		b.ReportMetric(least/floorLeast, "min-x-floor")
		_, middle = figures(run, cpu)
		_, floorMiddle = figures(floor, cpu)
		b.ReportMetric(middle/floorMiddle, "cpu-x-floor")
		_, middle = figures(run, faults)
		b.ReportMetric(middle, "faults")
	}
}

// A started is what a process took.
type started struct {
	wall, cpu time.Duration
	faults    int64 // pages that had to be mapped
}

func start(tb testing.TB, argv []string) started {
	tb.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		tb.Fatalf("%s: %v\n%s", argv[0], err, stderr.Bytes())
	}
	p := cmd.ProcessState
	return started{time.Since(begin), p.UserTime() + p.SystemTime(), p.SysUsage().(*syscall.Rusage).Minflt}
}

// figures gives the least and the middle one of some figure.
func figures(all []started, of func(started) float64) (least, middle float64) {
	var values []float64
	for _, s := range all {
		values = append(values, of(s))
	}
	slices.Sort(values)
	return values[0], values[len(values)/2]
}

// buildHello builds a Go program that does next to nothing.
func buildHello(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	source := filepath.Join(dir, "hello.go")
	if err := os.WriteFile(source, []byte("package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(\"hello\\n\") }\n"), 0o644); err != nil {
		tb.Fatal(err)
	}
	bin := filepath.Join(dir, "hello")
	if out, err := exec.Command("go", "build", "-o", bin, source).CombinedOutput(); err != nil {
		tb.Fatal(fmt.Errorf("build %s: %w\n%s", source, err, out))
	}
	return bin
}
