package build

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
)

// A Status says where the result of a step is, and what a run would do.
type Status struct {
	Step  *keys.Step
	Key   string        // content key if it is known, else the input key
	Where string        // "store", or "" for nowhere
	Run   bool          // a run would execute it
	Took  time.Duration // when it ran, if that is recorded
}

// A BaseStatus says what a run would pull for a stage: its base image, or the state in a cache that it goes on from.
type BaseStatus struct {
	Stage *keys.Stage
	Where string // "store", the name of a cache, or "" for not here
	Pull  int64  // bytes that a run would pull
}

// Status looks a plan up, and runs and pulls nothing. Statuses are in the order of p.Steps, and of p.Stages.
// Events hears of warnings alone.
func (b *Builder) Status(ctx context.Context, p *keys.Plan) ([]Status, []BaseStatus, error) {
	places := b.places(func(msg string) {
		if b.Events != nil {
			b.Events(Event{Kind: Warned, Time: time.Now(), Message: msg})
		}
	})
	steps := make([]Status, len(p.Steps))
	for i, s := range p.Steps {
		steps[i] = Status{Step: s, Key: s.Key.String()}
	}
	reached, err := b.reach(ctx, places, p)
	if err != nil {
		return nil, nil, err
	}
	needed := map[*keys.Stage]bool{} // stages whose files a run needs
	opened := map[*keys.Stage]bool{} // needed stages in which a step runs
	var visit func(s *keys.Stage)
	visit = func(s *keys.Stage) {
		if needed[s] {
			return
		}
		needed[s] = true
		for _, step := range s.Steps[reached[s].top.Depth():] {
			opened[s] = true
			steps[step.Number-1].Run = true
			if step.From != nil {
				visit(step.From)
			}
		}
	}
	for _, s := range p.Stages {
		if s.Users == 0 {
			visit(s)
		}
	}
	var bases []BaseStatus
	for _, s := range p.Stages {
		at := reached[s]
		for i, known := range at.top.Steps() {
			st := &steps[s.Steps[i].Number-1]
			st.Key, st.Where, st.Took = known.Key.String(), known.Where, known.Took
		}
		st := BaseStatus{Stage: s}
		files := opened[s] || needed[s] && (len(s.Steps) == 0 || s.Users > 0)
		switch {
		case at.top != nil:
			st.Where = at.top.Where()
			if files && !at.top.Here() {
				st.Pull = b.absent(at.top.Layers())
			}
		case at.hasBase:
			st.Where = results.InStore
		case files:
			if at.err != nil {
				return nil, nil, fmt.Errorf("size of base image %s: %w", s.Spec.From.Image, at.err)
			}
			st.Pull = at.missing
		}
		bases = append(bases, st)
	}
	return steps, bases, nil
}

// A reach is how far a stage is known: the deepest result, and if there is none, what of the base image is not here.
type reach struct {
	top     *results.Result
	hasBase bool
	missing int64 // bytes
	err     error // of finding that out
}

// reach looks all stages up by input key, at the same time.
func (b *Builder) reach(ctx context.Context, places *results.Places, p *keys.Plan) (map[*keys.Stage]reach, error) {
	var mu sync.Mutex
	reached := map[*keys.Stage]reach{}
	sure := b.firstUnsure(p)
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range p.Stages {
		group.Go(func() (err error) {
			var r reach
			if r.top, err = places.Find(ctx, results.Inputs(s, sure[s])); err != nil {
				return err
			}
			if r.top == nil {
				_, base := places.Record(s.BaseKey)
				if r.hasBase = base != nil; !r.hasBase {
					r.missing, r.err = b.Images.Missing(ctx, s.Base)
				}
			}
			mu.Lock()
			reached[s] = r
			mu.Unlock()
			return nil
		})
	}
	return reached, group.Wait()
}

// absent is how many bytes of layers are not in the store.
func (b *Builder) absent(chain []layers.Layer) int64 {
	var sum int64
	for _, l := range chain {
		if _, ok := b.Store.HasBlob(l.Blob.Digest); !ok && !b.Store.HasLayer(layers.DirName(l.DiffID)) {
			sum += l.Blob.Size
		}
	}
	return sum
}

// An Explanation says why a step misses.
type Explanation struct {
	Step    *keys.Step // the first that misses
	Nearest string     // key of the recorded result that is most like it; "" if there is none
	Created time.Time  // of Nearest
	Reasons []string   // what differs, a sentence each
}

// Explain finds the first step that a run would execute, and the recorded result most like it; nil if all hit.
func (b *Builder) Explain(ctx context.Context, p *keys.Plan) (*Explanation, error) {
	statuses, _, err := b.Status(ctx, p)
	if err != nil {
		return nil, err
	}
	var miss *keys.Step
	for _, s := range statuses {
		if s.Run {
			miss = s.Step
			break
		}
	}
	if miss == nil {
		return nil, nil
	}
	ex := &Explanation{Step: miss}
	var nearest []byte
	var like *results.Record
	best := keys.Unrelated - 1 // another kind of step explains nothing
	for info, err := range b.Store.Results() {
		if err != nil {
			return nil, fmt.Errorf("list results: %w", err)
		}
		if info.Result.Alias != "" || ctx.Err() != nil {
			continue
		}
		rec, err := results.DecodeRecord(info.Result)
		if err != nil || rec.Parent == "" && rec.Pulled == nil {
			continue
		}
		was := rec.Preimage
		if rec.Input != "" {
			was = rec.Input
		}
		d := keys.Distance(miss.Preimage, []byte(was))
		if d > best || d == best && !info.Result.Created.After(ex.Created) {
			continue
		}
		best, nearest, like, ex.Nearest, ex.Created = d, []byte(was), rec, info.Result.Key, info.Result.Created
	}
	if nearest == nil {
		return ex, ctx.Err()
	}
	if ex.Reasons, err = keys.Diff(miss.Preimage, nearest); err != nil {
		return nil, fmt.Errorf("compare step %d with result %s: %w", miss.Number, ex.Nearest, err)
	}
	if base := b.baseReasons(miss, like); len(base) > 0 {
		ex.Reasons = append(base, slices.DeleteFunc(ex.Reasons, keys.IsParent)...)
	}
	return ex, ctx.Err()
}

// baseReasons says what differs between the base image that a stage's first step stands on and the one that a recorded step stood on. It says
// nothing of steps that stand on other steps, or where the base of the recorded one is not known.
func (b *Builder) baseReasons(miss *keys.Step, was *results.Record) []string {
	if miss.Index != 0 {
		return nil
	}
	now := baseRef(miss.Stage.Base)
	if p := was.Pulled; p != nil {
		if len(p.Steps) != 1 || p.BaseRef == "" || p.BaseRef == now {
			return nil
		}
		return []string{fmt.Sprintf("base image %s is now %s", p.BaseRef, now)}
	}
	base, err := b.Record(was.Parent)
	if err != nil || base.Config == nil || base.Parent != "" || base.Pulled != nil {
		return nil
	}
	changes, err := keys.Diff(miss.Stage.Preimage, []byte(base.Preimage))
	if err != nil {
		return nil
	}
	for i, c := range changes {
		switch {
		case strings.HasPrefix(c, "digest: "):
			changes[i] = fmt.Sprintf("base image %s is now %s", cmp.Or(strings.TrimSuffix(base.Ref, "@"), "scratch"), now)
		case strings.HasPrefix(c, "salt: "):
			changes[i] = "--" + c
		}
	}
	return changes
}

// baseRef is how a base image is named for people: NAME@DIGEST, or scratch.
func baseRef(base keys.Base) string {
	if base.Digest == "" {
		return base.Ref
	}
	return base.Ref + "@" + base.Digest.String()
}

// Record reads the record of a key.
func (b *Builder) Record(key string) (*results.Record, error) {
	id, err := keys.ParseID(key)
	if err != nil {
		return nil, err
	}
	_, rec := b.places(nil).Record(id)
	if rec == nil {
		return nil, fmt.Errorf("result %s: %w", key, cas.ErrNotFound)
	}
	return rec, nil
}
