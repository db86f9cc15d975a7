package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// An ExecutorMaker makes what the suite Executor tests. It fails t, or skips it with a reason.
type ExecutorMaker struct {
	// New makes an executor on st. The suite closes it.
	New func(t testing.TB, st *cas.Store) executor.Executor

	// Sandbox says that a process is a real one, isolated and limited; else it is only a script of the few shell
	// commands that package fake documents, and half of the suite does not apply.
	Sandbox bool

	// Machine says that processes have a kernel of their own. With the host's network they have the host's reach, not its
	// interfaces. What others write into a shared cache they see when they begin.
	Machine bool

	// Unlimited says that processes have no limits of memory, processors and processes.
	Unlimited bool

	// Only names the subtests to run; nil runs all.
	Only []string
}

// Executor tests what package executor promises of every executor, each promise as a subtest.
func Executor(t *testing.T, m ExecutorMaker) {
	tests := commonTests()
	if m.Sandbox {
		tests = slices.Concat(tests, sandboxTests(), mountTests(), startTests())
	}
	shared := newRig(t, m)
	for _, test := range tests {
		if m.Only != nil && !slices.Contains(m.Only, test.name) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			if m.Unlimited && slices.Contains(limitTests, test.name) {
				t.Skip("processes have no such limits here")
			}
			t.Parallel()
			own := *shared
			own.domain = strings.ToLower(test.name)
			test.run(t, &own)
		})
	}
}

// limitTests are those of limits that control groups keep.
var limitTests = []string{"MemoryLimit", "ProcessLimit", "DefaultProcessLimit", "CPULimit", "Bombs"}

type executorTest struct {
	name string
	run  func(*testing.T, *rig)
}

func commonTests() []executorTest {
	return []executorTest{
		{"RunWritesFile", testRunWritesFile},
		{"PackAndLoad", testPackAndLoad},
		{"Whiteout", testWhiteout},
		{"OpaqueDirectory", testOpaqueDirectory},
		{"Unchanged", testUnchanged},
		{"FailureDropsChanges", testFailureDropsChanges},
		{"TwoRunsOneFreeze", testTwoRuns},
		{"Add", testAdd},
		{"ZeroLayersAreSkipped", testZeroLayers},
		{"NoLayers", testNoLayers},
		{"RepeatedLayer", testRepeatedLayer},
		{"ManyLayers", testManyLayers},
		{"Tree", testTree},
		{"TreeNeverFollowsLinks", testTreeLinks},
		{"ChangeOutlivesRoot", testChangeOutlivesRoot},
		{"ConcurrentRoots", testConcurrentRoots},
		{"ExitStatus", testExitStatus},
		{"Cancel", testCancel},
		{"Timeout", testTimeout},
		{"Closed", testClosed},
	}
}

// A rig is a store with a base layer, and an executor on it.
type rig struct {
	m      ExecutorMaker
	st     *cas.Store
	e      executor.Executor
	base   layers.Layer
	domain string // of caches
}

func newRig(t *testing.T, m ExecutorMaker) *rig {
	t.Helper()
	b := &rig{m: m}
	b.st = OpenStore(t)
	b.e = m.New(t, b.st)
	t.Cleanup(func() {
		if err := b.e.Close(); err != nil {
			t.Errorf("close the executor: %v", err)
		}
		Leftovers(t, b.st.Dir(), b.st.RunID())
	})
	if m.Sandbox {
		b.base = Busybox(t, b.st)
	} else {
		b.base = loadTar(t, b.st, tar.Header{Name: "bin/ls", Linkname: "x"}, tar.Header{Name: "tmp/", Typeflag: tar.TypeDir})
	}
	return b
}

// OpenStore opens a store that ends with the test.
func OpenStore(t testing.TB) *cas.Store {
	t.Helper()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return st
}

func (b *rig) open(t *testing.T, chain ...layers.Layer) executor.Root {
	t.Helper()
	r, err := b.e.Open(t.Context(), chain)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close a root: %v", err)
		}
	})
	return r
}

// script is a process that runs a few commands of the shell.
func script(s string) executor.Process {
	return executor.Process{
		Argv: []string{"/bin/sh", "-c", s}, Dir: "/", Env: []string{"PATH=/bin"}, Hostname: "builder",
		Limits: executor.Limits{Timeout: 2 * time.Minute},
	}
}

// try runs a process and returns what it printed.
func try(t *testing.T, r executor.Root, p executor.Process) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := r.Run(t.Context(), p, &out)
	return out.String(), err
}

// run runs a process that must succeed.
func run(t *testing.T, r executor.Root, p executor.Process) string {
	t.Helper()
	out, err := try(t, r, p)
	if err != nil {
		t.Fatalf("run %q: %v\n%s", p.Argv, err, out)
	}
	return out
}

// Freeze keeps what was changed in a root as a layer.
func Freeze(t testing.TB, r executor.Root) layers.Layer {
	t.Helper()
	c, err := r.Freeze(t.Context())
	if err != nil {
		t.Fatalf("freeze: %v", err)
	}
	l, err := c.Layer(t.Context())
	if err != nil {
		t.Fatalf("layer of a change: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatalf("close a change: %v", err)
	}
	return l
}

// step runs a script and freezes what it has done.
func step(t *testing.T, r executor.Root, s string) layers.Layer {
	t.Helper()
	run(t, r, script(s))
	return Freeze(t, r)
}

func files(t *testing.T, r executor.Root) layers.Tree {
	t.Helper()
	tree, err := r.Files(t.Context())
	if err != nil {
		t.Fatalf("files: %v", err)
	}
	return tree
}

// wantFile checks a file's content; "" means that it does not exist.
func wantFile(t *testing.T, r executor.Root, name, want string) {
	t.Helper()
	got, err := fs.ReadFile(files(t, r), name)
	if want == "" {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %q, %v; want that it does not exist", name, got, err)
		}
		return
	}
	if err != nil || string(got) != want {
		t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
	}
}

// contents lists a layer's entries as a tar names them, sorted.
func contents(t *testing.T, st *cas.Store, l layers.Layer) []string {
	t.Helper()
	if l.IsZero() {
		return nil
	}
	l, err := layers.Pack(t.Context(), st, l, layers.Compression{Algorithm: "none"})
	if err != nil {
		t.Fatalf("pack: %v", err)
	}
	f, err := st.Blob(l.Blob.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err != nil {
			break
		}
		if name := path.Clean(h.Name); name != "." {
			names = append(names, strings.TrimPrefix(name, "/"))
		}
	}
	slices.Sort(names)
	return names
}

func wantContents(t *testing.T, st *cas.Store, l layers.Layer, want ...string) {
	t.Helper()
	if got := contents(t, st, l); !slices.Equal(got, want) {
		t.Errorf("the layer has %q, want %q", got, want)
	}
}

func wantExit(t *testing.T, err error, want executor.ExitError) {
	t.Helper()
	var e *executor.ExitError
	if !errors.As(err, &e) {
		t.Errorf("got error %v, want %v", err, &want)
		return
	}
	if *e != want {
		t.Errorf("got %+v, want %+v", *e, want)
	}
}

// ---- base layers

// Busybox is the layer of a root file system of busybox, in a store.
func Busybox(t testing.TB, st *cas.Store) layers.Layer {
	t.Helper()
	raw, err := busyboxTar(nil)
	if err != nil {
		t.Fatalf("make a base image: %v", err)
	}
	return loadBytes(t, st, raw)
}

// WriteBusyboxLayout writes the same as an image, tagged latest, in an OCI layout directory.
func WriteBusyboxLayout(dir string) error {
	raw, err := busyboxTar(nil)
	if err != nil {
		return err
	}
	return writeLayout(dir, raw)
}

// WriteImageLayout writes an image of layers that are tars, base first, tagged latest, in an OCI layout directory. A layer that is nil is busybox.
func WriteImageLayout(dir string, layers ...[]byte) error {
	for i, raw := range layers {
		if raw == nil {
			var err error
			if layers[i], err = busyboxTar(nil); err != nil {
				return err
			}
		}
	}
	return writeLayout(dir, layers...)
}

// loadTar makes a layer of tar entries. A header without a type is a file with the content of its Linkname.
func loadTar(t testing.TB, st *cas.Store, entries ...tar.Header) layers.Layer {
	t.Helper()
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, h := range entries {
		var data string
		if h.Typeflag == 0 {
			h.Typeflag, data, h.Linkname = tar.TypeReg, h.Linkname, ""
			h.Size = int64(len(data))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return loadBytes(t, st, raw.Bytes())
}

// ChangeBytes is what a directory of changes is as a layer, not compressed.
func ChangeBytes(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := layers.WriteChange(t.Context(), &b, dir); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// DeepTree makes a directory with a file in so many others that no call takes its path. name is the file's.
func DeepTree(t testing.TB) (dir, name string) {
	t.Helper()
	data := bytes.Repeat([]byte("deep"), 5000)
	name = strings.Repeat(strings.Repeat("n", 255)+"/", 20) + "file"
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))})
	if err == nil {
		_, err = w.Write(data)
	}
	dir = filepath.Join(t.TempDir(), "deep")
	if err = errors.Join(err, w.Close()); err == nil {
		err = layers.ReadChange(t.Context(), &b, dir, layers.Limits{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, name
}

func loadBytes(t testing.TB, st *cas.Store, raw []byte) layers.Layer {
	t.Helper()
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip,
		Digest:    digest.FromBytes(packed.Bytes()),
		Size:      int64(packed.Len()),
	}
	// Not unpacked: whoever wants directories unpacks by itself.
	l, err := layers.Load(t.Context(), st, desc, digest.FromBytes(raw), &packed, layers.Bytes, layers.Limits{})
	if err != nil {
		t.Fatalf("load a layer: %v", err)
	}
	return l
}

// directoryLayer makes a layer directory with files of one content: much faster than a blob, which is synced.
func directoryLayer(t testing.TB, st *cas.Store, content string, names ...string) layers.Layer {
	t.Helper()
	dir, err := os.MkdirTemp(st.TempDir(), "layer-")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		name = filepath.Join(dir, "fs", name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name, err := st.CommitLayer(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return layers.Layer{Dir: name}
}

// ---- what holds for every executor

func testRunWritesFile(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	l := step(t, r, "echo one > /a")
	wantFile(t, r, "a", "one\n")
	wantContents(t, b.st, l, "a")
	if out := run(t, r, script("cat /a")); out != "one\n" {
		t.Errorf("the next step reads %q", out)
	}
	again := b.open(t, b.base, l)
	wantFile(t, again, "a", "one\n")
	if out := run(t, again, script("cat /a")); out != "one\n" {
		t.Errorf("another root reads %q", out)
	}
}

// testPackAndLoad takes a layer to another store and another executor.
func testPackAndLoad(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	l := step(t, r, "mkdir /d\necho one > /d/a\nrm /bin/ls")
	l, err := layers.Pack(t.Context(), b.st, l, layers.Compression{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := b.st.Blob(l.Blob.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other := newRig(t, b.m)
	there, err := layers.Load(t.Context(), other.st, l.Blob, l.DiffID, f, layers.Bytes, layers.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	r = other.open(t, other.base, there)
	wantFile(t, r, "d/a", "one\n")
	wantFile(t, r, "bin/ls", "")
	if out := run(t, r, script("cat /d/a")); out != "one\n" {
		t.Errorf("a step elsewhere reads %q", out)
	}
}

func testWhiteout(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	one := step(t, r, "mkdir /d\necho one > /d/a\necho two > /d/b")
	two := step(t, r, "rm /d/a")
	wantFile(t, r, "d/a", "")
	wantFile(t, r, "d/b", "two\n")
	wantContents(t, b.st, two, "d", "d/.wh.a")
	three := step(t, r, "rm -r /d")
	wantFile(t, r, "d/b", "")
	r = b.open(t, b.base, one, two, three)
	wantFile(t, r, "d/b", "")
	step(t, r, "mkdir /d\necho three > /d/c")
	wantFile(t, r, "d/b", "")
	wantFile(t, r, "d/c", "three\n")
}

func testOpaqueDirectory(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	one := step(t, r, "mkdir -p /d/e\necho one > /d/a\necho one > /d/e/a")
	two := step(t, r, "rm -r /d\nmkdir /d\necho two > /d/b")
	for _, r := range []executor.Root{r, b.open(t, b.base, one, two)} {
		wantFile(t, r, "d/a", "")
		wantFile(t, r, "d/e/a", "")
		wantFile(t, r, "d/b", "two\n")
	}
}

func testUnchanged(t *testing.T, b *rig) {
	// No directory of what a sandbox mounts on exists here, and times have nanoseconds.
	at := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	base := b.base
	if b.m.Sandbox {
		base = bareBusybox(t, b.st, at)
	}
	r := b.open(t, base)
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("before any step: %v", contents(t, b.st, l))
	}
	for range 2 {
		if l := step(t, r, "true"); !l.IsZero() {
			t.Errorf("a step that changes nothing gives a layer: %v", contents(t, b.st, l))
		}
	}
	if l := step(t, r, "echo x > /x"); l.IsZero() {
		t.Error("a step that changes something gives no layer")
	}
	if l := step(t, r, "true"); !l.IsZero() {
		t.Errorf("a step that changes nothing upon a change gives a layer: %v", contents(t, b.st, l))
	}
}

func testFailureDropsChanges(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	step(t, r, "echo x > /x")
	out, err := try(t, r, script("echo said\necho y > /y\nrm /x\nexit 3"))
	wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: 3})
	if out != "said\n" {
		t.Errorf("output of the failed step: %q", out)
	}
	wantFile(t, r, "x", "x\n")
	wantFile(t, r, "y", "")
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("a failed step gives a layer: %v", contents(t, b.st, l))
	}
	step(t, r, "echo z > /z")
	wantFile(t, r, "x", "x\n")
	wantFile(t, r, "z", "z\n")
}

func testTwoRuns(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	run(t, r, script("echo x > /x"))
	wantFile(t, r, "x", "x\n")
	run(t, r, script("cat /x\necho y > /y"))
	l := Freeze(t, r)
	wantContents(t, b.st, l, "x", "y")
	wantFile(t, r, "x", "x\n")
	wantFile(t, r, "y", "y\n")
}

func testAdd(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	step(t, r, "echo one > /a")
	if err := r.Add(t.Context(), loadTar(t, b.st, tar.Header{Name: "b", Linkname: "two\n"})); err != nil {
		t.Fatal(err)
	}
	wantFile(t, r, "b", "two\n")
	if out := run(t, r, script("cat /a\ncat /b\necho three > /c")); out != "one\ntwo\n" {
		t.Errorf("the next step reads %q", out)
	}
	if err := r.Add(t.Context(), loadTar(t, b.st, tar.Header{Name: "d", Linkname: "four\n"})); err == nil {
		t.Error("a layer can be added to what was not frozen")
	}
	wantContents(t, b.st, Freeze(t, r), "c")
	if err := r.Add(t.Context(), layers.Layer{}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, r, "a", "one\n")
}

func testZeroLayers(t *testing.T, b *rig) {
	r := b.open(t, layers.Layer{}, b.base, layers.Layer{})
	if out := run(t, r, script("echo here")); out != "here\n" {
		t.Errorf("got %q", out)
	}
}

func testNoLayers(t *testing.T, b *rig) {
	r := b.open(t)
	entries, err := files(t, r).ReadDir(".")
	if err != nil || len(entries) > 0 {
		t.Errorf("an empty root file system has %v, %v", entries, err)
	}
	if err := r.Add(t.Context(), b.base); err != nil {
		t.Fatal(err)
	}
	if out := run(t, r, script("echo here")); out != "here\n" {
		t.Errorf("got %q", out)
	}
}

// testRepeatedLayer has a layer twice in a chain, as when two steps have made the same change.
func testRepeatedLayer(t *testing.T, b *rig) {
	one := loadTar(t, b.st, tar.Header{Name: "d/a", Linkname: "one\n"}, tar.Header{Name: ".wh.x"})
	two := loadTar(t, b.st, tar.Header{Name: "d/.wh.a"}, tar.Header{Name: "d/b", Linkname: "two\n"}, tar.Header{Name: "x", Linkname: "two\n"})
	r := b.open(t, b.base, one, two)
	wantFile(t, r, "d/a", "")
	if err := r.Add(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	for _, r := range []executor.Root{r, b.open(t, b.base, one, two, one)} {
		wantFile(t, r, "x", "")
		if out := run(t, r, script("cat /d/a\ncat /d/b")); out != "one\ntwo\n" {
			t.Errorf("got %q", out)
		}
	}
}

// testForeignLayers has layers as others make them: with directories that they only imply, entries through links of the layers below, hard links to
// their files, and whiteouts of nothing.
func testForeignLayers(t *testing.T, b *rig) {
	dir := func(name string, mode int64, owner int) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, Uid: owner, Gid: owner}
	}
	link := func(typ byte, name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: typ, Linkname: target, Mode: 0o777}
	}
	one := loadTar(t, b.st, dir("home", 0o755, 0), dir("home/u", 0o700, 1000), dir("real", 0o711, 0), link(tar.TypeSymlink, "lib", "/real"),
		tar.Header{Name: "real/gone", Linkname: "gone\n"}, tar.Header{Name: "file", Linkname: "file\n"})
	two := loadTar(t, b.st, tar.Header{Name: "home/u/a", Linkname: "a\n"}, dir("only", 0o755, 0), tar.Header{Name: "only/.wh.ghost"}, tar.Header{Name: "tmp/x", Linkname: "x\n"})
	three := loadTar(t, b.st, tar.Header{Name: "lib/l", Linkname: "l\n"}, tar.Header{Name: "lib/.wh.gone"}, link(tar.TypeLink, "copy", "file"), tar.Header{Name: "none/.wh.x"})
	added := b.open(t, b.base, one)
	run(t, added, script("true"))
	Freeze(t, added)
	for _, l := range []layers.Layer{two, three} {
		if err := added.Add(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []executor.Root{added, b.open(t, b.base, one, two, three)} {
		got := run(t, r, script("stat -c '%n %a %u' /home/u /tmp /real /lib\nls -A /real /only\ncat /copy /lib/l /real/l\nls -d /none 2>/dev/null || rm -r /only"))
		if want := "/home/u 700 1000\n/tmp 1777 0\n/real 711 0\n/lib 777 0\n/only:\n\n/real:\nl\nfile\nl\nl\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// testManyLayers goes beyond overlayfs's limit of lower directories, 500.
func testManyLayers(t *testing.T, b *rig) {
	chain := []layers.Layer{b.base}
	numbers := []int{100, 600}
	if !b.m.Sandbox {
		numbers = []int{20}
	}
	for _, n := range numbers {
		for i := len(chain); i < n; i++ {
			names := []string{fmt.Sprintf("d%d/f", i%7), fmt.Sprintf("l%d", i)}
			if i%10 > 0 && b.m.Sandbox {
				chain = append(chain, directoryLayer(t, b.st, fmt.Sprintln(i), names...))
				continue
			}
			chain = append(chain, loadTar(t, b.st,
				tar.Header{Name: names[0], Linkname: fmt.Sprintln(i)},
				tar.Header{Name: names[1], Linkname: fmt.Sprintln(i)},
				tar.Header{Name: fmt.Sprintf(".wh.l%d", max(i/10*10-5, 0))},
			))
		}
		r := b.open(t, chain...)
		last := fmt.Sprintln(n - 1)
		if out := run(t, r, script(fmt.Sprintf("cat /d%d/f\necho new > /new", (n-1)%7))); out != last {
			t.Errorf("%d layers: got %q, want %q", n, out, last)
		}
		wantFile(t, r, "l1", "1\n")
		wantFile(t, r, "l5", "")
		wantFile(t, r, fmt.Sprintf("l%d", n-1), last)
		wantContents(t, b.st, Freeze(t, r), "new")
		wantFile(t, r, "new", "new\n")
		run(t, r, script("cat /new"))
	}
}

func testTree(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	step(t, r, "mkdir /d\nchmod 700 /d\necho one > /d/a\nchmod 640 /d/a")
	tree := files(t, r)
	info, err := tree.Lstat("d/a")
	if err != nil || info.Mode() != 0o640 || info.Size() != 4 {
		t.Errorf("lstat d/a: %v, %v", info, err)
	}
	if info, err = tree.Lstat("d"); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("lstat d: %v, %v", info, err)
	}
	entries, err := tree.ReadDir("d")
	if err != nil || len(entries) != 1 || entries[0].Name() != "a" {
		t.Errorf("readdir d: %v, %v", entries, err)
	}
	if _, err := tree.Lstat("d/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lstat d/b: %v", err)
	}
	if x, err := tree.Xattrs("d/a"); err != nil || len(x) > 0 {
		t.Errorf("xattrs of d/a: %v, %v", x, err)
	}
}

func testTreeLinks(t *testing.T, b *rig) {
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
	}
	l := loadTar(t, b.st, tar.Header{Name: "f", Linkname: "f\n"}, link("here", "f"), link("abs", "/etc/hostname"), link("up", "../../../../etc"), link("proc", "/proc/self/root"))
	r := b.open(t, b.base, l)
	tree := files(t, r)
	for _, name := range []string{"here", "abs", "up", "up/hostname", "proc", "proc/etc", "../etc/hostname", "/etc/hostname", "d/../f"} {
		if f, err := tree.Open(name); err == nil {
			f.Close()
			t.Errorf("open %s follows a link or leaves the root", name)
		}
	}
	if target, err := tree.ReadLink("up"); err != nil || target != "../../../../etc" {
		t.Errorf("readlink up: %q, %v", target, err)
	}
	if info, err := tree.Lstat("abs"); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("lstat abs: %v, %v", info, err)
	}
}

func testChangeOutlivesRoot(t *testing.T, b *rig) {
	r, err := b.e.Open(t.Context(), []layers.Layer{b.base})
	if err != nil {
		t.Fatal(err)
	}
	run(t, r, script("echo one > /a"))
	c, err := r.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	run(t, r, script("echo two > /a"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := c.Layer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, b.open(t, b.base, l), "a", "one\n")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func testConcurrentRoots(t *testing.T, b *rig) {
	done := make(chan error)
	const n = 8
	for i := range n {
		go func() {
			done <- func() error {
				r, err := b.e.Open(t.Context(), []layers.Layer{b.base})
				if err != nil {
					return err
				}
				defer r.Close()
				for j := range 2 {
					var out bytes.Buffer
					want := fmt.Sprintf("%d %d\n", i, j)
					p := script(fmt.Sprintf("echo %d %d > /f\nsleep 0.05\ncat /f", i, j))
					if err := r.Run(t.Context(), p, &out); err != nil {
						return err
					}
					if out.String() != want {
						return fmt.Errorf("got %q, want %q", out.String(), want)
					}
					if _, err := r.Freeze(t.Context()); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func testExitStatus(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	for _, code := range []int{1, 2, 42, 125, 126, 127, 137, 255} {
		out, err := try(t, r, script(fmt.Sprintf("echo before\nexit %d\necho after", code)))
		wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: code})
		if out != "before\n" {
			t.Errorf("exit %d: output %q", code, out)
		}
	}
}

func testCancel(t *testing.T, b *rig) {
	b = newRig(t, b.m) // of its own, so that nothing else runs
	r := b.open(t, b.base)
	for _, delay := range []time.Duration{0, 5 * time.Millisecond, 300 * time.Millisecond} {
		ctx, cancel := context.WithCancel(t.Context())
		stop := time.AfterFunc(delay, cancel)
		start := time.Now()
		var out bytes.Buffer
		err := r.Run(ctx, script("echo x > /x\nsleep 60"), &out)
		stop.Stop()
		cancel()
		var exit *executor.ExitError
		var bad *executor.StartError
		if !errors.Is(err, context.Canceled) || errors.As(err, &exit) || errors.As(err, &bad) {
			t.Errorf("cancelled after %v: got %v", delay, err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("cancelling after %v took %v", delay, took)
		}
		wantFile(t, r, "x", "")
		noSteps(t, b.st.RunID())
	}
	if out := run(t, r, script("echo still works")); out != "still works\n" {
		t.Errorf("after cancelling: %q", out)
	}
}

func testTimeout(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	p := script("echo before\nsleep 60")
	p.Limits.Timeout = 5 * time.Second // to start in, where the machine is busy or the processor emulated
	out, err := try(t, r, p)
	wantExit(t, err, executor.ExitError{Reason: executor.TimedOut, Limit: p.Limits.Timeout.String()})
	if out != "before\n" {
		t.Errorf("output before the timeout: %q", out)
	}
	p = script("exit 4")
	p.Limits.Timeout = time.Minute
	_, err = try(t, r, p)
	wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: 4})
}

func testClosed(t *testing.T, b *rig) {
	b = newRig(t, b.m)
	r := b.open(t, b.base)
	run(t, r, script("echo x > /x"))
	if err := b.e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, r, script("true")); err == nil {
		t.Error("a closed executor runs a process")
	}
}
