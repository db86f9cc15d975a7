package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/registry/internal/repotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/repo"
)

// problems runs Verify.
func problems(t testing.TB, c *registry.Cache) (all []string) {
	t.Helper()
	for p, err := range c.Verify(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p.String())
	}
	return all
}

func TestVerify(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	a.Signer = signer(t, "ci")
	build := newChain(t, a.Store, "one")
	build.step("1\n")
	build.step("2\n")
	push(t, a, build.results...)
	b, _ := machine(t, repo)
	b.Trust = trust(a.Signer)
	if found := problems(t, b); len(found) > 0 {
		t.Errorf("found %q", found)
	}

	// One layer wrong, one gone, one record unsigned, one image under another's tag.
	last := build.last()
	wrong, gone := last.Layers[1].Blob, last.Layers[2].Blob
	liar := &changed{spy: repo, bytes: map[digest.Digest]string{wrong.Digest: "lies", gone.Digest: ""}}
	b.Repo = liar
	key := func(i int) string { return build.results[i].Key.String() }
	forge(t, repo, key(0)+".rec", key(0)+".rec", func(env map[string]any) { env["signatures"] = []any{} })
	_, image, err := repo.Manifest(t.Context(), key(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.PutManifest(t.Context(), key(1), ocispec.MediaTypeImageManifest, image); err != nil {
		t.Fatal(err)
	}
	wantProblems(t, problems(t, b),
		key(0)+".rec: it is not signed",
		"note: "+key(1)+".rec: the tag "+key(1)+" is another image's",
		key(1)+".rec: blob "+wrong.Digest.String()+" has the 4 bytes of",
		key(2)+".rec: blob "+gone.Digest.String()+" is gone",
		key(2)+": blob "+wrong.Digest.String(),
	)
}

// wantProblems wants problems that begin so, whatever else was found.
func wantProblems(t *testing.T, found []string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, w) }) {
			t.Errorf("%q was not found", w)
		}
	}
	if t.Failed() {
		t.Log(strings.Join(found, "\n"))
	}
}

// A blob that cannot be read does not keep the others from being looked at, and a record's image is held against what the record says.
func TestVerifyGoesOn(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	build := newChain(t, a.Store, "one")
	build.step("1\n")
	build.step("2\n")
	push(t, a, build.results...)
	key := func(i int) string { return build.results[i].Key.String() }
	forge(t, repo, key(2)+".rec", key(2)+".rec", func(env map[string]any) {
		statement(t, env, func(s map[string]any) {
			p := s["predicate"].(map[string]any)
			p["config"] = p["image"]
			ls := p["layers"].([]any)
			ls[1], ls[2] = ls[2], ls[1]
		})
	})
	b, _ := machine(t, repo)
	unreadable, gone := build.last().Layers[1].Blob, build.last().Layers[2].Blob
	b.Repo = &changed{spy: repo, bytes: map[digest.Digest]string{unreadable.Digest: "error", gone.Digest: ""}}
	wantProblems(t, problems(t, b),
		key(1)+".rec: read blob "+unreadable.Digest.String()+": the disk is broken",
		key(2)+".rec: its image has another configuration",
		key(2)+".rec: its image has other layers than the record",
		key(2)+".rec: blob "+gone.Digest.String()+" is gone",
	)
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

func TestGC(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	old, young := newChain(t, a.Store, "old"), newChain(t, a.Store, "young")
	month := 30 * 24 * time.Hour
	ago := func(d time.Duration) {
		registry.SetClock(a, func() time.Time { return time.Now().Add(-d) })
	}
	ago(month)
	for i := range 3 {
		push(t, a, old.step(fmt.Sprintln(i)), young.step(fmt.Sprintln(i)))
	}
	// The last step alone is used, by way of an alias; another result has the domain's own image of the same bytes.
	input := young.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command input))", young.last().Key))
	push(t, a, &registry.Result{Key: input.Key, Alias: young.last().Key, Preimage: input.Preimage, Platform: input.Platform})
	twin, _ := machine(t, repo)
	twin.Store, twin.Domains = a.Store, []string{"pr-7"}
	push(t, twin, old.results[1])
	broken := strings.Repeat("b", 64)
	if _, err := repo.PutManifest(t.Context(), "latest", ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.PutManifest(t.Context(), broken+".rec", ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"x":1}`)); err != nil {
		t.Fatal(err)
	}
	b, _ := machine(t, repo)
	r := find(t, b, input.Key)
	b.Touch(t.Context(), r)

	gc, _ := machine(t, repo)
	repo.seen()
	dry, err := gc.GC(t.Context(), registry.GCOptions{OlderThan: 7 * 24 * time.Hour, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	requests := repo.seen()
	if slices.ContainsFunc(requests, func(s string) bool { return strings.HasPrefix(s, "DELETE") }) {
		t.Error("a dry run deletes")
	}
	if dry.Requests != len(requests)+1 { // listing is not seen
		t.Errorf("%d requests, says %d", len(requests), dry.Requests)
	}
	report, err := gc.GC(t.Context(), registry.GCOptions{OlderThan: 7 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	// Two old steps and the broken one go; images of the old steps but the twin's.
	if report.Kept != 5 || report.Records != 4 || report.Images != 2 || dry.Records != report.Records || dry.Images != report.Images {
		t.Errorf("dry %+v, then %+v", dry, report)
	}
	seen := repo.seen()
	lastRecord, firstImage := -1, len(seen)
	for i, line := range seen {
		if strings.HasPrefix(line, "DELETE") {
			if !strings.HasPrefix(line, "DELETE sha256:") {
				t.Errorf("%s", line)
			}
			lastRecord = max(lastRecord, i)
		}
		if strings.HasPrefix(line, "HEAD") && strings.HasSuffix(line, ".rec") {
			firstImage = min(firstImage, i)
		}
	}
	if firstImage == len(seen) || lastRecord < firstImage {
		t.Errorf("made the requests %q", seen)
	}
	var tags []string
	for tag, err := range repo.Tags(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		tags = append(tags, tag)
	}
	want := []string{"latest", input.Key.String() + ".rec", old.results[1].Key.String() + ".pr-7", old.results[1].Key.String() + ".pr-7.rec"}
	want = append(want, old.results[1].Key.String()) // the twin's image
	for _, r := range young.results[1:] {
		want = append(want, r.Key.String(), r.Key.String()+".rec")
	}
	slices.Sort(want)
	if !slices.Equal(tags, want) {
		t.Errorf("left %q, want %q", tags, want)
	}
	b, warned := machine(t, repo)
	if files := fetch(t, b, find(t, b, input.Key)); files["base"] != "young" {
		t.Errorf("got %q, warned %q", files, warned.take())
	}
	if found := problems(t, b); len(found) > 0 {
		t.Errorf("found %q", found)
	}
}

func TestCopy(t *testing.T) {
	needRoot(t)
	near, far := newSpy(), newSpy()
	a, _ := machine(t, near)
	a.Signer = signer(t, "ci")
	build := newChain(t, a.Store, "one")
	build.step("1\n")
	build.step("2\n")
	push(t, a, build.results...)
	last := build.last()
	input := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command input))", last.Key))
	push(t, a, &registry.Result{Key: input.Key, Alias: last.Key, Preimage: input.Preimage, Platform: last.Platform})

	from, _ := machine(t, near)
	to, _ := machine(t, far)
	to.Trust = trust(a.Signer)
	missing := keys.ID{1}
	ids := append(build.ids(), input.Key, missing)
	report, err := registry.Copy(t.Context(), from, to, ids)
	if err != nil {
		t.Fatal(err)
	}
	// The last step comes twice, by itself and by its alias.
	if report.Copied != 4 || report.Present != 1 || !slices.Equal(report.Missing, []keys.ID{missing}) || report.Sent == 0 {
		t.Errorf("copied %+v", report)
	}
	for tag, err := range near.Tags(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		_, was, _ := near.Memory.Manifest(t.Context(), tag)
		_, is, _ := far.Memory.Manifest(t.Context(), tag)
		if string(was) != string(is) {
			t.Errorf("%s is %s, was %s", tag, is, was)
		}
	}
	if found := problems(t, to); len(found) > 0 {
		t.Errorf("found %q", found)
	}
	b, warned := machine(t, far)
	b.Trust = to.Trust
	r := find(t, b, input.Key)
	if r == nil || readLog(t, b, r.Steps[0].Log) != "1\n" {
		t.Fatalf("found %+v, warned %q", r, warned.take())
	}
	fetch(t, b, r)

	// A second copy sends nothing.
	far.seen()
	again, _ := machine(t, far)
	report, err = registry.Copy(t.Context(), from, again, ids)
	if err != nil || report.Copied != 0 || report.Present != 5 || report.Sent != 0 {
		t.Errorf("copied %+v, %v", report, err)
	}
	for _, line := range far.seen() {
		if !strings.HasPrefix(line, "HEAD") {
			t.Errorf("a second copy makes the request %s", line)
		}
	}

	// What cannot be copied whole is missing, and leaves no record.
	third := newSpy()
	into, _ := machine(t, third)
	src, warned := machine(t, near)
	near.setFault(func(line string) error {
		if line == "GET "+last.Layers[2].Blob.Digest.String() {
			return fmt.Errorf("%s: %w", line, repo.ErrNotFound)
		}
		return nil
	})
	report, err = registry.Copy(t.Context(), src, into, []keys.ID{last.Key, build.results[1].Key})
	if err != nil || report.Copied != 1 || !slices.Equal(report.Missing, []keys.ID{last.Key}) || len(warned.take()) != 1 {
		t.Errorf("copied %+v, %v", report, err)
	}
	if _, err := third.Head(t.Context(), last.Key.String()+".rec"); err == nil {
		t.Error("a record without its image was copied")
	}
}

// Bytes of the right size that are wrong make a result one that cannot be copied, whatever it is copied to.
func TestCopyRotten(t *testing.T) {
	needRoot(t)
	near := newSpy()
	a, _ := machine(t, near)
	build := newChain(t, a.Store, "one")
	build.step("1\n")
	build.step("2\n")
	push(t, a, build.results...)
	last := build.last()
	rotten := last.Layers[2].Blob
	for name, to := range map[string]repo.Repo{
		"memory": new(repo.Memory), "layout": repotest.Open(t, "oci:"+t.TempDir()+"/layout"),
		"registry": repotest.Open(t, conformance.NewDebian(t).Addr+"/rotten"),
	} {
		t.Run(name, func(t *testing.T) {
			from, warned := machine(t, &changed{near, map[digest.Digest]string{rotten.Digest: strings.Repeat("x", int(rotten.Size))}})
			into, _ := machine(t, to)
			report, err := registry.Copy(t.Context(), from, into, []keys.ID{last.Key, build.results[1].Key})
			if err != nil || report.Copied != 1 || !slices.Equal(report.Missing, []keys.ID{last.Key}) || len(warned.take()) != 1 {
				t.Errorf("copied %+v, %v", report, err)
			}
		})
	}
}

// Aliases of each other lead nowhere, not round in a circle.
func TestCopyCircle(t *testing.T) {
	needRoot(t)
	near := newSpy()
	a, _ := machine(t, near)
	build := newChain(t, a.Store, "one")
	r := build.step("1\n")
	one := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command one))", r.Key))
	two := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command two))", r.Key))
	push(t, a, &registry.Result{Key: one.Key, Alias: two.Key, Preimage: one.Preimage, Platform: r.Platform},
		&registry.Result{Key: two.Key, Alias: one.Key, Preimage: two.Preimage, Platform: r.Platform})
	from, _ := machine(t, near)
	to, _ := machine(t, newSpy())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	report, err := registry.Copy(ctx, from, to, []keys.ID{one.Key, two.Key})
	if err != nil || report.Copied != 0 || len(report.Missing) != 2 {
		t.Errorf("copied %+v, %v", report, err)
	}
}

// An envelope that cannot be read just now is no reason to remove what it needs.
func TestGCWithoutAnswer(t *testing.T) {
	needRoot(t)
	repo, _, build := pushSteps(t, 400, func(int) string { return "" })
	_, b, err := repo.Manifest(t.Context(), build.last().Key.String()+".rec")
	var m ocispec.Manifest
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil || m.Config.Data != nil {
		t.Fatalf("the envelope is in the manifest: %v", err)
	}
	repo.setFault(func(line string) error {
		if line == "GET "+m.Config.Digest.String() {
			return errors.New("503")
		}
		return nil
	})
	gc, _ := machine(t, repo)
	repo.seen()
	if report, err := gc.GC(t.Context(), registry.GCOptions{OlderThan: time.Hour}); err == nil {
		t.Errorf("no error: %+v", report)
	}
	for _, line := range repo.seen() {
		if strings.HasPrefix(line, "DELETE") {
			t.Error(line)
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

// changed is a spy some of whose blobs have other bytes, or none.
type changed struct {
	*spy
	bytes map[digest.Digest]string
}

func (c *changed) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	switch text, ok := c.bytes[desc.Digest]; {
	case !ok:
		return c.spy.Blob(ctx, desc)
	case text == "":
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, repo.ErrNotFound)
	case text == "error":
		return nil, errors.New("the disk is broken")
	default:
		return io.NopCloser(strings.NewReader(text)), nil
	}
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
