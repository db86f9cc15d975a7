package registry_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

// A spy is a Memory that tells and spoils requests.
type spy struct {
	*repo.Memory

	mu     sync.Mutex
	lines  []string
	fault  func(line string) error // before a request
	refuse string                  // the media type of configs that it does not take
	wrote  int64                   // bytes of manifests, and of blobs that no image lists as layers
}

func newSpy() *spy { return &spy{Memory: &repo.Memory{}} }

func (s *spy) see(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	s.mu.Lock()
	s.lines = append(s.lines, line)
	fault := s.fault
	s.mu.Unlock()
	if fault != nil {
		return fault(line)
	}
	return nil
}

// seen gives the requests so far, and forgets them.
func (s *spy) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.lines = nil }()
	return s.lines
}

func (s *spy) setFault(fault func(line string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

func (s *spy) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	if err := s.see("HEAD %s", ref); err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.Memory.Head(ctx, ref)
}

func (s *spy) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	if err := s.see("GET %s", ref); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return s.Memory.Manifest(ctx, ref)
}

func (s *spy) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := s.see("GET %s", desc.Digest); err != nil {
		return nil, err
	}
	return s.Memory.Blob(ctx, desc)
}

func (s *spy) HasBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := s.see("HEAD %s", desc.Digest); err != nil {
		return false, err
	}
	return s.Memory.HasBlob(ctx, desc)
}

func (s *spy) PutBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) error {
	if err := s.see("POST+PUT %s %s", desc.MediaType, desc.Digest); err != nil {
		return err
	}
	if !strings.Contains(desc.MediaType, "layer") {
		s.mu.Lock()
		s.wrote += desc.Size
		s.mu.Unlock()
	}
	return s.Memory.PutBlob(ctx, desc, from, open)
}

func (s *spy) PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error) {
	if err := s.see("PUT %s", tag); err != nil {
		return ocispec.Descriptor{}, err
	}
	if s.refuse != "" && strings.Contains(string(data), s.refuse) {
		return ocispec.Descriptor{}, fmt.Errorf("put manifest: %w", repo.ErrRefused)
	}
	s.mu.Lock()
	s.wrote += int64(len(data))
	s.mu.Unlock()
	return s.Memory.PutManifest(ctx, tag, mediaType, data)
}

func (s *spy) Delete(ctx context.Context, ref string) error {
	if err := s.see("DELETE %s", ref); err != nil {
		return err
	}
	return s.Memory.Delete(ctx, ref)
}

// A chain is a build of one stage: a base of one layer, then one layer a step.
type chain struct {
	t       testing.TB
	st      *cas.Store
	name    string
	results []*registry.Result // the base's, then each step's
}

func newChain(t testing.TB, st *cas.Store, name string) *chain {
	t.Helper()
	c := &chain{t: t, st: st, name: name}
	pre := fmt.Sprintf("(obx/1 base/1 (digest %s) (os linux) (arch amd64))", digest.FromString(name))
	r := c.result(pre)
	r.Layers, r.Base = []layers.Layer{c.layer(map[string]string{"base": name})}, 1
	r.BaseRef = "docker.io/library/busybox:latest"
	r.Config.History = []ocispec.History{{CreatedBy: "base"}}
	c.results = append(c.results, r)
	return c
}

func (c *chain) result(preimage string) *registry.Result {
	c.t.Helper()
	id, err := keys.Sum([]byte(preimage))
	if err != nil {
		c.t.Fatal(err)
	}
	r := &registry.Result{
		Key: id, Preimage: preimage, Platform: repotest.Linux("amd64"), Started: time.Now(), Took: 25 * time.Millisecond, Builder: "test",
	}
	r.Config.Platform = r.Platform
	r.Config.Config.Env = []string{"PATH=/bin"}
	return r
}

func (c *chain) layer(files map[string]string) layers.Layer {
	c.t.Helper()
	dir, err := os.MkdirTemp(c.st.TempDir(), "")
	if err != nil {
		c.t.Fatal(err)
	}
	old := time.Unix(1e9, 0)
	root := filepath.Join(dir, "fs")
	for name, text := range files {
		repotest.WriteFile(c.t, filepath.Join(root, name), []byte(text))
		if err := os.Chtimes(filepath.Join(root, name), old, old); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := os.Chtimes(root, old, old); err != nil {
		c.t.Fatal(err)
	}
	name, err := c.st.CommitLayer(dir, "")
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := layers.Pack(c.t.Context(), c.st, layers.Layer{Dir: name}, layers.Compression{})
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

// step adds a step that appends a line to a file, as `echo N >> /log` does.
func (c *chain) step(log string) *registry.Result {
	c.t.Helper()
	n := len(c.results)
	before := c.last()
	op := fmt.Sprintf("echo %d >> /log", n)
	r := c.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command %q))", before.Key, op))
	var text strings.Builder
	for i := range n {
		fmt.Fprintln(&text, i+1)
	}
	r.Layers = append(slices.Clone(before.Layers), c.layer(map[string]string{"log": c.name + text.String()}))
	r.Base, r.BaseRef = before.Base, before.BaseRef
	r.Config.History = append(slices.Clone(before.Config.History), ocispec.History{CreatedBy: op})
	s := registry.Step{Key: r.Key, Op: "/: (run (shell " + op + "))", Layers: len(r.Layers), Took: 30 * time.Millisecond}
	if log != "" {
		s.Log.Data = []byte(log)
	}
	r.Steps = append(slices.Clone(before.Steps), s)
	c.results = append(c.results, r)
	return r
}

func (c *chain) last() *registry.Result { return c.results[len(c.results)-1] }

// ids lists the keys of all steps and the base, deepest first.
func (c *chain) ids() (ids []keys.ID) {
	for _, r := range slices.Backward(c.results) {
		ids = append(ids, r.Key)
	}
	return ids
}

// A warning keeps what a Cache has told.
type warnings struct {
	mu   sync.Mutex
	told []string
}

func (w *warnings) warn(msg string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, msg)
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.told = nil }()
	return w.told
}

// machine is a Cache of a fresh store.
func machine(t testing.TB, repo repo.Repo) (*registry.Cache, *warnings) {
	t.Helper()
	w := &warnings{}
	return &registry.Cache{Repo: repo, Store: repotest.OpenStore(t), Warn: w.warn}, w
}

func push(t testing.TB, c *registry.Cache, rs ...*registry.Result) {
	t.Helper()
	for _, r := range rs {
		if _, err := c.Push(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

func find(t testing.TB, c *registry.Cache, ids ...keys.ID) *registry.Result {
	t.Helper()
	r, err := c.Find(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fetch unpacks a result, and gives the files of all its layers.
func fetch(t testing.TB, c *registry.Cache, r *registry.Result) map[string]string {
	t.Helper()
	ls, err := c.Fetch(t.Context(), r, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, l := range ls {
		root := c.Store.LayerPath(l.Dir)
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(root, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			files[e.Name()] = string(b)
		}
	}
	return files
}

func readLog(t testing.TB, c *registry.Cache, l registry.Log) string {
	t.Helper()
	r, err := c.OpenLog(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("requires root: layers keep owners")
	}
}

func TestPushAndResume(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, warnA := machine(t, repo)
	build := newChain(t, a.Store, "one")
	build.step("hello\n")
	build.step("")
	big := strings.Repeat("a long log, and not a random one\n", 1<<16) + "end\n"
	build.step(big)
	if r := find(t, a, build.ids()...); r != nil {
		t.Fatalf("found %s in an empty cache", r.Key)
	}
	push(t, a, build.results...)

	b, warnB := machine(t, repo)
	repo.seen()
	r := find(t, b, build.ids()...)
	if r == nil || r.Key != build.last().Key || r.Found != r.Key || r.Domain != "default" {
		t.Fatalf("found %+v, warned %q", r, warnB.take())
	}
	if lines := repo.seen(); len(lines) != 1 {
		t.Errorf("a full hit took %q", lines)
	}
	want := build.last()
	if r.Base != 1 || len(r.Layers) != 4 || r.Preimage != want.Preimage || r.Builder != "test" || r.Took != want.Took ||
		!r.Started.Equal(want.Started.Truncate(time.Second)) {
		t.Errorf("got %+v", r)
	}
	for i, s := range r.Steps {
		w := want.Steps[i]
		if s.Key != w.Key || s.Op != w.Op || s.Layers != w.Layers || s.Took != w.Took {
			t.Errorf("step %d is %+v, want %+v", i, s, w)
		}
	}
	if got := readLog(t, b, r.Steps[0].Log); got != "hello\n" {
		t.Errorf("log 1 is %q", got)
	}
	if got := readLog(t, b, r.Steps[1].Log); got != "" {
		t.Errorf("log 2 is %q", got)
	}
	if got := readLog(t, b, r.Steps[2].Log); got != big {
		t.Errorf("log 3 has %d bytes", len(got))
	}
	if lines := repo.seen(); len(lines) != 0 {
		t.Errorf("logs took %q", lines) // the big one packs well
	}
	if files := fetch(t, b, r); files["log"] != "one1\n2\n3\n" || files["base"] != "one" {
		t.Errorf("got the files %q", files)
	}
	if lines := repo.seen(); len(lines) != 3 { // config, the base's layer, a look at the tag of the image: its own layers are small
		t.Errorf("fetching took %q", lines)
	}
	if len(r.Config.Config.Env) != 1 || len(r.Config.History) != 4 {
		t.Errorf("the config is %+v", r.Config)
	}
	fetch(t, b, r)
	if lines := repo.seen(); len(lines) != 0 {
		t.Errorf("fetching again took %q", lines)
	}

	// Only the base and the first step are there: what is above misses.
	c, _ := machine(t, repo)
	next := *build
	next.results = slices.Clone(build.results[:3])
	next.step("").Key[0]++
	if r := find(t, c, next.ids()...); r == nil || r.Key != build.results[2].Key {
		t.Errorf("found %+v", r)
	}
	if w := slices.Concat(warnA.take(), warnB.take()); len(w) > 0 {
		t.Errorf("warned %q", w)
	}
}

func TestRequestsOfAPush(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	c, _ := machine(t, repo)
	build := newChain(t, c.Store, "one")
	for range 3 {
		build.step("")
	}
	find(t, c, build.ids()...)
	push(t, c, build.results[:3]...)
	repo.Requests()
	repo.seen()
	push(t, c, build.last())
	if n := repo.Requests(); n > 8 {
		t.Errorf("a step took %d requests: %q", n, repo.seen())
	}
	push(t, c, build.last())
	if n := repo.Requests(); n != 0 {
		t.Errorf("pushing it again took %d requests", n)
	}
}

// pushSteps pushes a build of n steps as it goes along, and gives the bytes of metadata.
func pushSteps(t testing.TB, n int, log func(i int) string) (repo *spy, c *registry.Cache, build *chain) {
	t.Helper()
	repo = newSpy()
	c, _ = machine(t, repo)
	build = newChain(t, c.Store, "many")
	push(t, c, build.last())
	for i := range n {
		push(t, c, build.step(log(i)))
	}
	return repo, c, build
}

func TestManySteps(t *testing.T) {
	needRoot(t)
	t.Parallel()
	repo, _, build := pushSteps(t, 400, func(int) string { return "" })
	if repo.wrote > 40<<20 {
		t.Errorf("%d bytes of metadata", repo.wrote)
	}
	t.Logf("%d bytes of metadata", repo.wrote)
	for _, r := range build.results {
		_, b, err := repo.Manifest(t.Context(), r.Key.String())
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(b), "application/vnd.oci.image.layer"); n > 120 {
			t.Fatalf("%d layers", n)
		}
	}
	b, warned := machine(t, repo)
	r := find(t, b, build.ids()...)
	if r == nil || r.Key != build.last().Key {
		t.Fatalf("found %+v, warned %q", r, warned.take())
	}
	// 12 ranges of 32, and 16.
	if len(r.Layers) != 1+12+16 {
		t.Errorf("it has %d layers", len(r.Layers))
	}
	for i, want := range map[int]int{0: -1, 30: -1, 31: 2, 32: -1, 63: 3, 383: 13, 384: 14, 399: 29} {
		if got := r.Steps[i].Layers; got != want {
			t.Errorf("step %d has %d layers, want %d", i+1, got, want)
		}
	}
	if files := fetch(t, b, r); !strings.HasSuffix(files["log"], "399\n400\n") || files["base"] != "many" {
		t.Errorf("got the files %q", files)
	}
	if n := len(r.Config.History); n != 401 {
		t.Errorf("%d entries of history", n)
	}

	// Who goes on from there merges the same ranges.
	more := &chain{t: t, st: b.Store, name: "many", results: slices.Clone(build.results)}
	more.results[400] = r
	r.BaseRef = build.last().BaseRef
	first := *more.step("")
	push(t, b, &first)
	again, _ := machine(t, repo)
	got := find(t, again, first.Key)
	if got == nil || len(got.Layers) != 1+12+17 {
		t.Errorf("found %+v", got)
	}
}

func TestGoneIsAMiss(t *testing.T) {
	needRoot(t)
	to := newSpy()
	a, _ := machine(t, to)
	build := newChain(t, a.Store, "one")
	build.step("one\n")
	build.step("two\n")
	push(t, a, build.results...)

	// What a resume asks for vanishes, each in turn.
	var lines []string
	for k := 0; ; k++ {
		b, warned := machine(t, to)
		var mu sync.Mutex
		gone := ""
		n := 0
		to.setFault(func(line string) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; n == k || line == gone {
				gone = line
				return fmt.Errorf("%s: %w", line, repo.ErrNotFound)
			}
			return nil
		})
		for range 3 { // each loses at most one more
			r := find(t, b, build.ids()...)
			if r == nil {
				break
			}
			ls, err := b.Fetch(t.Context(), r, true, nil)
			if err == nil && len(ls) == len(r.Layers) {
				break
			}
			if !errors.Is(err, registry.ErrGone) {
				t.Fatalf("%s vanished: %v", gone, err)
			}
		}
		to.setFault(nil)
		if k > 0 && gone == "" {
			break
		}
		told := warned.take()
		if len(told) > 2 {
			t.Errorf("%s vanished: warned %q", gone, told)
		}
		lines = append(lines, gone)

		// Building again heals.
		redo := newChain(t, b.Store, "one")
		redo.step("one\n")
		redo.step("two\n")
		push(t, b, redo.results...)
		c, warned := machine(t, to)
		r := find(t, c, build.ids()...)
		if r == nil || r.Key != build.last().Key {
			t.Fatalf("%s vanished: found %+v after it was built again, warned %q", gone, r, warned.take())
		}
		fetch(t, c, r)
	}
	if len(lines) < 5 {
		t.Errorf("a resume made only the requests %q", lines)
	}
}

// A layer that cannot be unpacked here is no reason to fail: its result is a miss, and what was made here replaces it.
func TestLayerThatCannotBeMade(t *testing.T) {
	needRoot(t)
	to := newSpy()
	a, _ := machine(t, to)
	build := newChain(t, a.Store, "one")
	good := build.step("1\n")
	bad := *build.step("2\n")
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	err := tw.WriteHeader(&tar.Header{Name: strings.Repeat("n", 300), Mode: 0o644, Format: tar.FormatPAX})
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := a.Store.PutBlob(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	bad.Layers = append(slices.Clone(good.Layers), layers.Layer{
		Blob: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(b.Len())}, DiffID: d, Size: int64(b.Len()),
	})
	push(t, a, good, &bad)

	c, warned := machine(t, to)
	r := find(t, c, build.ids()...)
	if r == nil || r.Key != bad.Key {
		t.Fatalf("found %+v", r)
	}
	if _, err := c.Fetch(t.Context(), r, true, nil); !errors.Is(err, registry.ErrGone) {
		t.Errorf("Fetch gives %v", err)
	}
	if r := find(t, c, build.ids()...); r == nil || r.Key != good.Key {
		t.Errorf("then found %+v", r)
	}
	if w := warned.take(); len(w) != 1 {
		t.Errorf("warned %q", w)
	}
	redo := newChain(t, c.Store, "one")
	redo.step("1\n")
	push(t, c, redo.step("2\n"))
	last, _ := machine(t, to)
	fetch(t, last, find(t, last, build.ids()...))
}

// Who finds bytes wrong sends them again, though the registry says that it has them.
func TestCorruptBlobsAreReplaced(t *testing.T) {
	needRoot(t)
	to := newSpy()
	a, _ := machine(t, to)
	noise := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	build := newChain(t, a.Store, hex.EncodeToString(noise[:4<<10])) // its layers are too large for records
	push(t, a, build.step("1\n"))
	push(t, a, build.step(string(noise)))
	last := build.last()
	log := find(t, a, last.Key).Steps[1].Log.Desc
	for _, desc := range []ocispec.Descriptor{last.Layers[0].Blob, last.Layers[2].Blob, log} {
		repotest.Corrupt(t, to.Memory, desc)
		d := desc.Digest
		b, _ := machine(t, to)
		r := find(t, b, last.Key)
		var err error
		if d == log.Digest {
			_, err = b.OpenLog(t.Context(), r.Steps[1].Log)
		} else {
			_, err = b.Fetch(t.Context(), r, true, nil)
		}
		if !errors.Is(err, registry.ErrGone) {
			t.Fatalf("read %s, %v", d, err)
		}
		if r := find(t, b, last.Key); r != nil {
			t.Error("what is broken is found again")
		}
		b.Store = a.Store
		push(t, b, last)
		c, warned := machine(t, to)
		if r := find(t, c, last.Key); r == nil || readLog(t, c, r.Steps[1].Log) != string(noise) {
			t.Fatalf("found %+v, warned %q", r, warned.take())
		} else {
			fetch(t, c, r)
		}
	}
}

func TestDomains(t *testing.T) {
	needRoot(t)
	repo := &repo.Memory{}
	a, _ := machine(t, repo)
	build := newChain(t, a.Store, "one")
	one, two := build.step("1\n"), build.step("2\n")
	push(t, a, one)
	pr, _ := machine(t, repo)
	pr.Store, pr.Domains = a.Store, []string{"pr-7", "default"}
	if r := find(t, pr, two.Key, one.Key); r == nil || r.Key != one.Key || r.Domain != "default" {
		t.Errorf("found %+v in the parent domain", r)
	}
	push(t, pr, two)
	if r := find(t, pr, two.Key, one.Key); r == nil || r.Key != two.Key || r.Domain != "pr-7" {
		t.Errorf("found %+v in its own domain", r)
	}
	b, _ := machine(t, repo)
	if r := find(t, b, two.Key, one.Key); r == nil || r.Key != one.Key {
		t.Errorf("a result of pr-7 is seen elsewhere: %+v", r)
	}
	// What is not read does not keep a domain from having its own.
	push(t, b, &registry.Result{Key: two.Key, Preimage: two.Preimage, Platform: two.Platform, Exit: 1})
	if r := find(t, pr, two.Key); r == nil || r.Exit != 0 {
		t.Errorf("found %+v", r)
	}
}

func TestAlias(t *testing.T) {
	needRoot(t)
	to := newSpy()
	a, _ := machine(t, to)
	build := newChain(t, a.Store, "one")
	r := build.step("1\n")
	input := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command input))", r.Key))
	alias := &registry.Result{Key: input.Key, Alias: r.Key, Preimage: input.Preimage, Platform: r.Platform}
	push(t, a, r, alias)

	b, warned := machine(t, to)
	to.Requests()
	got := find(t, b, input.Key)
	if got == nil || got.Key != r.Key || got.Found != input.Key || to.Requests() != 2 {
		t.Fatalf("found %+v, warned %q", got, warned.take())
	}
	fetch(t, b, got)
	_, image, err := to.Manifest(t.Context(), input.Key.String())
	if !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("an alias has the image %s, %v", image, err)
	}
	// An alias of nothing, and one of an alias, lead nowhere.
	second := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command again))", r.Key))
	third := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command nothing))", r.Key))
	push(t, a, &registry.Result{Key: second.Key, Alias: input.Key, Preimage: second.Preimage, Platform: r.Platform},
		&registry.Result{Key: third.Key, Alias: keys.ID{1}, Preimage: third.Preimage, Platform: r.Platform})
	for _, id := range []keys.ID{second.Key, third.Key} {
		if got := find(t, b, id); got != nil {
			t.Errorf("%s leads to %s", id, got.Key)
		}
	}
	push(t, b, &registry.Result{Key: third.Key, Alias: r.Key, Preimage: third.Preimage, Platform: r.Platform})
	if got := find(t, a, third.Key); got == nil || got.Key != r.Key {
		t.Errorf("an alias of nothing was not replaced: %+v", got)
	}
	if w := warned.take(); len(w) > 0 {
		t.Errorf("warned %q", w)
	}
}

func TestFailures(t *testing.T) {
	needRoot(t)
	to := newSpy()
	a, _ := machine(t, to)
	build := newChain(t, a.Store, "one")
	push(t, a, build.step("1\n"))
	ok := build.step("it works\n")
	failed := *ok
	failed.Exit, failed.Layers = 2, ok.Layers[:2]
	failed.Steps = slices.Clone(ok.Steps)
	failed.Steps[1].Log.Data = []byte("it fails\n")
	push(t, a, &failed)

	careless, warned := machine(t, to)
	if r := find(t, careless, ok.Key); r != nil {
		t.Errorf("a failure is found: %+v", r)
	}
	registry.SetClock(careless, func() time.Time { return failed.Started.Add(-time.Minute) }) // clocks differ
	if r := find(t, careless, ok.Key); r != nil {
		t.Errorf("a failure from the future is found: %+v", r)
	}
	b, warnB := machine(t, to)
	b.Failures = time.Hour
	r := find(t, b, ok.Key)
	if r == nil || r.Exit != 2 || len(r.Layers) != 0 || readLog(t, b, r.Steps[1].Log) != "it fails\n" {
		t.Fatalf("found %+v, warned %q", r, warnB.take())
	}
	if _, err := to.Head(t.Context(), ok.Key.String()); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("a failure has an image: %v", err)
	}
	if _, err := b.Fetch(t.Context(), r, true, nil); err == nil {
		t.Error("a failure can be fetched")
	}
	old, _ := machine(t, to)
	old.Failures = time.Hour
	registry.SetClock(old, func() time.Time { return time.Now().Add(2 * time.Hour) })
	if r := find(t, old, ok.Key); r != nil {
		t.Errorf("an old failure is found: %+v", r)
	}
	if w := warned.take(); len(w) > 0 {
		t.Errorf("warned %q", w)
	}
}

// A success that comes while a failure is pushed is never replaced by it.
func TestFailureGivesWay(t *testing.T) {
	needRoot(t)
	for name, test := range map[string]struct {
		when   string // the request of the failure's push, before which the success comes
		refuse bool   // to delete
		warns  int
		hit    bool // then the success is found, else the next push heals
	}{
		"while blobs are sent": {when: "POST+PUT application/vnd.obx.record", hit: true},
		"at the last moment":   {when: "PUT KEY.rec"},
		"and stays":            {when: "PUT KEY.rec", refuse: true, warns: 1},
	} {
		t.Run(name, func(t *testing.T) {
			repo := newSpy()
			a, warned := machine(t, repo)
			b, _ := machine(t, repo)
			ok := newChain(t, b.Store, "one").step("it works\n")
			key := ok.Key.String()
			repo.setFault(func(line string) error {
				if strings.HasPrefix(line, strings.Replace(test.when, "KEY", key, 1)) {
					repo.setFault(func(line string) error {
						if test.refuse && strings.HasPrefix(line, "DELETE") {
							return errors.New("deleting is disabled")
						}
						return nil
					})
					push(t, b, ok)
				}
				return nil
			})
			push(t, a, &registry.Result{Key: ok.Key, Preimage: ok.Preimage, Platform: ok.Platform, Exit: 1, Started: time.Now()})
			if w := warned.take(); len(w) != test.warns {
				t.Errorf("warned %q", w)
			}
			c, _ := machine(t, repo)
			c.Failures = time.Hour
			got := find(t, c, ok.Key)
			switch {
			case test.hit:
				if got == nil || got.Exit != 0 {
					t.Errorf("found %+v", got)
				}
			case test.refuse:
				if got == nil || got.Exit != 1 {
					t.Errorf("found %+v", got)
				}
			case got != nil:
				t.Errorf("found %+v", got)
			}
			again, _ := machine(t, repo)
			push(t, again, newChain(t, again.Store, "one").step("it works again\n"))
			d, _ := machine(t, repo)
			d.Failures = time.Hour
			if got := find(t, d, ok.Key); got == nil || got.Exit != 0 {
				t.Errorf("then found %+v", got)
			}
		})
	}
}

// A failure has an exit status that a program can give by itself.
func TestCleanFailures(t *testing.T) {
	needRoot(t)
	c, _ := machine(t, newSpy())
	r := newChain(t, c.Store, "one").result("(obx/1 base/1 (digest " + digest.FromString("x").String() + ") (os linux) (arch amd64))")
	for exit, want := range map[int]bool{1: true, 128: true, 129: false, 137: false, -1: false} {
		_, err := c.Push(t.Context(), &registry.Result{Key: r.Key, Preimage: r.Preimage, Platform: r.Platform, Exit: exit, Started: time.Now()})
		if (err == nil) != want {
			t.Errorf("exit status %d: %v", exit, err)
		}
	}
}

func TestFirstWriterWins(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	first := newChain(t, a.Store, "one")
	r := first.step("first\n")
	b, _ := machine(t, repo)
	second := newChain(t, b.Store, "one")
	s := second.step("second\n")
	find(t, a, r.Key)
	push(t, a, r)
	push(t, b, s)
	c, _ := machine(t, repo)
	if got := find(t, c, r.Key); readLog(t, c, got.Steps[0].Log) != "first\n" {
		t.Error("the second writer has won")
	}
	// A failure does not replace a success, not even if the success came after the miss.
	d, _ := machine(t, repo)
	second.step("")
	t2 := second.last()
	if find(t, d, t2.Key) != nil {
		t.Fatal("found")
	}
	push(t, b, t2)
	push(t, d, &registry.Result{Key: t2.Key, Preimage: t2.Preimage, Platform: t2.Platform, Exit: 1})
	if got := find(t, c, t2.Key); got == nil || got.Exit != 0 {
		t.Errorf("found %+v", got)
	}
	// But a success replaces a failure.
	t3 := second.step("")
	push(t, d, &registry.Result{Key: t3.Key, Preimage: t3.Preimage, Platform: t3.Platform, Exit: 1})
	push(t, b, t3)
	if got := find(t, c, t3.Key); got == nil || got.Exit != 0 {
		t.Errorf("found %+v", got)
	}
}

// Another writer's image comes between, then the registry collects what no tag names.
func TestRace(t *testing.T) {
	needRoot(t)
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprintf("slow=%v", slow), func(t *testing.T) {
			to := newSpy()
			a, _ := machine(t, to)
			b, _ := machine(t, to)
			first, second := newChain(t, a.Store, "one"), newChain(t, b.Store, "one")
			r := first.step("first\n")
			r.Layers[1] = first.layer(map[string]string{"log": "first"})
			s := second.step("second\n")
			for _, c := range []*registry.Cache{a, b} {
				find(t, c, r.Key)
			}
			if slow { // then the push looks again
				late := time.Now()
				registry.SetClock(a, func() time.Time { late = late.Add(6 * time.Second); return late })
			}
			tag := r.Key.String()
			to.setFault(func(line string) error {
				if line == "PUT "+tag+".rec" {
					to.setFault(nil)
					push(t, b, s) // PUT image A, image B, record B, record A
				}
				return nil
			})
			push(t, a, r)
			if _, err := to.CollectGarbage(t.Context(), 0); err != nil {
				t.Fatal(err)
			}

			c, _ := machine(t, to)
			got := find(t, c, r.Key)
			if log := readLog(t, c, got.Steps[0].Log); log != "first\n" {
				t.Fatalf("the log is %q", log)
			}
			_, err := c.Fetch(t.Context(), got, true, nil)
			if slow {
				if err != nil {
					t.Errorf("the image was not put again: %v", err)
				}
				return
			}
			if !errors.Is(err, registry.ErrGone) {
				t.Fatalf("fetched, %v", err)
			}
			// The next build heals, the one after hits.
			if got := find(t, c, r.Key); got != nil {
				t.Error("what is gone is found again")
			}
			third := newChain(t, c.Store, "one")
			push(t, c, third.results[0], third.step("third\n"))
			d, _ := machine(t, to)
			if files := fetch(t, d, find(t, d, r.Key)); files["log"] != "one1\n" {
				t.Errorf("got %q", files)
			}
		})
	}
}

func TestConcurrentPushes(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	c, _ := machine(t, repo)
	build := newChain(t, c.Store, "one")
	for i := range 20 {
		build.step(fmt.Sprintln(i))
	}
	var wg sync.WaitGroup
	for range 2 {
		for _, r := range build.results {
			wg.Go(func() {
				if _, err := c.Push(t.Context(), r); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	sent := make(map[string]int)
	for _, line := range repo.seen() {
		if strings.HasPrefix(line, "P") {
			sent[line]++
		}
	}
	for line, n := range sent {
		if n > 1 {
			t.Errorf("%d times %s", n, line)
		}
	}
	b, _ := machine(t, repo)
	if files := fetch(t, b, find(t, b, build.ids()...)); !strings.HasSuffix(files["log"], "20\n") {
		t.Errorf("got %q", files)
	}
}

func TestRefusedMediaTypes(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	repo.refuse = "application/vnd.obx"
	a, _ := machine(t, repo)
	a.Signer = signer(t, "ci")
	build := newChain(t, a.Store, "one")
	build.step("hello\n")
	push(t, a, build.results...)
	repo.seen()
	push(t, a, build.step("again\n"))
	if n := slices.IndexFunc(repo.seen(), func(s string) bool { return strings.Contains(s, "vnd.obx.record") }); n >= 0 {
		t.Error("what was refused is tried again")
	}
	_, m, err := repo.Manifest(t.Context(), build.last().Key.String()+".rec")
	if err != nil || strings.Contains(string(m), "vnd.obx") {
		t.Errorf("got %s, %v", m, err)
	}
	b, warned := machine(t, repo)
	b.Trust = trust(a.Signer)
	r := find(t, b, build.ids()...)
	if r == nil || r.Key != build.last().Key || readLog(t, b, r.Steps[0].Log) != "hello\n" {
		t.Fatalf("found %+v, warned %q", r, warned.take())
	}
	if files := fetch(t, b, r); files["log"] != "one1\n2\n" {
		t.Errorf("got %q", files)
	}
}

// The registry has lost what it was believed to have.
func TestUnknownBlobs(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	c, warned := machine(t, repo)
	build := newChain(t, c.Store, "one")
	push(t, c, build.step("hello\n"))
	for _, r := range build.results {
		for _, tag := range []string{r.Key.String(), r.Key.String() + ".rec"} {
			if err := repo.Delete(t.Context(), tag); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := repo.CollectGarbage(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	push(t, c, build.step("again\n"))
	b, _ := machine(t, repo)
	r := find(t, b, build.last().Key)
	if files := fetch(t, b, r); files["log"] != "one1\n2\n" || readLog(t, b, r.Steps[0].Log) != "hello\n" {
		t.Errorf("got %q", files)
	}
	if w := warned.take(); len(w) > 0 {
		t.Errorf("warned %q", w)
	}
}

func TestNoAnswer(t *testing.T) {
	needRoot(t)
	to := newSpy()
	a, _ := machine(t, to)
	build := newChain(t, a.Store, "one")
	push(t, a, build.step("hello\n"))
	to.setFault(func(string) error { return errors.New("connection refused") })
	b, warned := machine(t, to)
	b.Store = a.Store
	to.seen()
	for range 2 {
		if r := find(t, b, build.ids()...); r != nil {
			t.Errorf("found %+v", r)
		}
	}
	if lines := to.seen(); len(lines) != 2 {
		t.Errorf("a dead registry is asked %q", lines)
	}
	if w := warned.take(); len(w) != 1 || !strings.Contains(w[0], "connection refused") {
		t.Errorf("warned %q", w)
	}
	if _, err := b.Push(t.Context(), build.step("")); err == nil {
		t.Error("pushed to a dead registry")
	}
	to.setFault(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Find(ctx, build.ids()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	r := find(t, b, build.ids()...)
	fresh, _ := machine(t, to)
	if _, err := fresh.Fetch(ctx, r, true, nil); !errors.Is(err, context.Canceled) || errors.Is(err, registry.ErrGone) {
		t.Errorf("cancelled: %v", err)
	}
}

// Records that are there and cannot be read are not asked for one after the other.
func TestNoAnswerToRecords(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	build := newChain(t, a.Store, "one")
	for range 4 {
		build.step("")
	}
	push(t, a, build.results...)
	next := *build
	next.results = append(slices.Clone(build.results), build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command next))", build.last().Key)))
	ids := next.ids()
	repo.setFault(func(line string) error {
		if strings.HasPrefix(line, "GET ") && !strings.Contains(line, ids[0].String()) {
			return errors.New("status 500")
		}
		return nil
	})
	b, warned := machine(t, repo)
	repo.seen()
	if r := find(t, b, ids...); r != nil {
		t.Errorf("found %+v", r)
	}
	if lines := repo.seen(); len(lines) != 2 {
		t.Errorf("asked %q", lines)
	}
	if w := warned.take(); len(w) != 1 || !strings.Contains(w[0], "status 500") {
		t.Errorf("warned %q", w)
	}
}

// TestFindAsks tells what a look-up asks for: the last step alone, then the one before alone, then which of the others are there.
func TestFindAsks(t *testing.T) {
	needRoot(t)
	to := newSpy()
	a, _ := machine(t, to)
	build := newChain(t, a.Store, "one")
	for range 6 {
		build.step("")
	}
	push(t, a, build.results...)
	ids := build.ids()
	for name, c := range map[string]struct {
		last int // what of the chain is there
		asks int
	}{
		"the last":       {6, 1},
		"the one before": {5, 2},
		"another":        {3, 7 + 1},
	} {
		gone := ids[:len(ids)-1-c.last]
		to.setFault(func(line string) error {
			for _, id := range gone {
				if strings.Contains(line, id.String()) {
					return repo.ErrNotFound
				}
			}
			return nil
		})
		b, warned := machine(t, to)
		to.seen()
		r := find(t, b, ids...)
		if r == nil || r.Key != build.results[c.last].Key {
			t.Errorf("%s: found %+v, warned %q", name, r, warned.take())
		}
		if lines := to.seen(); len(lines) != c.asks {
			t.Errorf("%s: asked %q", name, lines)
		}
	}
}

func TestTouch(t *testing.T) {
	needRoot(t)
	to := newSpy()
	a, _ := machine(t, to)
	a.Signer = signer(t, "ci")
	build := newChain(t, a.Store, "one")
	r := build.step("hello\n")
	push(t, a, r)
	b, warned := machine(t, to)
	b.Trust = trust(a.Signer)
	got := find(t, b, r.Key)
	to.seen()
	b.Touch(t.Context(), got)
	if lines := to.seen(); len(lines) != 0 {
		t.Errorf("touching what is new took %q", lines)
	}
	registry.SetClock(b, func() time.Time { return time.Now().Add(25 * time.Hour) })
	b.Touch(t.Context(), got)
	if lines := to.seen(); len(lines) != 3 { // looks at both tags
		t.Errorf("touching took %q", lines)
	}
	again := find(t, b, r.Key)
	if again == nil || !bytes.Equal(again.Envelope, got.Envelope) {
		t.Fatalf("found %+v, warned %q", again, warned.take())
	}
	to.seen()
	b.Touch(t.Context(), again)
	b.Touch(t.Context(), got) // somebody has put it again since
	if lines := to.seen(); len(lines) != 1 {
		t.Errorf("touching twice took %q", lines)
	}
	to.setFault(func(line string) error {
		if strings.HasPrefix(line, "PUT") {
			return fmt.Errorf("%s: %w", line, repo.ErrReadOnly)
		}
		return nil
	})
	registry.SetClock(b, func() time.Time { return time.Now().Add(50 * time.Hour) })
	b.Touch(t.Context(), find(t, b, r.Key))
	if w := warned.take(); len(w) > 0 {
		t.Errorf("warned %q", w)
	}
}

// A base of many layers leaves so little room that ranges of ranges are merged soon.
func TestRangesOfRanges(t *testing.T) {
	needRoot(t)
	t.Parallel()
	repo := newSpy()
	c, _ := machine(t, repo)
	build := newChain(t, c.Store, "one")
	base := build.results[0]
	for i := range 103 {
		base.Layers = append(base.Layers, build.layer(map[string]string{fmt.Sprint("base", i): "x"}))
		base.Config.History = append(base.Config.History, ocispec.History{CreatedBy: "more"})
	}
	base.Base = len(base.Layers)
	push(t, c, base)
	for range 27 {
		push(t, c, build.step(""))
	}
	b, warned := machine(t, repo)
	r := find(t, b, build.ids()...)
	if r == nil || len(r.Layers) != 104+4 { // 16, 8, 2, 1
		t.Fatalf("found %+v, warned %q", r, warned.take())
	}
	for i, want := range map[int]int{0: -1, 14: -1, 15: 105, 22: -1, 23: 106, 24: -1, 25: 107, 26: 108} {
		if got := r.Steps[i].Layers; got != want {
			t.Errorf("step %d has %d layers, want %d", i+1, got, want)
		}
	}
	files := fetch(t, b, r)
	if !strings.HasSuffix(files["log"], "26\n27\n") || files["base102"] != "x" || len(r.Config.History) != 104+27 {
		t.Errorf("got %d files, the log %q, %d entries of history", len(files), files["log"], len(r.Config.History))
	}
	if found := problems(t, b); len(found) > 0 {
		t.Errorf("found %q", found)
	}

	// No room at all.
	for range 15 {
		base.Layers = append(base.Layers, base.Layers[0])
	}
	base.Base = len(base.Layers)
	full := newChain(t, c.Store, "full")
	full.results[0].Layers, full.results[0].Base = base.Layers, base.Base
	full.step("")
	full.step("")
	if _, err := c.Push(t.Context(), full.last()); err == nil || !strings.Contains(err.Error(), "120") {
		t.Errorf("pushed an image of 121 layers: %v", err)
	}
}

// Layers of a disk image, of which each has the next file of a chain, are none when they are merged.
func TestManyDisks(t *testing.T) {
	needRoot(t)
	t.Parallel()
	repo := newSpy()
	c, _ := machine(t, repo)
	build := newChain(t, c.Store, "disk")
	step := func() *registry.Result {
		r := build.step("")
		r.Layers[len(r.Layers)-1] = build.layer(map[string]string{fmt.Sprintf("disk/%03d.qcow2", len(r.Steps)): "x"})
		return r
	}
	for range 118 {
		step()
	}
	push(t, c, step())
	if _, err := c.Push(t.Context(), step()); err == nil || !strings.Contains(err.Error(), "no more than 120") {
		t.Errorf("pushed an image of 121 layers: %v", err)
	}
	b, warned := machine(t, repo)
	if r := find(t, b, build.ids()...); r == nil || len(r.Layers) != 120 || len(r.Steps) != 119 {
		t.Errorf("found %+v, warned %q", r, warned.take())
	}
}

// Bytes that the store has lost are packed again, where the registry has lost them, too.
func TestPackedAgain(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	build := newChain(t, a.Store, "one")
	push(t, a, build.step("1\n"))
	b, warned := machine(t, repo)
	ls, err := b.Fetch(t.Context(), find(t, b, build.last().Key), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls { // as prune may leave them
		if err := os.Remove(filepath.Join(b.Store.Dir(), "blobs", "sha256", l.Blob.Digest.Encoded())); err != nil {
			t.Fatal(err)
		}
	}
	empty := newSpy()
	next := &chain{t: t, st: b.Store, name: "one", results: slices.Clone(build.results)}
	next.last().Layers = ls
	c, _ := machine(t, empty)
	c.Store, c.Compression = b.Store, layers.Compression{Algorithm: "gzip"}
	next.last().Steps[0].Log = registry.Log{Data: []byte("1\n")}
	push(t, c, next.step(""))
	d, _ := machine(t, empty)
	if files := fetch(t, d, find(t, d, next.last().Key)); files["log"] != "one1\n2\n" || files["base"] != "one" {
		t.Errorf("got %q, warned %q", files, warned.take())
	}
}

// Whoever goes on from a result puts its image under its tag again.
func TestRestoreImage(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	build := newChain(t, a.Store, "one")
	build.step("1\n")
	build.step("2\n")
	push(t, a, build.results...)
	key, other := build.last().Key.String(), build.results[1].Key.String()
	want, err := repo.Head(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"gone": func() error { return repo.Delete(t.Context(), want.Digest.String()) },
		"another": func() error {
			_, b, err := repo.Manifest(t.Context(), other)
			if err == nil {
				_, err = repo.PutManifest(t.Context(), key, ocispec.MediaTypeImageManifest, b)
			}
			return err
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		b, warned := machine(t, repo)
		r := find(t, b, build.last().Key)
		b.Touch(t.Context(), r) // who only reads the record does not know
		fetch(t, b, r)
		b.Touch(t.Context(), r)
		if got, err := repo.Head(t.Context(), key); err != nil || got.Digest != want.Digest {
			t.Errorf("%s: the tag is %+v, %v", name, got, err)
		}
		if w := warned.take(); len(w) > 1 || (len(w) == 1) != (name == "gone") {
			t.Errorf("%s: warned %q", name, w)
		}
	}
}

// An envelope that is never given is broken: the key before it is found, and a push mends it.
func TestEnvelopeWithoutAnswer(t *testing.T) {
	needRoot(t)
	repo, a, build := pushSteps(t, 400, func(int) string { return "" })
	tag := build.last().Key.String() + ".rec"
	envelope := func() digest.Digest {
		t.Helper()
		_, b, err := repo.Memory.Manifest(t.Context(), tag)
		var m ocispec.Manifest
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		if err != nil {
			t.Fatal(err)
		}
		return m.Config.Digest
	}
	lost := envelope()
	repo.setFault(func(line string) error {
		if line == "GET "+lost.String() {
			return errors.New("500")
		}
		return nil
	})
	b, _ := machine(t, repo)
	b.Store = a.Store
	if r := find(t, b, build.ids()...); r == nil || r.Key != build.results[len(build.results)-2].Key {
		t.Fatal("not the one before it was found")
	}
	again := *build.last()
	again.Took += time.Second
	push(t, b, &again)
	if envelope() == lost {
		t.Error("it was not mended")
	}
	c, _ := machine(t, repo)
	if r := find(t, c, build.ids()...); r == nil || r.Key != build.last().Key {
		t.Error("it is not found again")
	}
}

// A build that found its beginning in one cache and goes on in another carries the logs over.
func TestLogsComeAlong(t *testing.T) {
	needRoot(t)
	near, far := newSpy(), newSpy()
	a, _ := machine(t, near)
	build := newChain(t, a.Store, "one")
	push(t, a, build.step("1\n"))
	long := strings.Repeat("x", 5<<20) + "\n"
	push(t, a, build.step(long))

	b, _ := machine(t, near)
	r := find(t, b, build.last().Key)
	ls, err := b.Fetch(t.Context(), r, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Layers = ls
	next := &chain{t: t, st: b.Store, name: "one", results: []*registry.Result{build.results[0], build.results[1], r}}
	c, _ := machine(t, far)
	c.Store = b.Store
	push(t, c, next.step("3\n"))
	d, _ := machine(t, far)
	got := find(t, d, next.last().Key)
	for i, want := range []string{"1\n", long, "3\n"} {
		if log := readLog(t, d, got.Steps[i].Log); log != want {
			t.Errorf("log %d has %d bytes", i, len(log))
		}
	}
	fetch(t, d, got)
}

// Keys are those of records, in the domains that are read.
func TestKeys(t *testing.T) {
	needRoot(t)
	t.Parallel()
	repo := &repo.Memory{}
	c, _ := machine(t, repo)
	build := newChain(t, c.Store, "keys")
	build.step("1\n")
	build.step("2\n")
	push(t, c, build.results...)
	other, _ := machine(t, repo)
	other.Domains, other.Store = []string{"pr-7"}, c.Store
	push(t, other, build.last())
	for _, x := range []struct {
		domains []string
		want    int
	}{{nil, len(build.results)}, {[]string{"pr-7"}, 1}, {[]string{"pr-7", "default"}, len(build.results)}, {[]string{"pr-8"}, 0}} {
		c := &registry.Cache{Repo: repo, Domains: x.domains}
		ids, err := c.Keys(t.Context())
		if err != nil || len(ids) != x.want || slices.ContainsFunc(ids, func(id keys.ID) bool { return !slices.Contains(build.ids(), id) }) {
			t.Errorf("%v: %v, %v", x.domains, ids, err)
		}
	}
}
