package build

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/registry"
)

// A stage is one stage of a run. It is built when something needs its files: nobody copies from it (the outermost
// stage, and nested ones that are built for their own sake), or a step that copies from it has missed.
type stage struct {
	*run
	*keys.Stage
	final future[*state]

	once    sync.Once
	pending int    // copies that may still need the stage; guarded by run.mu
	hearsay *state // a result that tells of the stage's steps; guarded by run.mu
	nextOp  int    // the first operation whose heading is not printed yet
}

// start builds the stage in the background, once.
func (s *stage) start(ctx context.Context) {
	s.once.Do(func() {
		s.final.done = make(chan struct{})
		s.group.Go(func() error {
			defer close(s.final.done)
			s.final.value, s.final.err = s.build(ctx)
			return s.final.err
		})
	})
}

// spare tells a stage that one of the copies from it is answered without it, by a result that knows others' steps.
// After the last one the stage is not built; its log is replayed as far as it is known.
func (s *stage) spare(ctx context.Context, by *state) {
	s.mu.Lock()
	s.pending--
	if by != nil && by.lowest().rec.Pulled != nil {
		s.hearsay = by.lowest()
	}
	last := s.pending == 0
	s.mu.Unlock()
	if !last {
		return
	}
	s.once.Do(func() {
		s.final.done = make(chan struct{})
		s.final.err = errors.New("stage " + s.Name + " was not needed")
		close(s.final.done)
		s.emit(Event{Kind: StageOpen, Stage: s.Stage})
		for i, f := range s.recall(ctx, s.hearsay) {
			step := s.Steps[i]
			s.hit(ctx, step, f)
			if step.From != nil {
				s.stages[step.From].spare(ctx, s.hearsay)
			}
		}
		s.headings(len(s.Spec.Ops))
		s.emit(Event{Kind: StageDone, Stage: s.Stage})
	})
}

// build brings the stage to its end: from the deepest result that there is, step by step.
func (s *stage) build(ctx context.Context) (*state, error) {
	s.emit(Event{Kind: StageOpen, Stage: s.Stage})
	forced, noInput := s.firstForced(s.Stage), s.unsure[s.Stage]

	next, cur, err := s.resume(ctx, noInput)
	if err != nil {
		return nil, err
	}
	if cur.failed() {
		return nil, s.failAgain(ctx, 0, next-1, cur)
	}
	for _, step := range s.Steps {
		switch {
		case step.From == nil:
		case step.Index < next:
			s.stages[step.From].spare(ctx, cur)
		default:
			s.stages[step.From].start(ctx)
		}
	}
	s.hits(ctx, 0, next, cur)
	if next < len(s.Steps) {
		if err := s.prepare(); err != nil {
			return nil, err
		}
	}
	if cur == nil {
		if cur, err = s.base(ctx, s.Stage); err != nil {
			return nil, err
		}
	}

	var root root
	defer func() { _ = root.close() }()
	known := 0 // steps below this one have been looked up by content key
	for i := next; i < len(s.Steps); {
		step := s.Steps[i]
		s.headings(step.OpIndex + 1)
		w := work{step: step, parent: cur, forced: i >= forced}
		if step.From != nil {
			if err := s.readSources(ctx, &w); err != nil {
				return nil, errors.Join(err, w.close())
			}
		}
		w.id, w.preimage = step.ContentKey(cur.id, w.sources)
		if w.id != step.Key && i >= known && !w.forced {
			ids := s.contentKeys(i, forced, w)
			known = i + len(ids)
			n, top, err := s.byContent(ctx, i, ids)
			if err != nil {
				return nil, errors.Join(err, w.close())
			}
			if top.failed() {
				return nil, errors.Join(s.failAgain(ctx, i, i+n-1, top), w.close())
			}
			if n > 0 {
				err := s.learn(i, i+n, top)
				if err := errors.Join(err, w.close(), root.close()); err != nil {
					return nil, err
				}
				s.hits(ctx, i, i+n, top)
				cur, i = top, i+n
				continue
			}
		}
		made, err := s.step(ctx, &w, &root)
		if err := errors.Join(err, w.close()); err != nil {
			return nil, err
		}
		s.share(s, i, i, made)
		cur = made
		i++
	}
	s.headings(len(s.Spec.Ops))
	key := cur.id.String()
	s.mu.Lock()
	s.report.Results[s.Stage] = key
	if s.Parent == nil {
		s.report.Key, s.report.result = key, cur
	}
	s.mu.Unlock()
	s.emit(Event{Kind: StageDone, Stage: s.Stage, Key: key})
	return cur, nil
}

// prepare has the executor get ready, so that what its first step needs is there when the step is.
func (s *stage) prepare() error {
	if p, ok := s.Executor.(executor.Preparer); ok {
		return p.Prepare()
	}
	return nil
}

// needsFiles reports whether something beside the stage's own steps uses the files of its result.
func (s *stage) needsFiles() bool { return s.Users > 0 || s.Parent == nil && s.NeedFiles }

// resume looks for the deepest result by input key: in the store, and in the caches if those may have a deeper one. It
// tells the first step to do. The files of the result are in the store if they are needed.
func (s *stage) resume(ctx context.Context, limit int) (next int, top *state, err error) {
	next, top = s.deepest(s.Stage, 0, limit)
	if next == 0 && s.anyStep(limit) {
		// Steps are there whose base is lost: it can be had again, and they with it.
		if _, err := s.base(ctx, s.Stage); err != nil {
			return 0, nil, err
		}
		next, top = s.deepest(s.Stage, 0, limit)
	}
	ids := make([]keys.ID, 0, limit-next)
	for _, step := range s.Steps[next:limit] {
		ids = append(ids, step.Key)
	}
	n, pulled, err := s.ask(ctx, next, ids)
	if n > 0 {
		next, top = next+n, pulled
	}
	return next, top, err
}

// hits reports the steps in [from, to) as answered by what led to top.
func (s *stage) hits(ctx context.Context, from, to int, top *state) {
	if to <= from {
		return
	}
	for i, f := range s.facts(top, to)[from:] {
		s.hit(ctx, s.Steps[from+i], f)
	}
	s.share(s, from, to-1, top)
}

// learn points the input keys of the steps in [from, to) to the content keys under which they were found in the store.
func (s *stage) learn(from, to int, top *state) error {
	if top.remote != nil {
		return nil
	}
	for i, f := range s.facts(top, to)[from:] {
		if err := s.alias(s.Steps[from+i].Key, f.Key); err != nil {
			return err
		}
	}
	return nil
}

// anyStep reports whether any step has a record, whatever is below it.
func (s *stage) anyStep(limit int) bool {
	for _, step := range s.Steps[:limit] {
		if _, _, ok := s.find(step.Key); ok {
			return true
		}
	}
	return false
}

// deepest finds the last of a stage's steps in [from, to) that has a whole result under its input key. It gives the
// step's index plus one, or from and nil.
func (b *Builder) deepest(s *keys.Stage, from, to int) (int, *state) {
	l := loader{b, map[keys.ID]bool{}}
	for i := to - 1; i >= from; i-- {
		if top, _ := l.load(s.Steps[i].Key); top != nil {
			return i + 1, top
		}
	}
	return from, nil
}

// storeName is where results of the store are, for people.
const storeName = "store"

// A fact is what is known of a step that need not run.
type fact struct {
	registry.Step
	where string
	cache *registry.Cache // of the log, if it is not in the store
}

// facts tells what is known of the first n steps of a stage, the last of which gave top.
func (b *Builder) facts(top *state, n int) []fact {
	facts := make([]fact, n)
	for i, s := n-1, top; i >= 0 && s != nil; i, s = i-1, s.parent {
		if p := s.rec.Pulled; p != nil {
			for j := range min(i+1, len(p.Steps)) {
				facts[j] = fact{Step: p.Steps[j], where: s.where(), cache: s.logs()}
			}
			break
		}
		facts[i] = fact{Step: s.stepInfo(), where: storeName}
	}
	return facts
}

// recall tells what is known of the stage's steps when it is not built: what the store has, and what a result that came from
// a cache tells.
func (s *stage) recall(ctx context.Context, hearsay *state) []fact {
	next, top := s.deepest(s.Stage, 0, len(s.Steps))
	facts := s.facts(top, next)
	all := true
	for _, step := range s.Steps[next:] {
		f, ok := hearsay.heard(step)
		facts = append(facts, f)
		all = all && ok
	}
	if all {
		return facts
	}
	// A copy that was found by content knows the build that gave its files first, which may be another than this.
	for _, c := range s.Caches {
		if res, err := c.Find(ctx, []keys.ID{s.Key()}); err == nil && res != nil && res.Exit == 0 && len(res.Steps) == len(facts) {
			return s.facts(pulledState(c, res), len(facts))
		}
	}
	return facts
}

// stepInfo tells of the step that made a state.
func (s *state) stepInfo() registry.Step {
	return registry.Step{
		Key: s.id, Input: s.input(), Op: s.rec.Op, Took: s.rec.Took,
		Log: registry.Log{Data: s.rec.Log, Blob: s.rec.LogBlob},
	}
}

// input is the input key under which a state was asked for, if that is not its own key.
func (s *state) input() keys.ID {
	if s.rec.Input == "" {
		return keys.ID{}
	}
	id, err := keys.Sum([]byte(s.rec.Input))
	if err != nil {
		return keys.ID{}
	}
	return id
}

// heard is what a result from a cache (or nil) tells of a step in another stage, if it knows it.
func (s *state) heard(step *keys.Step) (f fact, ok bool) {
	if s == nil {
		return fact{Step: registry.Step{Key: step.Key}, where: storeName}, false
	}
	f = fact{Step: registry.Step{Key: step.Key}, where: s.where(), cache: s.logs()}
	for _, o := range s.rec.Pulled.Others {
		if o.Key == step.Key || o.Input == step.Key {
			f.Step, ok = o, true
		}
	}
	return f, ok
}

// contentKeys gives the content keys of the steps from i on, as far as they are known: up to limit, or to the next copy
// from a build.
func (s *stage) contentKeys(i, limit int, w work) []keys.ID {
	ids := []keys.ID{w.id}
	for j := i + 1; j < limit && s.Steps[j].From == nil; j++ {
		id, _ := s.Steps[j].ContentKey(ids[len(ids)-1], nil)
		ids = append(ids, id)
	}
	return ids
}

// byContent finds the deepest of consecutive content keys, the first of which is step i's, and tells how many steps
// it answers.
func (s *stage) byContent(ctx context.Context, i int, ids []keys.ID) (int, *state, error) {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	if err := s.holdKeys(names...); err != nil {
		return 0, nil, err
	}
	l := loader{s.Builder, map[keys.ID]bool{}}
	for n := len(ids); n > 0; n-- {
		if top, _ := l.load(ids[n-1]); top != nil {
			more, pulled, err := s.ask(ctx, i+n, ids[n:])
			if more > 0 {
				return n + more, pulled, err
			}
			return n, top, err
		}
	}
	return s.ask(ctx, i, ids)
}

// firstForced is the index of the first step that runs whatever the store has.
func (b *Builder) firstForced(s *keys.Stage) int {
	if b.NoCache {
		return 0
	}
	for i, step := range s.Steps {
		if b.Rebuild[step] {
			return i
		}
	}
	return len(s.Steps)
}

// firstUnsure gives, for each stage of a plan, the index of the first step whose input key says nothing, since something that
// it depends on runs again and may give other files.
func (b *Builder) firstUnsure(p *keys.Plan) map[*keys.Stage]int {
	first := make(map[*keys.Stage]int, len(p.Stages))
	for _, s := range p.Stages { // a stage comes after those that it copies from
		n := b.firstForced(s)
		for i, step := range s.Steps[:n] {
			if step.From != nil && first[step.From] < len(step.From.Steps) {
				n = i
				break
			}
		}
		first[s] = n
	}
	return first
}

// headings prints the headings of the operations before index to that are not printed yet.
func (s *stage) headings(to int) {
	for ; s.nextOp < to; s.nextOp++ {
		op := s.Spec.Ops[s.nextOp]
		ev := Event{Kind: OpOpen, Stage: s.Stage, Op: op, Workdir: s.Contexts[s.nextOp].Workdir}
		switch op.(type) {
		case *spec.Run, *spec.Copy:
			for _, step := range s.Steps {
				if step.OpIndex == s.nextOp {
					ev.Step = step
				}
			}
		}
		s.emit(ev)
	}
}

// hit reports a step that need not run, with the log of when it ran.
func (s *stage) hit(ctx context.Context, step *keys.Step, f fact) {
	s.headings(step.OpIndex + 1)
	s.replay(ctx, step, f, 0)
	s.emit(Event{
		Kind: Finished, Stage: s.Stage, Step: step, Key: f.Key.String(),
		Cached: true, Where: f.where, Took: f.Took,
	})
}

// A root is the root file system that a stage's steps run in, opened when the first one does.
type root struct{ executor.Root }

// open opens the files of a state.
func (b *Builder) open(ctx context.Context, r *root, s *state) error {
	if r.Root != nil {
		return nil
	}
	opened, err := b.Executor.Open(ctx, s.chain())
	if err != nil {
		return fmt.Errorf("open a root file system: %w", err)
	}
	r.Root = opened
	return nil
}

func (r *root) close() error {
	if r.Root == nil {
		return nil
	}
	err := r.Root.Close()
	r.Root = nil
	return err
}
