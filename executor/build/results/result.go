package results

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// InStore is where results of the store are, for people.
const InStore = "store"

// A Result is the files of a root file system that was made before, and how they came about: a record, and the results below it. A nil Result is none.
type Result struct {
	Key    keys.ID // content key
	Record *Record
	Parent *Result // nil for a base, and for what came from a cache

	// Of what was found in a cache by this run.
	cache   *registry.Cache
	remote  *registry.Result // as the cache gave it
	fetched bool             // its files and logs are in the store by now
}

// Next is what a step makes of a result by adding a layer, which may be zero. rec says what the result does not know.
func (r *Result) Next(key keys.ID, l layers.Layer, rec Record) *Result {
	rec.Parent, rec.ParentID, rec.ID = r.Key.String(), r.Record.ID, filesID(r.Record.ID, l)
	rec.Local = cmp.Or(rec.Local, r.Local())
	if !l.IsZero() {
		rec.Layers = []layers.Layer{l}
	}
	return &Result{Key: key, Record: &rec, Parent: r}
}

// Where is where a result was found, for people.
func (r *Result) Where() string {
	if r.cache != nil {
		return r.cache.Name()
	}
	return InStore
}

// Here reports whether the files of a result are in the store.
func (r *Result) Here() bool { return r.cache == nil || r.fetched }

// Origin is the cache in which this run has found a result, and what that gave; nil for the store.
func (r *Result) Origin() (*registry.Cache, *registry.Result) { return r.cache, r.remote }

// Failed reports a result that is none: the step that would have made it has failed elsewhere, with this exit status.
func (r *Result) Failed() (exit int, failed bool) {
	if r == nil || r.remote == nil {
		return 0, false
	}
	return r.remote.Exit, r.remote.Exit != 0
}

// bottom is the result below all others: a base image, or what came from a cache.
func (r *Result) bottom() *Result {
	for r.Parent != nil {
		r = r.Parent
	}
	return r
}

// Base says how many layers of a result are its base image's, and where that can be had, if it is known.
func (r *Result) Base() (layers int, ref string) {
	rec := r.bottom().Record
	if rec.Pulled != nil {
		return rec.Pulled.Base, rec.Pulled.BaseRef
	}
	return len(rec.Layers), rec.Ref
}

// Pulled is what came with the lowest part of a result from a cache, if that is so.
func (r *Result) Pulled() *Pulled {
	if r == nil {
		return nil
	}
	return r.bottom().Record.Pulled
}

// Layers lists the layers of a result, base first.
func (r *Result) Layers() []layers.Layer {
	var n int
	for s := r; s != nil; s = s.Parent {
		n += len(s.Record.Layers)
	}
	all := make([]layers.Layer, n)
	for s := r; s != nil; s = s.Parent {
		n -= len(s.Record.Layers)
		copy(all[n:], s.Record.Layers)
	}
	return all
}

// Local says why no other machine may have a result, or one that it was made of; "" if any may.
func (r *Result) Local() string {
	for s := r; s != nil; s = s.Parent {
		switch p := s.Record.Pulled; {
		case s.Record.Local != "":
			return s.Record.Local
		case p != nil && p.Envelope == nil && s.Here():
			return "it came from a cache without what says who has made it"
		}
	}
	return ""
}

// Depth is how many steps led to a result.
func (r *Result) Depth() int {
	n := 0
	for s := r; s != nil; s = s.Parent {
		switch {
		case s.Record.Pulled != nil:
			n += len(s.Record.Pulled.Steps)
		case s.Record.Parent != "":
			n++
		}
	}
	return n
}

// A Step is what is known of a step that need not run.
type Step struct {
	registry.Step
	Where string // InStore, or the name of a cache

	cache *registry.Cache // that has its log; nil: the store
}

// Steps tells of all steps that led to a result, the first one first.
func (r *Result) Steps() []Step {
	all := make([]Step, r.Depth())
	for i, s := len(all), r; s != nil; s = s.Parent {
		if p := s.Record.Pulled; p != nil {
			for j, step := range p.Steps {
				all[j] = s.told(step)
			}
		} else if s.Record.Parent != "" {
			i--
			all[i] = Step{Step: s.step(), Where: InStore}
		}
	}
	return all
}

// told is what a result from a cache tells of a step.
func (r *Result) told(step registry.Step) Step {
	s := Step{Step: step, Where: r.Where()}
	if !r.Here() {
		s.cache = r.cache
	}
	return s
}

// step tells of the step that made a result.
func (r *Result) step() registry.Step {
	return registry.Step{
		Key: r.Key, Input: r.Input(), Op: r.Record.Op, Took: r.Record.Took,
		Log: registry.Log{Data: r.Record.Log, Blob: r.Record.LogBlob},
	}
}

// Input is the input key under which a result was asked for when it was made, if that is not its own key.
func (r *Result) Input() keys.ID {
	if r.Record.Input == "" {
		return keys.ID{}
	}
	id, err := keys.Sum([]byte(r.Record.Input))
	if err != nil {
		return keys.ID{}
	}
	return id
}

// Other is what a result tells of a step of another stage, which has led to it through copies, if it tells anything.
func (r *Result) Other(id keys.ID) (Step, bool) {
	unknown := registry.Step{Key: id}
	p := r.Pulled()
	if p == nil {
		return Step{Step: unknown, Where: InStore}, false
	}
	for _, o := range slices.Backward(p.Others) {
		if o.Key == id || o.Input == id {
			return r.bottom().told(o), true
		}
	}
	return r.bottom().told(unknown), false
}

// BaseConfig is the configuration that all steps above the bottom began with; nil if there is none.
func (r *Result) BaseConfig() *ocispec.Image { return r.bottom().Record.Config }

// Config is the image configuration of a result: that at the bottom, and what the steps above add. It is made of what is in the key and of
// whether a step changed anything: it holds no time.
func (r *Result) Config(p ocispec.Platform) ocispec.Image {
	var cfg ocispec.Image
	bottom := r.bottom()
	if bottom.Record.Config != nil {
		cfg = *bottom.Record.Config
	}
	cfg.Platform, cfg.Created = p, nil // of the base image, if at all
	var steps []*Result
	for s := r; s != bottom; s = s.Parent {
		steps = append(steps, s)
	}
	cfg.History = slices.Clone(cfg.History)
	for _, s := range slices.Backward(steps) {
		cfg.History = append(cfg.History, ocispec.History{CreatedBy: s.Record.Op, EmptyLayer: len(s.Record.Layers) == 0})
	}
	if r != bottom {
		SetContext(&cfg.Config, bottom.Record.Config, r.Record.Env)
	}
	return cfg
}

// SetContext sets what a container of an image starts with.
func SetContext(cfg *ocispec.ImageConfig, base *ocispec.Image, c keys.Context) {
	cfg.Env = Environ(base, c)
	cfg.WorkingDir = c.Workdir
	cfg.User = c.User.Name
	if cfg.User == "" {
		cfg.User = fmt.Sprintf("%d:%d", c.User.UID, c.User.GID)
	}
}

// Environ joins the spec's variables with the base image's, of which the last of a name counts. What has no name there, or no value, is no variable,
// and is left out: images have such entries.
func Environ(base *ocispec.Image, c keys.Context) []string {
	var env []string
	set := map[string]bool{}
	for _, v := range c.Env {
		env = append(env, v.Name+"="+v.Value)
		set[v.Name] = true
	}
	if base == nil {
		return env
	}
	from := len(env)
	for _, v := range slices.Backward(base.Config.Env) {
		if name, _, ok := strings.Cut(v, "="); ok && name != "" && !set[name] {
			set[name] = true
			env = append(env, v)
		}
	}
	slices.Reverse(env[from:])
	return env
}
