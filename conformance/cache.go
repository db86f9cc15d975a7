package conformance

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/fake"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/repo"
)

// Cache checks that a shared cache in a repository never breaks a build: whatever is missing or wrong in it, whatever it answers, the result of
// a build is right, and a later build finds the cache mended. fresh makes an empty repository for each test.
func Cache(t *testing.T, fresh func(t *testing.T) repo.Repo) {
	RequireRoot(t)
	tests := []struct {
		name string
		test func(c *cacheTest)
	}{
		{"healthy", cacheHealthy},
		{"two writers", cacheTwoWriters},
		{"record without image", cacheNoImage},
		{"image without record", cacheNoRecord},
		{"broken blobs", cacheBrokenBlobs},
		{"broken records", cacheBrokenRecords},
		{"wrong signature", cacheWrongSignature},
		{"moved records", cacheMovedRecords},
		{"collected", cacheCollected},
		{"read-only", cacheReadOnly},
		{"full", cacheFull},
		{"down", cacheDown},
		{"dies in a pull", cacheDiesInPull},
		{"dies in a push", cacheDiesInPush},
		{"misses one answer", cacheOneError},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.test(&cacheTest{T: t, repo: fresh(t)}) })
	}
}

// A cacheTest is a test on one repository.
type cacheTest struct {
	*testing.T
	repo repo.Repo
}

// cacheSpec has two stages, a step that changes nothing, a log that no record can hold, and one more step for each of the last words.
func cacheSpec(last ...string) string {
	s := `((build tools ((from scratch) (run (shell "echo make tools; echo tools > /tools"))))
 (from scratch)
 (copy (src noise) (dst /noise))
 (copy (from (build tools)) (src /tools) (dst /bin/tools))
 (run (shell "cat /noise"))
 (run (shell "echo one; mkdir /d; echo 1 > /d/one"))
`
	for _, w := range last {
		s += fmt.Sprintf(" (run (shell \"echo %[1]s; echo %[1]s > /%[1]s; rm /noise\"))\n", w)
	}
	return s + ")"
}

// cacheNoise is text that hardly gets smaller when compressed.
func cacheNoise() string {
	b := make([]byte, 120<<10)
	r := rand.New(rand.NewSource(1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return base64.StdEncoding.EncodeToString(b) + "\n"
}

func cacheLog(last ...string) string {
	s := "make tools\n" + cacheNoise() + "one\n"
	for _, w := range last {
		s += w + "\n"
	}
	return s
}

func cacheFiles(last ...string) map[string]string {
	m := map[string]string{"bin/tools": "tools\n", "d/one": "1\n", "noise": cacheNoise()}
	for _, w := range last {
		m[w] = w + "\n"
		delete(m, "noise")
	}
	return m
}

// A site is a machine that builds, with an empty store of its own.
type site struct {
	c       *cacheTest
	builder build.Builder
	cache   *registry.Cache
	exec    *fake.Executor

	mu       sync.Mutex
	warnings []string
}

// site makes one. change, if not nil, changes its cache before it is used.
func (c *cacheTest) site(repo repo.Repo, change func(*registry.Cache)) *site {
	c.Helper()
	st, err := cas.Open(memoryDir(c))
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() {
		if err := st.Close(); err != nil {
			c.Errorf("close the store: %v", err)
		}
	})
	exec := fake.New(st)
	s := &site{c: c, exec: exec}
	s.cache = &registry.Cache{Repo: repo, Store: st, Warn: s.warn}
	if change != nil {
		change(s.cache)
	}
	s.builder = build.Builder{
		Store: st, Executor: exec, Images: &images.Resolver{Store: st},
		Source:  fstest.MapFS{"noise": {Data: []byte(cacheNoise()), Mode: 0o644}},
		Domains: s.cache.Domains, Trust: s.cache.Trust, NeedFiles: true,
		Caches: []*registry.Cache{s.cache},
	}
	return s
}

// memoryDir is a directory in memory, where there is one: most of what a small build takes is waiting for the disk.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "obx-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (s *site) warn(msg string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, msg)
}

// A built is what a build has given.
type built struct {
	runs, hits int
	log        string
	files      map[string]string
	keys       []keys.ID // of all steps
	warnings   []string
}

// build builds a spec; that must succeed.
func (s *site) build(text string) *built {
	s.c.Helper()
	b, err := s.try(text)
	if err != nil {
		s.c.Fatalf("the build failed: %v (warnings: %q)", err, b.warnings)
	}
	return b
}

func (s *site) try(text string) (*built, error) {
	s.c.Helper()
	parsed, err := spec.Parse("spec", []byte(text))
	if err != nil {
		s.c.Fatal(err)
	}
	plan, err := keys.New(s.c.Context(), parsed, keys.Options{Platform: s.exec.Platform(), Context: s.builder.Source, Resolver: s.builder.Images})
	if err != nil {
		s.c.Fatal(err)
	}
	out := &built{files: map[string]string{}}
	logs := map[int]string{}
	b := s.builder
	b.Events = func(e build.Event) {
		switch e.Kind {
		case build.Output:
			logs[e.Step.Number] += string(e.Data)
		case build.Warned:
			s.warn(e.Message)
		}
	}
	rep, err := b.Run(s.c.Context(), plan)
	if err == nil {
		var files bytes.Buffer
		if _, err = b.Write(s.c.Context(), plan, rep, build.OutputSpec{Type: "tar", Dest: "-"}, &files); err == nil {
			err = untar(&files, out.files)
		}
	}
	out.runs, out.hits = rep.Runs, rep.Hits
	for _, n := range slices.Sorted(maps.Keys(logs)) {
		out.log += logs[n]
	}
	for _, step := range plan.Steps {
		out.keys = append(out.keys, step.Key)
	}
	s.mu.Lock()
	out.warnings, s.warnings = s.warnings, nil
	s.mu.Unlock()
	return out, err
}

func untar(r io.Reader, files map[string]string) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			b, err := io.ReadAll(tr)
			if err != nil {
				return err
			}
			files[strings.TrimPrefix(h.Name, "./")] = string(b)
		}
	}
}

// right checks the result of a build of cacheSpec with these words.
func (c *cacheTest) right(what string, b *built, last ...string) {
	c.Helper()
	if b.log != cacheLog(last...) {
		c.Errorf("%s: the log is wrong: %q (%d bytes; warnings: %q)", what, b.log[max(0, len(b.log)-40):], len(b.log), b.warnings)
	}
	if want := cacheFiles(last...); !maps.Equal(b.files, want) {
		c.Errorf("%s: the files are %q, want %q", what, slices.Sorted(maps.Keys(b.files)), slices.Sorted(maps.Keys(want)))
	}
}

// hit checks that new machines have nothing to run and nothing to warn of.
func (c *cacheTest) hit(what string, repo repo.Repo, change func(*registry.Cache), last ...string) {
	c.Helper()
	b := c.site(repo, change).build(cacheSpec(last...))
	c.right(what, b, last...)
	if b.runs > 0 || len(b.warnings) > 0 {
		c.Errorf("%s: %d steps ran, %d were found; warnings: %q", what, b.runs, b.hits, b.warnings)
	}
}

// fill builds on a new machine, and pushes.
func (c *cacheTest) fill(repo repo.Repo, change func(*registry.Cache), last ...string) *built {
	c.Helper()
	b := c.site(repo, change).build(cacheSpec(last...))
	c.right("fill", b, last...)
	if len(b.warnings) > 0 {
		c.Errorf("fill: warnings: %q", b.warnings)
	}
	return b
}

// mends checks that a build warns, that its result is right, and that the next finds all.
func (c *cacheTest) mends(what string, repo repo.Repo, change func(*registry.Cache), last ...string) {
	c.Helper()
	b := c.site(repo, change).build(cacheSpec(last...))
	c.right(what, b, last...)
	if len(b.warnings) == 0 {
		c.Errorf("%s: nobody warned", what)
	}
	c.hit(what+", after that", repo, change, last...)
}

// record gives the tag and the manifest of the record of a result, through its alias.
func (c *cacheTest) record(id keys.ID) (tag string, m ocispec.Manifest, p payload) {
	c.Helper()
	tag = id.String() + ".rec"
	_, b, err := c.repo.Manifest(c.Context(), tag)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	var e struct{ Payload []byte }
	if err == nil {
		err = json.Unmarshal(m.Config.Data, &e)
	}
	if err == nil {
		err = json.Unmarshal(e.Payload, &p)
	}
	if err != nil {
		c.Fatal(err)
	}
	if p.Predicate.Alias != nil {
		return c.record(*p.Predicate.Alias)
	}
	return tag, m, p
}

// A payload is the part of a record's statement that these tests use.
type payload struct {
	Subject []struct {
		Digest struct{ SHA256 string }
	}
	Predicate struct {
		Key    keys.ID
		Alias  *keys.ID
		Config [2]any
		Layers [][]any
		Logs   [][]any
	}
}

// digestOf reads a digest as records have them.
func digestOf(v any) digest.Digest {
	s, _ := v.(string)
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		panic(err) // the repository has what obx wrote
	}
	return digest.NewDigestFromBytes(digest.SHA256, b)
}

// A sickRepo is a repository with faults.
type sickRepo struct {
	repo.Repo

	mu        sync.Mutex
	blobs     map[digest.Digest]func([]byte) []byte // what has become of blobs; nil: nothing is left. Whoever puts one again, mends it
	manifests map[string]func([]byte) []byte        // the same, by tag
	calls     int
	fail      func(call int, method string) error // from the call on, counted from 1
}

func (r *sickRepo) begin(method string) error {
	r.mu.Lock()
	r.calls++
	n, fail := r.calls, r.fail
	r.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(n, method)
}

func (r *sickRepo) fault(d digest.Digest) (func([]byte) []byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.blobs[d]
	return f, ok
}

func (r *sickRepo) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	if err := r.begin("Head"); err != nil {
		return ocispec.Descriptor{}, err
	}
	return r.Repo.Head(ctx, ref)
}

func (r *sickRepo) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	if err := r.begin("Manifest"); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	desc, b, err := r.Repo.Manifest(ctx, ref)
	r.mu.Lock()
	f, ok := r.manifests[ref]
	r.mu.Unlock()
	if ok && err == nil {
		b = f(bytes.Clone(b))
		desc.Digest, desc.Size = digest.FromBytes(b), int64(len(b))
	}
	return desc, b, err
}

func (r *sickRepo) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := r.begin("Blob"); err != nil {
		return nil, err
	}
	f, ok := r.fault(desc.Digest)
	if ok && f == nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, repo.ErrNotFound)
	}
	rc, err := r.Repo.Blob(ctx, desc)
	if !ok || err != nil {
		return rc, err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(f(b))), nil
}

func (r *sickRepo) HasBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := r.begin("HasBlob"); err != nil {
		return false, err
	}
	if f, ok := r.fault(desc.Digest); ok && f == nil {
		return false, nil
	}
	return r.Repo.HasBlob(ctx, desc)
}

func (r *sickRepo) PutBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) error {
	if err := r.begin("PutBlob"); err != nil {
		return err
	}
	err := r.Repo.PutBlob(ctx, desc, from, open)
	if err == nil {
		r.mu.Lock()
		delete(r.blobs, desc.Digest)
		r.mu.Unlock()
	}
	return err
}

func (r *sickRepo) PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error) {
	if err := r.begin("PutManifest"); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := r.Repo.PutManifest(ctx, tag, mediaType, data)
	if err == nil {
		r.mu.Lock()
		delete(r.manifests, tag)
		r.mu.Unlock()
	}
	return desc, err
}

// ways are how bytes go bad, other than by being lost.
var ways = map[string]func([]byte) []byte{
	"truncated": func(b []byte) []byte { return b[:len(b)/2] },
	"empty":     func([]byte) []byte { return nil },
	"corrupted": func(b []byte) []byte { b[len(b)/2] ^= 0x20; return b },
	"oversized": func(b []byte) []byte { return append(b, make([]byte, 1000)...) },
}

func cacheHealthy(c *cacheTest) {
	first := c.fill(c.repo, nil, "two")
	if first.runs != 6 {
		c.Errorf("%d steps ran", first.runs)
	}
	c.hit("the same", c.repo, nil, "two")
	next := c.site(c.repo, nil).build(cacheSpec("other"))
	c.right("another end", next, "other")
	if next.runs != 1 || len(next.warnings) > 0 {
		c.Errorf("%d steps ran for another end; warnings: %q", next.runs, next.warnings)
	}
	c.hit("another end, after that", c.repo, nil, "other")
}

// Two builds at the same moment have different results of the same keys. Both are good.
func cacheTwoWriters(c *cacheTest) {
	const text = `((from scratch) (run (shell "echo WHO > /result")) (run (shell "echo WHO > /copy; cat /result; cat /copy")))`
	var wg sync.WaitGroup
	for i := range 4 {
		s := c.site(c.repo, nil)
		s.exec.Started = func(p executor.Process) { // so that the results of the same keys differ
			command := &p.Argv[len(p.Argv)-1]
			*command = strings.ReplaceAll(*command, "WHO", fmt.Sprint(i))
		}
		wg.Go(func() {
			for range 3 {
				b, err := s.try(text)
				if err != nil || len(b.warnings) > 0 || b.log != b.files["result"]+b.files["copy"] {
					c.Errorf("writer %d: %v, %q, %q, warnings: %q", i, err, b.files, b.log, b.warnings)
				}
			}
		})
	}
	wg.Wait()
	s := c.site(c.repo, nil)
	if b := s.build(text); b.runs > 0 || len(b.warnings) > 0 || b.log != b.files["result"]+b.files["copy"] {
		c.Errorf("a reader: %d steps ran, %q, warnings: %q", b.runs, b.files, b.warnings)
	}
}

// The image's manifest is not what a build needs.
func cacheNoImage(c *cacheTest) {
	b := c.fill(c.repo, nil, "two")
	tag, _, p := c.record(b.keys[len(b.keys)-1])
	if err := c.repo.Delete(c.Context(), "sha256:"+p.Subject[0].Digest.SHA256); err != nil {
		c.Fatal(err)
	}
	c.mends("without its image", c.repo, nil, "two")
	desc, err := c.repo.Head(c.Context(), strings.TrimSuffix(tag, ".rec"))
	if err != nil || desc.Digest.Encoded() != p.Subject[0].Digest.SHA256 {
		c.Errorf("the image is not put again: %+v, %v", desc, err)
	}
}

func cacheNoRecord(c *cacheTest) {
	b := c.fill(c.repo, nil, "two")
	tag, _, _ := c.record(b.keys[len(b.keys)-1])
	desc, err := c.repo.Head(c.Context(), tag)
	if err == nil {
		err = c.repo.Delete(c.Context(), desc.Digest.String())
	}
	if err != nil {
		c.Fatal(err)
	}
	again := c.site(c.repo, nil).build(cacheSpec("two"))
	c.right("without its record", again, "two")
	if again.runs != 1 {
		c.Errorf("%d steps ran, not the last alone", again.runs)
	}
	c.hit("after that", c.repo, nil, "two")
}

func cacheBrokenBlobs(c *cacheTest) {
	b := c.fill(c.repo, nil, "two")
	_, m, p := c.record(b.keys[len(b.keys)-1])
	targets := map[string]digest.Digest{
		"config":      digestOf(p.Predicate.Config[0]),
		"first layer": digestOf(p.Predicate.Layers[0][0]),
		"last layer":  digestOf(p.Predicate.Layers[len(p.Predicate.Layers)-1][0]),
	}
	for _, l := range m.Layers {
		if l.Data == nil {
			targets["log"] = l.Digest
		}
	}
	if targets["log"] == "" {
		c.Fatal("all logs are in the record")
	}
	how := maps.Clone(ways)
	how["missing"] = nil
	for what, d := range targets {
		for name, way := range how {
			if what != "last layer" && name != "missing" && name != "corrupted" {
				continue
			}
			sick := &sickRepo{Repo: c.repo, blobs: map[digest.Digest]func([]byte) []byte{d: way}}
			c.mends(name+" "+what, sick, nil, "two")
		}
	}
}

func cacheBrokenRecords(c *cacheTest) {
	b := c.fill(c.repo, nil, "two")
	how := maps.Clone(ways)
	how["an index"] = func([]byte) []byte {
		return []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	}
	how["without its envelope"] = func(b []byte) []byte { return changed(b, func(m map[string]any) { delete(m, "config") }) }
	how["with an envelope of another size"] = func(b []byte) []byte {
		return changed(b, func(m map[string]any) { m["config"].(map[string]any)["size"] = 1 })
	}
	tags := map[string]string{"record": "", "alias": b.keys[len(b.keys)-1].String() + ".rec"}
	tags["record"], _, _ = c.record(b.keys[len(b.keys)-1])
	for what, tag := range tags {
		for name, way := range how {
			if what == "alias" && name != "corrupted" {
				continue
			}
			sick := &sickRepo{Repo: c.repo, manifests: map[string]func([]byte) []byte{tag: way}}
			c.mends(what+" "+name, sick, nil, "two")
		}
	}
	// A record that lost its inlined parts has them as blobs.
	tag, _, _ := c.record(b.keys[len(b.keys)-1])
	bare := func(b []byte) []byte {
		return changed(b, func(m map[string]any) {
			delete(m["config"].(map[string]any), "data")
			for _, l := range m["layers"].([]any) {
				delete(l.(map[string]any), "data")
			}
		})
	}
	c.hit("record without its hints", &sickRepo{Repo: c.repo, manifests: map[string]func([]byte) []byte{tag: bare}}, nil, "two")
	wrong := func(b []byte) []byte {
		return changed(b, func(m map[string]any) {
			for _, l := range m["layers"].([]any) {
				l.(map[string]any)["data"] = []byte("these are other bytes")
			}
		})
	}
	c.hit("record with wrong hints", &sickRepo{Repo: c.repo, manifests: map[string]func([]byte) []byte{tag: wrong}}, nil, "two")
}

// changed changes a JSON object.
func changed(b []byte, change func(map[string]any)) []byte {
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		panic(err) // the repository has what obx wrote
	}
	change(m)
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func cacheWrongSignature(c *cacheTest) {
	mine, err := registry.GenerateSigner("mine")
	if err != nil {
		c.Fatal(err)
	}
	other, err := registry.GenerateSigner("mine") // of the same name
	if err != nil {
		c.Fatal(err)
	}
	trusting := func(cache *registry.Cache) { cache.Trust, cache.Signer = []registry.PublicKey{mine.Public()}, mine }
	c.fill(c.repo, func(cache *registry.Cache) { cache.Signer = other }, "two")
	c.mends("signed by another", c.repo, trusting, "two")

	// A signed record whose signature has gone bad.
	b := c.site(c.repo, trusting).build(cacheSpec("two"))
	tag, m, _ := c.record(b.keys[len(b.keys)-1])
	envelope := changed(m.Config.Data, func(e map[string]any) {
		e["signatures"].([]any)[0].(map[string]any)["sig"] = base64.StdEncoding.EncodeToString(make([]byte, 64))
	})
	c.forge(tag, m, envelope)
	c.mends("bad signature", c.repo, trusting, "two")

	c.forge(tag, m, changed(m.Config.Data, func(e map[string]any) { e["signatures"] = []any{} }))
	c.mends("no signature", c.repo, trusting, "two")
}

// forge puts a record with another envelope.
func (c *cacheTest) forge(tag string, m ocispec.Manifest, envelope []byte) {
	c.Helper()
	m.Config = PutBytes(c, c.repo, m.Config.MediaType, envelope)
	m.Config.Data = envelope
	b, err := json.Marshal(m)
	if err == nil {
		_, err = c.repo.PutManifest(c.Context(), tag, ocispec.MediaTypeImageManifest, b)
	}
	if err != nil {
		c.Fatal(err)
	}
}

// A good record under another tag is none, signed or not.
func cacheMovedRecords(c *cacheTest) {
	signer, err := registry.GenerateSigner("mine")
	if err != nil {
		c.Fatal(err)
	}
	signed := func(cache *registry.Cache) { cache.Trust, cache.Signer = []registry.PublicKey{signer.Public()}, signer }
	bad := c.fill(c.repo, signed, "bad")
	good := c.fill(c.repo, signed, "good")
	from, _, _ := c.record(bad.keys[len(bad.keys)-1])
	to, _, _ := c.record(good.keys[len(good.keys)-1])
	move := func(to string) {
		c.Helper()
		_, b, err := c.repo.Manifest(c.Context(), from)
		if err == nil {
			_, err = c.repo.PutManifest(c.Context(), to, ocispec.MediaTypeImageManifest, b)
		}
		if err != nil {
			c.Fatal(err)
		}
	}
	move(to)
	c.mends("moved to another key", c.repo, signed, "good")

	in := func(domain string) func(*registry.Cache) {
		return func(cache *registry.Cache) {
			signed(cache)
			cache.Domains = []string{domain}
		}
	}
	c.fill(c.repo, in("other"), "good")
	from = to
	move(strings.TrimSuffix(to, ".rec") + ".other.rec")
	c.mends("moved to another domain", c.repo, in("other"), "good")

	elsewhere := func(cache *registry.Cache) {
		signed(cache)
		cache.Platform = ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	}
	b := c.site(c.repo, elsewhere).build(cacheSpec("good"))
	c.right("for another platform", b, "good")
	if b.hits > 0 || len(b.warnings) == 0 {
		c.Errorf("a result for another platform is used: %d hits, warnings: %q", b.hits, b.warnings)
	}
}

// What the repository's garbage collection takes, the next build brings back.
func cacheCollected(c *cacheTest) {
	collector, ok := c.repo.(repo.Collector)
	if !ok {
		return // registries collect by programs of their own
	}
	b := c.fill(c.repo, nil, "two")
	if _, err := collector.CollectGarbage(c.Context(), 0); err != nil {
		c.Fatal(err)
	}
	c.hit("collected", c.repo, nil, "two")
	_, _, p := c.record(b.keys[len(b.keys)-1])
	if err := c.repo.Delete(c.Context(), p.Predicate.Key.String()); err != nil {
		c.Fatal(err)
	}
	if _, err := collector.CollectGarbage(c.Context(), 0); err != nil {
		c.Fatal(err)
	}
	c.mends("collected without its tag", c.repo, nil, "two")
}

var errSick = errors.New("the repository is sick")

func cacheReadOnly(c *cacheTest) {
	sick := &sickRepo{Repo: c.repo, fail: func(_ int, method string) error {
		if strings.HasPrefix(method, "Put") {
			return fmt.Errorf("%s: %w", method, repo.ErrReadOnly)
		}
		return nil
	}}
	b := c.site(sick, nil).build(cacheSpec("two"))
	c.right("empty", b, "two")
	if len(b.warnings) != 1 {
		c.Errorf("%d warnings: %q", len(b.warnings), b.warnings)
	}
	c.fill(c.repo, nil, "two")
	c.hit("filled", sick, nil, "two")
}

func cacheFull(c *cacheTest) {
	sick := &sickRepo{Repo: c.repo}
	for n := range 12 {
		sick.calls, sick.fail = 0, func(call int, method string) error {
			if call > n && strings.HasPrefix(method, "Put") {
				return fmt.Errorf("%s: %w", method, syscall.ENOSPC)
			}
			return nil
		}
		c.right("full", c.site(sick, nil).build(cacheSpec("two")), "two")
	}
	sick.fail = nil
	c.right("with room again", c.site(sick, nil).build(cacheSpec("two")), "two")
	c.hit("after that", c.repo, nil, "two")
}

// A repository that is down costs a warning or two, and no more than a moment.
func cacheDown(c *cacheTest) {
	sick := &sickRepo{Repo: c.repo, fail: func(int, string) error { return errSick }}
	start := time.Now()
	b := c.site(sick, nil).build(cacheSpec("two"))
	c.right("down", b, "two")
	if n := len(b.warnings); n == 0 || n > 2 {
		c.Errorf("%d warnings: %q", n, b.warnings)
	}
	if sick.calls > 20 || time.Since(start) > 10*time.Second {
		c.Errorf("it was asked %d times in %v", sick.calls, time.Since(start))
	}
	sick.fail = nil
	c.fill(sick, nil, "two")
	c.hit("up again", c.repo, nil, "two")
}

// diesAt lets each call of a build in turn be the last that is answered.
func (c *cacheTest) diesAt(repo repo.Repo, word func(n int) string) {
	for n := 1; n < 200; n++ {
		sick := &sickRepo{Repo: repo, fail: func(call int, _ string) error {
			if call > n {
				return errSick
			}
			return nil
		}}
		w := word(n)
		b := c.site(sick, nil).build(cacheSpec(w))
		c.right(fmt.Sprintf("dead after %d calls", n), b, w)
		if sick.calls <= n {
			c.hit("all answered", repo, nil, w)
			return
		}
		if len(b.warnings) == 0 {
			c.Errorf("dead after %d calls, and nobody warned", n)
		}
		if n%5 == 0 { // what was left half done is done by the next
			c.right("back", c.site(repo, nil).build(cacheSpec(w)), w)
			c.hit("and after that", repo, nil, w)
		}
	}
	c.Error("a build takes more than 200 calls")
}

func cacheDiesInPull(c *cacheTest) {
	c.fill(c.repo, nil, "two")
	c.diesAt(c.repo, func(int) string { return "two" })
}

func cacheDiesInPush(c *cacheTest) {
	c.fill(c.repo, nil)
	c.diesAt(c.repo, func(n int) string { return fmt.Sprintf("w%d", n) })
}

// One call alone is not answered.
func cacheOneError(c *cacheTest) {
	c.fill(c.repo, nil)
	for n := 1; n < 200; n++ {
		sick := &sickRepo{Repo: c.repo, fail: func(call int, _ string) error {
			if call == n {
				return errSick
			}
			return nil
		}}
		w := fmt.Sprintf("w%d", n)
		c.right(fmt.Sprintf("call %d failed", n), c.site(sick, nil).build(cacheSpec(w)), w)
		if sick.calls < n {
			return
		}
	}
	c.Error("a build takes more than 200 calls")
}
