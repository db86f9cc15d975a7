package registry_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry"
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
