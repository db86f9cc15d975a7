package results_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/repo"
)

// A namedRepo is a repository in memory.
type namedRepo struct {
	repo.Memory
	name string
}

func (r *namedRepo) Name() string { return r.name }

func newPlaces(t *testing.T, repos ...repo.Repo) *results.Places {
	t.Helper()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &results.Places{Store: st, Domains: []string{"default"}}
	for _, r := range repos {
		p.Caches = append(p.Caches, &registry.Cache{Repo: r, Store: st})
	}
	return p
}

// fourSteps is a stage of four steps, and the results of its base and them.
func fourSteps(t *testing.T) (*keys.Stage, []*results.Result) {
	t.Helper()
	s, err := spec.Parse("spec", []byte(`((from scratch) (run (shell a)) (run (shell b)) (run (shell c)) (run (shell d)))`))
	if err != nil {
		t.Fatal(err)
	}
	platform := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	plan, err := keys.New(t.Context(), s, keys.Options{Platform: platform, Resolver: &images.Resolver{}})
	if err != nil {
		t.Fatal(err)
	}
	stage := plan.Stages[0]
	all := []*results.Result{{Key: stage.BaseKey, Record: &results.Record{
		ID: stage.BaseKey.String(), Preimage: string(stage.Preimage), Config: &ocispec.Image{Platform: platform},
	}}}
	for i, step := range stage.Steps {
		all = append(all, all[i].Next(step.Key, layers.Layer{}, results.Record{Op: spec.Heading(step.Op), Preimage: string(step.Preimage)}))
	}
	return stage, all
}

// Of the first three steps, Find gives the deepest result that can be had, from the nearest place.
func TestFind(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name             string
		store, near, far string // of which steps they have a result; the store has the base too
		gone             string // what a cache turns out to have lost
		want             string
		looked           string // what is told to who uses nothing; "": the same
	}{
		{name: "nowhere", want: "none"},
		{name: "everywhere", store: "123", near: "123", far: "123", want: "store 3"},
		{name: "in the store alone", store: "12", want: "store 2"},
		{name: "as deep in the store", store: "12", near: "2", far: "1", want: "store 2"},
		{name: "deeper in a cache", store: "1", near: "3", want: "near 3"},
		{name: "deeper in the second cache", store: "1", near: "2", far: "3", want: "far 3"},
		{name: "as deep in the second cache", near: "2", far: "2", want: "near 2"},
		{name: "less deep in the second cache", near: "2", far: "1", want: "near 2"},
		{name: "deeper than is asked for", store: "1", near: "4", want: "store 1"},
		{name: "not whole in the store", store: "13", want: "store 1"},
		{name: "not whole in the store, but in a cache", store: "13", near: "3", want: "near 3"},
		{name: "gone, and less is there", near: "123", gone: "near 3", want: "near 2", looked: "near 3"},
		{name: "gone, and the second has it", near: "13", far: "3", gone: "near 3", want: "far 3", looked: "near 3"},
		{name: "gone, and the store has less", store: "1", near: "3", gone: "near 3", want: "store 1", looked: "near 3"},
		{name: "all gone", near: "12", gone: "near 1, near 2", want: "none", looked: "near 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stage, all := fourSteps(t)
			near, far := &namedRepo{name: "near"}, &namedRepo{name: "far"}
			maker := newPlaces(t, near, far)
			for i, steps := range []string{test.near, test.far} {
				for _, n := range steps {
					if _, err := maker.Caches[i].Push(t.Context(), maker.ToCache(all[n-'0'])); err != nil {
						t.Fatal(err)
					}
				}
			}
			p := newPlaces(t, near, far)
			p.Warned = func(msg string) { t.Error(msg) }
			for _, n := range "0" + test.store {
				if err := p.Save(all[n-'0'], all[n-'0'].Key); err != nil {
					t.Fatal(err)
				}
			}
			describe := func(r *results.Result) string {
				if r == nil {
					return "none"
				}
				return r.Where() + " " + strconv.Itoa(r.Depth())
			}
			q := results.Inputs(stage, 3)
			looked := test.looked
			if looked == "" {
				looked = test.want
			}
			if r, err := p.Find(t.Context(), q); err != nil || describe(r) != looked {
				t.Errorf("there is %s, want %s (%v)", describe(r), looked, err)
			}
			q.Use = func(ctx context.Context, r *results.Result) error {
				if strings.Contains(test.gone, describe(r)) {
					return fmt.Errorf("%s: %w", describe(r), registry.ErrGone)
				}
				return p.Fetch(ctx, r, false, 0, nil)
			}
			r, err := p.Find(t.Context(), q)
			if err != nil || describe(r) != test.want {
				t.Errorf("found %s, want %s (%v)", describe(r), test.want, err)
			}
			if r == nil {
				return
			}
			if !r.Here() || r.Key != all[r.Depth()].Key {
				t.Errorf("found %s, which is here: %v", r.Key, r.Here())
			}
			// What was fetched is in the store from now on.
			p.Caches = nil
			want := "store " + strconv.Itoa(r.Depth())
			if r, err := p.Find(t.Context(), results.Inputs(stage, 3)); err != nil || describe(r) != want {
				t.Errorf("afterwards, there is %s, want %s (%v)", describe(r), want, err)
			}
		})
	}
}

// A cache whose result of a key has another number of steps is not believed. Who only looks leaves it to others to tell.
func TestFindMisfit(t *testing.T) {
	t.Parallel()
	stage, all := fourSteps(t)
	near := &namedRepo{name: "near"}
	p := newPlaces(t, near)
	if _, err := p.Caches[0].Push(t.Context(), p.ToCache(all[2])); err != nil {
		t.Fatal(err)
	}
	var told []string
	p.Warned = func(msg string) { told = append(told, msg) }
	q := results.Query{Keys: []keys.ID{stage.Steps[1].Key}, Depth: 3}
	if r, err := p.Find(t.Context(), q); r != nil || err != nil || len(told) != 0 {
		t.Errorf("who looks has found %v, %v; warned %q", r, err, told)
	}
	q.Use = func(context.Context, *results.Result) error { return nil }
	if r, err := p.Find(t.Context(), q); r != nil || err != nil || len(told) != 1 || !strings.Contains(told[0], "does not fit") {
		t.Errorf("found %v, %v; warned %q", r, err, told)
	}
}

// A base image that the store has lost is made again for the sake of what stands on it, once.
func TestFindWithoutBase(t *testing.T) {
	t.Parallel()
	stage, all := fourSteps(t)
	p := newPlaces(t)
	for _, r := range all[1:3] {
		if err := p.Save(r, r.Key); err != nil {
			t.Fatal(err)
		}
	}
	made := 0
	q := results.Inputs(stage, 4)
	q.BaseKey, q.Base = stage.BaseKey, func(context.Context) error {
		made++
		return p.Save(all[0], all[0].Key)
	}
	for range 2 {
		if r, err := p.Find(t.Context(), q); err != nil || r.Depth() != 2 {
			t.Errorf("found %v, %v", r, err)
		}
	}
	if made != 1 {
		t.Errorf("the base was made %d times", made)
	}
}

// What the store has of a key is no answer if another number of steps led to it.
func TestAboveMisfit(t *testing.T) {
	t.Parallel()
	stage, all := fourSteps(t)
	p := newPlaces(t)
	id := stage.Steps[2].Key
	misfit := all[0].Next(id, layers.Layer{}, results.Record{Op: "(run)"})
	for _, r := range append(all[:3:3], misfit) {
		if err := p.Save(r, r.Key); err != nil {
			t.Fatal(err)
		}
	}
	if r := p.Above(all[2], id); r != nil {
		t.Errorf("above %d steps there is one of %d", all[2].Depth(), r.Depth())
	}
	if err := p.Save(all[3], id); err != nil {
		t.Fatal(err)
	}
	if r := p.Above(all[2], id); r == nil || r.Depth() != 3 {
		t.Errorf("above 2 steps there is %v", r)
	}
}

// What stands on a result that is for this machine alone is so too, whenever it was made.
func TestLocal(t *testing.T) {
	t.Parallel()
	_, all := fourSteps(t)
	all[2].Record.Local = "why"
	for i, want := range []string{"", "", "why", "why", "why"} {
		if got := all[i].Local(); got != want {
			t.Errorf("%d: %q", i, got)
		}
	}
	if next := all[3].Next(all[4].Key, layers.Layer{}, results.Record{}); next.Record.Local != "why" {
		t.Errorf("a new one says %q", next.Record.Local)
	}
}
