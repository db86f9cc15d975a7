package build_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/build/publish"
	"github.com/ocurrent/obx/registry"
)

// leave adds files to a cache mount of the store, as a step does.
func (m *machine) leave(name, sharing string, files ...string) {
	m.t.Helper()
	use, err := m.Store.OpenCache(m.t.Context(), m.domain(), name, sharing)
	if err != nil {
		m.t.Fatal(err)
	}
	dir := use.Shared
	if dir == "" {
		if dir, err = os.MkdirTemp(m.Store.TempDir(), ""); err != nil {
			m.t.Fatal(err)
		}
	}
	for _, f := range files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
			m.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
	if use.Shared == "" {
		err = use.Commit(dir, func(dst string, dirs []string) error { return fmt.Errorf("%d directories", len(dirs)) })
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if err := use.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// holds lists the files of a cache mount of the store.
func (m *machine) holds(name, sharing string) string {
	m.t.Helper()
	use, err := m.Store.OpenCache(m.t.Context(), m.domain(), name, sharing)
	if err != nil {
		m.t.Fatal(err)
	}
	defer use.Close()
	var all []string
	for _, dir := range append(slices.Clone(use.Lower), use.Shared) {
		if dir == "" {
			continue
		}
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				name, err = filepath.Rel(dir, name)
				all = append(all, name)
			}
			return err
		})
		if err != nil {
			m.t.Fatal(err)
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}

// A racingRepo lets somebody else in: when the layer of a mount is there, and right after the mount was put.
type racingRepo struct {
	*spyRepo
	sent, put func()
}

func (r *racingRepo) PutBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) error {
	err := r.spyRepo.PutBlob(ctx, desc, from, open)
	if then := r.sent; then != nil && strings.Contains(desc.MediaType, "layer") {
		r.sent = nil
		then()
	}
	return err
}

func (r *racingRepo) PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc, err := r.spyRepo.PutManifest(ctx, tag, mediaType, data)
	if then := r.put; then != nil && strings.HasPrefix(tag, "mount-") {
		r.put = nil
		then()
	}
	return desc, err
}

// A mount that travels takes along what builds leave in it, as private and as shared directory.
func TestShareMounts(t *testing.T) {
	t.Parallel()
	for _, sharing := range []string{"private", "shared", "locked"} {
		for _, how := range []publish.Travel{publish.LastWins, publish.Union} {
			t.Run(fmt.Sprint(sharing, " ", how), func(t *testing.T) {
				t.Parallel()
				r := &spyRepo{}
				spec := func(text string) string {
					return fmt.Sprintf(`((from scratch) (run (cache (c (target /c) (buildkit_options ((sharing %s))))) (shell "echo %s")))`, sharing, text)
				}
				n := 0
				// runs has a machine with these files in the mount run a step, and gives what is there when the step begins.
				runs := func(m *machine, files ...string) (saw string) {
					t.Helper()
					if len(files) > 0 {
						m.leave("c", sharing, files...)
					}
					m.share(r).Travels = map[string]publish.Travel{"c": how}
					m.exec.before = func(*string, executor.Process) { saw = m.holds("c", sharing) }
					n++
					if w := append(m.run(spec(fmt.Sprint(n))).warnings(), m.told.all...); len(w) > 0 {
						t.Errorf("warned %q", w)
					}
					return saw
				}
				a, b := newMachine(t), newMachine(t)
				if saw := runs(a, "a", "d/a"); saw != "a d/a" {
					t.Errorf("the first had %q", saw)
				}
				want := map[publish.Travel]string{publish.LastWins: "b d/b", publish.Union: "a b d/a d/b"}[how]
				if saw := runs(b, "b", "d/b"); saw != want {
					t.Errorf("one with files had %q, want %q", saw, want)
				}
				c := newMachine(t)
				if saw := runs(c); saw != want {
					t.Errorf("an empty one had %q, want %q", saw, want)
				}
				// What does not change is not put again, nor here.
				r.forget()
				runs(c)
				if _, manifests, _ := r.forget(); manifests != 2 {
					t.Errorf("%d manifests were put, not those of the step's result alone", manifests)
				}
				// What has come is no link to what came.
				if sharing != "private" {
					use, err := c.Store.OpenCache(t.Context(), c.domain(), "c", sharing)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(use.Shared, "b"), []byte("changed"), 0o644); err != nil {
						t.Fatal(err)
					}
					use.Close()
					for problem, err := range c.Store.Verify(t.Context()) {
						t.Errorf("the store: %v, %v", problem, err)
					}
					layers, err := filepath.Glob(filepath.Join(c.Store.Dir(), "layers/*/fs/b"))
					if err != nil || len(layers) == 0 {
						t.Fatalf("no layer has the file: %v", err)
					}
					for _, name := range layers {
						if text, err := os.ReadFile(name); string(text) != "b" {
							t.Errorf("the layer %s has %q, %v", name, text, err)
						}
					}
				}
			})
		}
	}
}

// A union loses nothing that others publish while it is merged and put.
func TestUnionRace(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			r := &spyRepo{}
			done := false
			push := func() {
				m := newMachine(t).share(r)
				m.Travels = map[string]publish.Travel{"c": publish.LastWins} // somebody who does not merge
				m.leave("c", "", "theirs")
				m.run(`((from scratch) (run (cache (c (target /c))) (shell "echo theirs")))`)
				done = true
			}
			m := newMachine(t)
			race := &racingRepo{spyRepo: r, sent: push}
			if when == "after" {
				race.sent, race.put = nil, push
			}
			m.Caches = []*registry.Cache{{Repo: race, Store: m.Store, Warn: m.told.add}}
			m.Travels = map[string]publish.Travel{"c": publish.Union}
			m.Push = build.PushRequire
			m.leave("c", "", "ours")
			m.run(`((from scratch) (run (cache (c (target /c))) (shell "echo ours")))`)

			other := newMachine(t).share(r)
			other.Travels = m.Travels
			other.run(`((from scratch) (run (cache (c (target /c))) (shell "echo other")))`)
			if got := other.holds("c", ""); got != "ours theirs" || !done {
				t.Errorf("there is %q", got)
			}
		})
	}
}

// A name that no step has is told of.
func TestShareMountsTells(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	m := newMachine(t).share(r)
	m.Travels = map[string]publish.Travel{"c": publish.LastWins, "nosuch": publish.Union}
	const text = `((from scratch) (run (cache (c (target /c)) (b (target /b))) (shell "true")))`
	o := m.run(text)
	want := []string{"no step has the cache mount nosuch that is to be shared: there is b, c"}
	if w := o.warnings(); !slices.Equal(w, want) {
		t.Errorf("warned %q, want %q", w, want)
	}
}

// A directory that a step of another build has does not hold this one up for hours.
func TestShareBusyMount(t *testing.T) {
	t.Parallel()
	m := newMachine(t).share(&spyRepo{})
	m.Travels = map[string]publish.Travel{"c": publish.LastWins}
	use, err := m.another().Store.OpenCache(t.Context(), m.domain(), "c", "locked")
	if err != nil {
		t.Fatal(err)
	}
	defer use.Close()
	o := m.run(`((from scratch) (run (cache (c (target /c) (buildkit_options ((sharing locked))))) (shell "true")))`)
	want := []string{"share cache mount c: it is in use by steps of other builds"}
	if w := o.warnings(); !slices.Equal(w, want) {
		t.Errorf("warned %q, want %q", w, want)
	}
}
