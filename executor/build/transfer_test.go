package build_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/build/publish"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/repo"
)

// onBase is a spec that names its base by a tag, copies from another stage, and prints in each step. Its last step can be changed.
var onBase = `((build b ((from example.test/base:1) (run (shell "echo b; echo b > /b"))))
	(from example.test/base:1)
	(run (shell "echo one ` + longLog + `; echo 1 > /one"))
	(copy (from (build b)) (src /b) (dst /))
	(run (shell "cat /base; echo last %s; echo %[1]s > /last")))`

// longLog is kept apart from records.
var longLog = strings.Repeat("0123456789abcdef", 100)

func onBaseFiles(last string) map[string]string {
	return map[string]string{"base": "the base\n", "one": "1\n", "b": "b\n", "last": last + "\n"}
}

// baseImage writes a base image, and gives its name.
func baseImage(t *testing.T) string {
	t.Helper()
	m := newMachine(t)
	m.NeedFiles = true
	o := m.run(`((from scratch) (run (shell "echo the base > /base")))`)
	dir := filepath.Join(t.TempDir(), "base")
	if _, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: "oci", Dest: dir, Dir: true, Names: []string{"1"}}, nil); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":1"
}

// withBase makes a machine that can resolve the base of onBase.
func withBase(t *testing.T, image string) *machine {
	m := newMachine(t)
	m.Images.Bases = map[string]string{"example.test/base:1": image}
	return m
}

// offline makes a machine that can reach nothing but some repositories.
func offline(t *testing.T, repos ...repo.Repo) *machine {
	m := newMachine(t)
	m.Images.Offline, m.Images.Caches = true, repos
	for _, r := range repos {
		m.Caches = append(m.Caches, m.cache(r))
	}
	return m
}

// cache is a repository as the machine uses it.
func (m *machine) cache(r repo.Repo) *registry.Cache {
	return &registry.Cache{Repo: r, Store: m.Store, Domains: m.Domains, Platform: m.exec.Platform(), Warn: func(s string) {
		m.t.Errorf("warning: %s", s)
	}}
}

func openRepo(t *testing.T, ref string) repo.Repo {
	t.Helper()
	r, err := new(repo.Client).Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func closeRepo(t *testing.T, r repo.Repo) {
	t.Helper()
	if c, ok := r.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func (o *outcome) export(to *registry.Cache, since time.Duration) publish.Report {
	o.m.t.Helper()
	r, err := o.m.Export(o.m.t.Context(), o.plan, nil, to, since)
	if err != nil {
		o.m.t.Fatalf("export: %v", err)
	}
	return r
}

func (m *machine) imports(from *registry.Cache, ids ...string) publish.Report {
	m.t.Helper()
	r, err := m.Import(m.t.Context(), from, idsOf(m.t, ids))
	if err != nil {
		m.t.Fatalf("import: %v", err)
	}
	return r
}

// An export is all that a machine without a network needs: to import it, or to use it as a cache.
func TestExport(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"cache", "cache.tar"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			image := baseImage(t)
			ref := "oci:" + filepath.Join(t.TempDir(), kind)
			a := withBase(t, image)
			first := a.run(fmt.Sprintf(onBase, "A"))
			kept := openRepo(t, ref)
			if r := first.export(a.cache(kept), 0); r.Results != 4 || r.Present != 0 || r.Bases != 1 || r.Bytes <= 0 {
				t.Errorf("the first export: %+v", r)
			}
			closeRepo(t, kept)
			kept = openRepo(t, ref)
			if r := first.export(a.cache(kept), 0); r != (publish.Report{Present: 4}) {
				t.Errorf("the second export: %+v", r)
			}
			second := a.run(fmt.Sprintf(onBase, "B"))
			if r := second.export(a.cache(kept), 0); r.Results != 1 || r.Present != 3 || r.Bases != 0 {
				t.Errorf("an export of one new step: %+v", r)
			}
			closeRepo(t, kept)
			if err := os.RemoveAll(strings.TrimSuffix(strings.TrimPrefix(image, "oci:"), ":1")); err != nil {
				t.Fatal(err)
			}

			t.Run("import", func(t *testing.T) {
				to := openRepo(t, ref)
				d := offline(t)
				if r := d.imports(d.cache(to)); r.Results != 5 || r.Present != 0 || r.Bases != 1 || r.Bytes <= 0 {
					t.Errorf("the first import: %+v", r)
				}
				if r := d.imports(d.cache(to)); r.Results != 0 || r.Present != 5 || r.Bytes != 0 {
					t.Errorf("the second import: %+v", r)
				}
				closeRepo(t, to)
				// It can be carried on from there.
				further := new(repo.Memory)
				if r, err := d.Export(t.Context(), nil, nil, d.cache(further), 0); err != nil || r.Results != 5 || r.Bases != 1 {
					t.Errorf("exported %+v, %v", r, err)
				}
				offline(t, further).run(fmt.Sprintf(onBase, "B")).want("cccc")
				full := d.run(fmt.Sprintf(onBase, "A"))
				full.want("ssss")
				full.wantLogs(first)
				if full.opens != 0 || full.rep.Key != first.rep.Key {
					t.Errorf("%d roots were opened, the result is %s, was %s", full.opens, full.rep.Key, first.rep.Key)
				}
				next := d.another()
				next.Images.Offline = true
				o := next.run(fmt.Sprintf(onBase, "C"))
				o.want("sssr")
				o.wantFiles(onBaseFiles("C"))
				o = next.run(`((from example.test/base:1) (run (shell "cat /base; echo > /new")))`)
				o.want("r")
				o.wantFiles(map[string]string{"base": "the base\n", "new": "\n"})
			})
			t.Run("cache", func(t *testing.T) {
				kept := openRepo(t, ref)
				d := offline(t, kept)
				d.Push = build.PushNever
				full := d.run(fmt.Sprintf(onBase, "B"))
				full.want("cccc")
				full.wantLogs(second)
				o := d.run(fmt.Sprintf(onBase, "C"))
				o.want("cccr")
				o.wantFiles(onBaseFiles("C"))
				o = d.run(`((from example.test/base:1) (run (shell "cat /base; echo > /new")))`)
				o.want("r")
				o.wantFiles(map[string]string{"base": "the base\n", "new": "\n"})
				closeRepo(t, kept)
			})
		})
	}
}

// Keys bring all that they were made from; no keys, all.
func TestExportKeys(t *testing.T) {
	t.Parallel()
	a := withBase(t, baseImage(t))
	first := a.run(fmt.Sprintf(onBase, "A"))
	a.run(`((from scratch) (run (shell "echo other > /other")))`)
	for _, c := range []struct {
		name    string
		ids     []string
		results int
		imports []string
		want    publish.Report
	}{
		{"the last", []string{first.key(4)}, 4, nil, publish.Report{Results: 4, Bases: 1}},
		{"an alias", []string{first.plan.Steps[3].Key.String()}, 4, []string{first.plan.Steps[3].Key.String()}, publish.Report{Results: 1, Bases: 1}},
		{"all", nil, 5, nil, publish.Report{Results: 5, Bases: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			kept := &spyRepo{}
			r, err := a.Export(t.Context(), nil, idsOf(t, c.ids), a.cache(kept), 0)
			if err != nil || r.Results != c.results || r.Bases != 1 {
				t.Errorf("exported %+v, %v", r, err)
			}
			d := offline(t)
			got := d.imports(d.cache(kept), c.imports...)
			got.Bytes = 0
			if got != c.want {
				t.Errorf("imported %+v, want %+v", got, c.want)
			}
			o := d.run(fmt.Sprintf(onBase, "A"))
			if c.imports == nil {
				o.want("ssss")
			} else if steps := o.steps(); steps[1:] != "sss" {
				t.Errorf("the steps were %s", steps)
			}
			o.wantLogs(first)
		})
	}
	if _, err := a.Export(t.Context(), nil, idsOf(t, []string{strings.Repeat("ab", 32)}), a.cache(&spyRepo{}), 0); err == nil {
		t.Error("a key without a result is exported")
	}
}

// Old results stay behind.
func TestExportSince(t *testing.T) {
	t.Parallel()
	a := newMachine(t)
	o := a.run(fmt.Sprintf(resume, "A"))
	age(t, a.Store, 48*time.Hour)
	a.run(`((from scratch) (run (shell "echo new > /new")))`)
	r, err := a.Export(t.Context(), nil, nil, a.cache(&spyRepo{}), 24*time.Hour)
	if err != nil || r.Results != 1 {
		t.Errorf("exported %+v, %v", r, err)
	}
	to := &spyRepo{}
	if r := o.export(a.cache(to), 24*time.Hour); r.Results != 0 {
		t.Errorf("exported %+v", r)
	}
}

// age makes all results of a store look as if they had not been used for a time.
func age(t *testing.T, st *cas.Store, d time.Duration) {
	t.Helper()
	at := time.Now().Add(-d)
	err := filepath.Walk(filepath.Join(st.Dir(), "results"), func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		return os.Chtimes(path, at, at)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What came from a cache keeps its envelope, whether the cache still answers or not.
func TestExportPulled(t *testing.T) {
	t.Parallel()
	for _, reachable := range []bool{true, false} {
		t.Run(fmt.Sprint(reachable), func(t *testing.T) {
			t.Parallel()
			ours, theirs := signer(t, "ours"), signer(t, "theirs")
			r := &spyRepo{}
			a := newMachine(t)
			c := a.cache(r)
			c.Signer = theirs
			a.Caches = []*registry.Cache{c}
			first := a.run(fmt.Sprintf(resume, "A"))

			b := newMachine(t).share(r)
			b.NeedFiles, b.Push = true, build.PushNever
			b.run(fmt.Sprintf(resume, "A")).want("ccccc")
			o := b.run(strings.TrimSuffix(fmt.Sprintf(resume, "A"), ")") + ` (run (shell "echo mine > /mine")))`)
			o.want("sssssr")
			if !reachable {
				b.Caches = nil
			}
			to := &spyRepo{name: "to"}
			out := b.cache(to)
			out.Signer = ours
			if rep := o.export(out, 0); rep.Results != 2 || rep.Present != 0 {
				t.Errorf("exported %+v", rep)
			}

			// Who trusts their key alone finds what they made, and not what was made on it.
			d := newMachine(t).share(to)
			for key, want := range map[*registry.Signer][2]bool{theirs: {true, false}, ours: {false, true}} {
				in := d.cache(to)
				in.Trust, in.Warn = []registry.PublicKey{key.Public()}, nil
				for i, n := range []int{5, 6} {
					found, err := in.Find(t.Context(), []keys.ID{idOf(t, o.key(n))})
					if err != nil || (found != nil) != want[i] {
						t.Errorf("with the key of %s, step %d is found: %v, %v", key.Name, n, found != nil, err)
					}
				}
			}
			hit := d.run(fmt.Sprintf(resume, "A"))
			hit.wantLogs(first)
			if reachable {
				hit.want("ccccc")
			} else {
				hit.want("rrccc") // nobody here can sign that the input key leads there
			}
		})
	}
}

func signer(t *testing.T, name string) *registry.Signer {
	t.Helper()
	s, err := registry.GenerateSigner(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func idsOf(t testing.TB, all []string) (ids []keys.ID) {
	t.Helper()
	for _, key := range all {
		ids = append(ids, idOf(t, key))
	}
	return ids
}

func idOf(t testing.TB, key string) keys.ID {
	t.Helper()
	id, err := keys.ParseID(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Bytes that the store has lost come from where they were.
func TestExportLostBytes(t *testing.T) {
	t.Parallel()
	a := withBase(t, baseImage(t))
	first := a.run(fmt.Sprintf(onBase, "A"))
	base := first.plan.Stages[0].Base
	img, err := a.Images.Pull(t.Context(), base, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	lost := []digest.Digest{base.Digest, img.Layers[0].Blob.Digest}
	for _, d := range lost {
		if err := os.Remove(filepath.Join(a.Store.Dir(), "blobs", "sha256", d.Encoded())); err != nil {
			t.Fatal(err)
		}
	}
	to := &spyRepo{}
	if r := first.export(a.cache(to), 0); r.Results != 4 || r.Bases != 1 {
		t.Errorf("exported %+v", r)
	}
	d := offline(t, to)
	d.NeedFiles = true
	o := d.run(fmt.Sprintf(onBase, "A"))
	o.want("cccc")
	o.wantFiles(onBaseFiles("A"))
}

// Results whose base has bytes that cannot be had any more are left out; others are exported.
func TestExportLostBase(t *testing.T) {
	t.Parallel()
	dir := baseImage(t)
	a := withBase(t, dir)
	first := a.run(fmt.Sprintf(onBase, "A"))
	a.run(`((from scratch) (run (shell "echo other > /other")))`)
	base := first.plan.Stages[0].Base
	img, err := a.Images.Pull(t.Context(), base, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	layout, _, _ := strings.Cut(strings.TrimPrefix(dir, "oci:"), ":")
	err = errors.Join(
		os.RemoveAll(layout),
		os.Remove(filepath.Join(a.Store.Dir(), "blobs", "sha256", img.Layers[0].Blob.Digest.Encoded())),
		os.WriteFile(filepath.Join(a.Store.LayerPath(img.Layers[0].Dir), "base"), []byte("spoilt\n"), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	to := a.cache(&spyRepo{})
	var warned []string
	to.Warn = func(s string) { warned = append(warned, s) }
	r, err := a.Export(t.Context(), nil, nil, to, 0)
	if err != nil || r.Results != 1 {
		t.Errorf("exported %+v, %v", r, err)
	}
	if all := strings.Join(warned, "\n"); !strings.Contains(all, "results are left out") || !strings.Contains(all, "neither here nor there") {
		t.Errorf("warned %q", warned)
	}
}
