package build

import (
	"context"
	"fmt"
	"time"

	"github.com/ocurrent/obx/keys"
)

// A Status says where the result of a step is, and what a run would do.
type Status struct {
	Step  *keys.Step
	Key   string        // content key if it is known, else the input key
	Where string        // "store", or "" for nowhere
	Run   bool          // a run would execute it
	Took  time.Duration // when it ran, if that is recorded
}

// A BaseStatus says what a run would pull for the base image of a stage.
type BaseStatus struct {
	Stage *keys.Stage
	Where string // "store", or "" for not here
	Pull  int64  // bytes that a run would pull; -1 if that is not known
}

// Status looks a plan up, and runs and pulls nothing. Statuses are in the order of p.Steps, and of p.Stages.
func (b *Builder) Status(ctx context.Context, p *keys.Plan) ([]Status, []BaseStatus, error) {
	steps := make([]Status, len(p.Steps))
	for i, s := range p.Steps {
		steps[i] = Status{Step: s, Key: s.Key.String()}
	}
	needed := map[*keys.Stage]bool{} // stages whose files a run needs
	opened := map[*keys.Stage]bool{} // needed stages in which a step runs
	var visit func(s *keys.Stage)
	visit = func(s *keys.Stage) {
		if needed[s] {
			return
		}
		needed[s] = true
		next, top := b.deepest(s, 0, b.firstUnsure(s))
		b.note(steps, s, top, next)
		for _, step := range s.Steps[next:] {
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
		if !needed[s] {
			next, top := b.deepest(s, 0, len(s.Steps))
			b.note(steps, s, top, next)
		}
		st := BaseStatus{Stage: s}
		if _, _, ok := b.find(s.BaseKey); ok {
			st.Where = "store"
		} else if opened[s] || needed[s] && len(s.Steps) == 0 {
			n, err := b.Images.Missing(ctx, s.Base)
			if err != nil {
				return nil, nil, fmt.Errorf("size of base image %s: %w", s.Spec.From.Image, err)
			}
			st.Pull = n
		}
		bases = append(bases, st)
	}
	return steps, bases, nil
}

// note fills in what is known of the first n steps of a stage, whose states end at top.
func (b *Builder) note(steps []Status, s *keys.Stage, top *state, n int) {
	for i, f := range b.facts(top, n) {
		st := &steps[s.Steps[i].Number-1]
		st.Key, st.Where, st.Took = f.Key.String(), f.where, f.Took
	}
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
	best := keys.Unrelated - 1 // another kind of step explains nothing
	for info, err := range b.Store.Results() {
		if err != nil {
			return nil, fmt.Errorf("list results: %w", err)
		}
		if info.Result.Alias != "" || ctx.Err() != nil {
			continue
		}
		rec, err := DecodeRecord(info.Result)
		if err != nil || rec.Config != nil {
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
		best, nearest, ex.Nearest, ex.Created = d, []byte(was), info.Result.Key, info.Result.Created
	}
	if nearest == nil {
		return ex, ctx.Err()
	}
	if ex.Reasons, err = keys.Diff(miss.Preimage, nearest); err != nil {
		return nil, fmt.Errorf("compare step %d with result %s: %w", miss.Number, ex.Nearest, err)
	}
	return ex, ctx.Err()
}
