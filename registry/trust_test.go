package registry_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

func signer(t testing.TB, name string) *registry.Signer {
	t.Helper()
	s, err := registry.GenerateSigner(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func trust(ss ...*registry.Signer) (ks []registry.PublicKey) {
	for _, s := range ss {
		ks = append(ks, s.Public())
	}
	return ks
}

// forge publishes a copy of a record with another envelope, under some tag.
func forge(t testing.TB, repo repo.Repo, from, to string, change func(envelope map[string]any)) {
	t.Helper()
	_, b, err := repo.Manifest(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	var env map[string]any
	if err := json.Unmarshal(m.Config.Data, &env); err != nil {
		t.Fatal(err)
	}
	change(env)
	if m.Config.Data, err = json.Marshal(env); err != nil {
		t.Fatal(err)
	}
	m.Config.Digest, m.Config.Size = digest.FromBytes(m.Config.Data), int64(len(m.Config.Data))
	if err := repo.PutBlob(t.Context(), m.Config, "", oci.Opener(m.Config.Data)); err != nil {
		t.Fatal(err)
	}
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.PutManifest(t.Context(), to, ocispec.MediaTypeImageManifest, b); err != nil {
		t.Fatal(err)
	}
}

// statement reads and writes the payload of an envelope.
func statement(t testing.TB, env map[string]any, change func(s map[string]any)) {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(env["payload"].(string))
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	change(s)
	if b, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	env["payload"] = base64.StdEncoding.EncodeToString(b)
}

// leaves calls do for each value below v, with its path and what sets it.
func leaves(path string, v any, do func(path string, v any, set func(any))) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			do(path+"."+k, e, func(n any) { v[k] = n })
			leaves(path+"."+k, e, do)
		}
	case []any:
		for i, e := range v {
			do(fmt.Sprintf("%s.%d", path, i), e, func(n any) { v[i] = n })
			leaves(fmt.Sprintf("%s.%d", path, i), e, do)
		}
	}
}

// other gives a value like v, but not v.
func other(v any) any {
	switch v := v.(type) {
	case string:
		if v == "" {
			return "x"
		}
		c := byte('A')
		if v[0] == c {
			c = 'B'
		}
		return string(c) + v[1:]
	case float64:
		return v + 1
	}
	return nil
}

func TestEachFieldIsSigned(t *testing.T) {
	needRoot(t)
	repo := &repo.Memory{}
	a, _ := machine(t, repo)
	a.Signer = signer(t, "ci")
	build := newChain(t, a.Store, "one")
	build.step("hello\n")
	r := build.step("world\n")
	r.Steps[1].Input[0] = 1
	r.Others = []registry.Step{{Key: build.results[0].Key, Op: "other", Layers: -1, Log: registry.Log{Data: []byte("other\n")}}}
	push(t, a, r)
	tag := r.Key.String() + ".rec"
	_, honest, err := repo.Manifest(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	b, warned := machine(t, repo)
	b.Trust = trust(a.Signer)
	if r := find(t, b, r.Key); r == nil {
		t.Fatalf("found %+v, warned %q", r, warned.take())
	}

	var paths []string
	forge(t, repo, tag, "copy", func(env map[string]any) {
		statement(t, env, func(s map[string]any) {
			leaves("", s, func(path string, _ any, _ func(any)) { paths = append(paths, path) })
		})
	})
	for _, want := range []string{".subject.0.digest.sha256", ".predicate.key", ".predicate.preimage", ".predicate.parent",
		".predicate.platform.os", ".predicate.platform.architecture", ".predicate.domain", ".predicate.status", ".predicate.image.0",
		".predicate.config.0", ".predicate.layers.1.0", ".predicate.layers.1.2", ".predicate.steps.0.1", ".predicate.steps.1.5",
		".predicate.others.0.0", ".predicate.logs.0.0", ".predicate.builder", ".predicate.started", ".predicate.took", ".predicate.base"} {
		if !slices.Contains(paths, want) {
			t.Errorf("the record has no %s", want)
		}
	}
	slices.Sort(paths)
	for _, path := range paths {
		forge(t, repo, "copy", tag, func(env map[string]any) {
			statement(t, env, func(s map[string]any) {
				leaves("", s, func(p string, v any, set func(any)) {
					if p == path {
						set(other(v))
					}
				})
			})
		})
		if r := find(t, b, r.Key); r != nil {
			t.Errorf("%s was changed, and the record is believed", path)
		}
	}
	for _, change := range []func(env map[string]any){
		func(env map[string]any) { env["payloadType"] = "application/json" },
		func(env map[string]any) { env["signatures"] = []any{} },
		func(env map[string]any) { delete(env, "signatures") },
		func(env map[string]any) {
			s := env["signatures"].([]any)[0].(map[string]any)
			s["sig"] = other(s["sig"])
		},
	} {
		forge(t, repo, "copy", tag, change)
		if r := find(t, b, r.Key); r != nil {
			t.Error("an envelope that was changed is believed")
		}
	}
	if _, err := repo.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, honest); err != nil {
		t.Fatal(err)
	}
	if r := find(t, b, r.Key); r == nil {
		t.Error("the honest record is not believed any more")
	}
	told := warned.take()
	if len(told) != 2 || !slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, "--trust NAME:KEY") }) {
		t.Errorf("warned %q", told)
	}
}

func TestHintsAreNotBelieved(t *testing.T) {
	needRoot(t)
	repo := &repo.Memory{}
	a, _ := machine(t, repo)
	a.Signer = signer(t, "ci")
	build := newChain(t, a.Store, "one")
	r := build.step("the truth\n")
	push(t, a, r)
	tag := r.Key.String() + ".rec"
	_, b, err := repo.Manifest(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	m.Layers[0].Data = []byte("lies")
	m.Annotations["dev.obx.key"] = "lies"
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, b); err != nil {
		t.Fatal(err)
	}
	c, _ := machine(t, repo)
	c.Trust = trust(a.Signer)
	got := find(t, c, r.Key)
	if got == nil {
		t.Fatal("not found")
	}
	if log := readLog(t, c, got.Steps[0].Log); log != "the truth\n" {
		t.Errorf("the log is %q", log)
	}
}

func TestMovedRecords(t *testing.T) {
	needRoot(t)
	repo := &repo.Memory{}
	a, _ := machine(t, repo)
	a.Signer = signer(t, "ci")
	build := newChain(t, a.Store, "one")
	one, two := build.step("1"), build.step("2")
	push(t, a, one)
	tag := one.Key.String()
	same := func(map[string]any) {}
	forge(t, repo, tag+".rec", two.Key.String()+".rec", same)
	forge(t, repo, tag+".rec", tag+".main.rec", same)
	for name, change := range map[string]func(c *registry.Cache){
		"key":      func(c *registry.Cache) {},
		"domain":   func(c *registry.Cache) { c.Domains = []string{"main"} },
		"platform": func(c *registry.Cache) { c.Platform = repotest.Linux("arm64") },
	} {
		b, warned := machine(t, repo)
		b.Trust = trust(a.Signer)
		change(b)
		id := one.Key
		if name == "key" {
			id = two.Key
		}
		if r := find(t, b, id); r != nil || len(warned.take()) != 1 {
			t.Errorf("a record moved to another %s is believed: %v", name, r != nil)
		}
	}
	b, _ := machine(t, repo)
	b.Platform = repotest.Linux("amd64")
	if r := find(t, b, one.Key); r == nil {
		t.Error("the platform that was asked for is refused")
	}
}

// With --trust, what is not signed is built again, and then replaced by who can sign.
func TestUntrustedIsReplaced(t *testing.T) {
	needRoot(t)
	repo := &repo.Memory{}
	poisoner, _ := machine(t, repo)
	bad := newChain(t, poisoner.Store, "bad")
	push(t, poisoner, bad.step(""))

	good := newChain(t, poisoner.Store, "bad")
	r := good.step("")
	r.Layers[1] = good.layer(map[string]string{"log": "good"})
	ci := signer(t, "ci")
	reader, warned := machine(t, repo)
	reader.Trust, reader.Store = trust(ci), poisoner.Store
	if r := find(t, reader, r.Key); r != nil || len(warned.take()) != 1 {
		t.Error("an unsigned record is believed")
	}
	push(t, reader, r) // cannot sign: would be no better
	plain, _ := machine(t, repo)
	if r := find(t, plain, r.Key); fetch(t, plain, r)["log"] == "good" {
		t.Error("who cannot sign has replaced a record")
	}
	writer, _ := machine(t, repo)
	writer.Trust, writer.Signer, writer.Store = trust(ci), ci, poisoner.Store
	if r := find(t, writer, r.Key); r != nil {
		t.Error("an unsigned record is believed")
	}
	push(t, writer, r)
	reader, warned = machine(t, repo)
	reader.Trust = trust(signer(t, "other"), ci)
	if r := find(t, reader, r.Key); r == nil || fetch(t, reader, r)["log"] != "good" {
		t.Errorf("found %+v, warned %q", r, warned.take())
	}
	if w := warned.take(); len(w) > 0 {
		t.Errorf("warned %q", w)
	}
}
