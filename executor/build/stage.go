package build

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// A stage is one stage of a run. It is built when something needs its files: nobody copies from it (the outermost
// stage, and nested ones that are built for their own sake), or a step that copies from it has missed.
type stage struct {
	*run
	*keys.Stage
	forced int // the first step that runs whatever there is
	sure   int // the first step whose input key says nothing, see Builder.firstUnsure

	once  sync.Once       // it is built, or released
	done  chan struct{}   // closed when the next two are there
	final *results.Result // of its last step
	err   error

	pending int             // copies that may still need the stage; guarded by run.mu
	toldBy  *results.Result // a result that came from a cache, and tells of the stage's steps; guarded by run.mu
	nextOp  int             // the first operation whose heading is not printed yet
	asked   int             // steps below this one have been looked up by content key
}

// start builds the stage in the background, once.
func (s *stage) start(ctx context.Context) {
	s.once.Do(func() {
		s.group.Go(func() error {
			defer close(s.done)
			s.final, s.err = s.build(ctx)
			return s.err
		})
	})
}

// wait gives the result of a stage that was started.
func (s *stage) wait(ctx context.Context) (*results.Result, error) {
	select {
	case <-s.done:
		return s.final, s.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// release tells a stage that one of the copies from it is answered without it, by a result that may know others' steps.
// After the last one the stage is not built; its log is replayed as far as it is known.
func (s *stage) release(ctx context.Context, by *results.Result) {
	s.mu.Lock()
	s.pending--
	if by.Pulled() != nil {
		s.toldBy = by
	}
	by = s.toldBy
	last := s.pending == 0
	s.mu.Unlock()
	if !last {
		return
	}
	s.once.Do(func() {
		s.err = errors.New("stage " + s.Name + " was not needed")
		close(s.done)
		s.emit(Event{Kind: StageOpen, Stage: s.Stage})
		for i, known := range s.knownSteps(ctx, by) {
			step := s.Steps[i]
			s.hit(ctx, step, known)
			if step.From != nil {
				s.stages[step.From].release(ctx, by)
			}
		}
		s.headings(len(s.Spec.Ops))
		s.emit(Event{Kind: StageDone, Stage: s.Stage})
	})
}

// build brings the stage to its end: from the deepest result that there is, step by step.
func (s *stage) build(ctx context.Context) (*results.Result, error) {
	s.emit(Event{Kind: StageOpen, Stage: s.Stage})
	cur, err := s.resume(ctx)
	if err != nil {
		return nil, err
	}
	next := cur.Depth()
	s.startOrRelease(ctx, next, cur)
	s.hits(ctx, 0, cur)
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
	for next < len(s.Steps) {
		if cur, err = s.advance(ctx, next, cur, &root); err != nil {
			return nil, err
		}
		next = cur.Depth()
	}
	s.headings(len(s.Spec.Ops))
	key := cur.Key.String()
	s.mu.Lock()
	s.report.Results[s.Stage] = key
	if s.Parent == nil {
		s.report.Key, s.report.result = key, cur
	}
	s.mu.Unlock()
	s.emit(Event{Kind: StageDone, Stage: s.Stage, Key: key})
	return cur, nil
}

// startOrRelease starts the builds that the steps from next on copy from, and releases those that the steps before do: by answers for these.
func (s *stage) startOrRelease(ctx context.Context, next int, by *results.Result) {
	for i, step := range s.Steps {
		switch {
		case step.From == nil:
		case i < next:
			s.stages[step.From].release(ctx, by)
		default:
			s.stages[step.From].start(ctx)
		}
	}
}

// advance gives what comes after a step: the result of that, which is looked for by content if its input key says nothing and made if there is none,
// or one of a later step.
func (s *stage) advance(ctx context.Context, i int, cur *results.Result, root *root) (next *results.Result, err error) {
	step := s.Steps[i]
	s.headings(step.OpIndex + 1)
	w := &work{step: step, parent: cur, forced: i >= s.forced}
	defer func() {
		if err = errors.Join(err, w.close()); err != nil {
			next = nil
		}
	}()
	if step.From != nil {
		if err := s.readSources(ctx, w); err != nil {
			return nil, err
		}
	}
	w.id, w.preimage = step.ContentKey(cur.Key, w.sources)
	if w.id != step.Key && i >= s.asked && !w.forced {
		top, err := s.byContent(ctx, w)
		if err != nil {
			return nil, err
		}
		if top != nil {
			s.hits(ctx, i, top)
			return top, root.close()
		}
	}
	made, err := s.step(ctx, w, root)
	if err != nil {
		return nil, err
	}
	s.publish(i, i+1, made)
	return made, nil
}

// prepare has the executor get ready, so that what its first step needs is there when the step is.
func (s *stage) prepare() error {
	if p, ok := s.Executor.(executor.Preparer); ok {
		return p.Prepare()
	}
	return nil
}

// needsFiles reports whether something beside the stage's own steps uses the files of its result.
func (s *stage) needsFiles() bool { return s.Users > 0 || s.Parent == nil && s.files }

// resume looks for the deepest result by input key.
func (s *stage) resume(ctx context.Context) (*results.Result, error) {
	q := results.Inputs(s.Stage, s.sure)
	q.BaseKey, q.Base = s.BaseKey, func(ctx context.Context) error { // it can be had again, and what stands on it with it
		_, err := s.base(ctx, s.Stage)
		return err
	}
	return s.find(ctx, 0, q)
}

// byContent looks for the deepest result by content key: of the step of w, and of those after it, up to the next copy from a build. What is found
// becomes what the input keys mean.
func (s *stage) byContent(ctx context.Context, w *work) (*results.Result, error) {
	first := w.step.Index
	ids := []keys.ID{w.id}
	for j := first + 1; j < s.forced && s.Steps[j].From == nil; j++ {
		id, _ := s.Steps[j].ContentKey(ids[len(ids)-1], nil)
		ids = append(ids, id)
	}
	s.asked = first + len(ids)
	if err := s.places.Hold(ids...); err != nil {
		return nil, err
	}
	slices.Reverse(ids)
	top, err := s.find(ctx, first, results.Query{Keys: ids, Depth: s.asked})
	if err != nil || top == nil || !top.Here() {
		return top, err
	}
	for i, r := top.Depth()-1, top; i >= first && r != nil; i, r = i-1, r.Parent {
		if err := s.places.Alias(s.Steps[i].Key, r.Key); err != nil {
			return nil, err
		}
	}
	return top, nil
}

// find looks a query up, to go on from what it finds after the first steps. If the deepest step has failed elsewhere, so does the stage.
func (s *stage) find(ctx context.Context, first int, q results.Query) (*results.Result, error) {
	q.Use, q.Failures = s.use, true
	top, err := s.places.Find(ctx, q)
	if exit, failed := top.Failed(); err == nil && failed {
		err = s.failAgain(ctx, first, exit, top)
	}
	return top, err
}

// use makes what a cache has ready: its logs, and its files if something uses them.
func (s *stage) use(ctx context.Context, r *results.Result) error {
	if err := r.FetchLogs(ctx); err != nil {
		return err
	}
	last := r.Depth() == len(s.Steps)
	if _, failed := r.Failed(); failed || last && !s.needsFiles() {
		return nil
	}
	if !last {
		if err := s.prepare(); err != nil {
			return err
		}
	}
	return s.places.Fetch(ctx, r, s.unpacks(), results.InlineLog, s.pulling(s.Stage))
}

// failAgain fails a step as it has failed elsewhere, after the steps from index first on that were before it.
func (s *stage) failAgain(ctx context.Context, first, exit int, r *results.Result) error {
	known := r.Steps()
	last := len(known) - 1
	for i, k := range known[first:last] {
		s.hit(ctx, s.Steps[first+i], k)
	}
	step := s.Steps[last]
	s.headings(step.OpIndex + 1)
	s.replay(ctx, step, known[last], 0)
	return &StepError{Step: step, Err: &executor.ExitError{Reason: executor.Exited, Code: exit}}
}

// hits reports the steps from index first on as answered by what led to top.
func (s *stage) hits(ctx context.Context, first int, top *results.Result) {
	known := top.Steps()
	if len(known) <= first {
		return
	}
	for i, k := range known[first:] {
		s.hit(ctx, s.Steps[first+i], k)
	}
	s.publish(first, len(known), top)
}

// hit reports a step that need not run, with the log of when it ran.
func (s *stage) hit(ctx context.Context, step *keys.Step, known results.Step) {
	s.headings(step.OpIndex + 1)
	s.replayed(ctx, step, known, 0)
}

// replayed reports a step that need not run after its heading, but for what was seen of its log already.
func (s *stage) replayed(ctx context.Context, step *keys.Step, known results.Step, seen int64) {
	s.replay(ctx, step, known, seen)
	s.emit(Event{
		Kind: Finished, Stage: s.Stage, Step: step, Key: known.Key.String(),
		Cached: true, Where: known.Where, Took: known.Took,
	})
}

// knownSteps tells what is known of the stage's steps when it is not built: what the store has, and what a result that came from
// a cache tells.
func (s *stage) knownSteps(ctx context.Context, by *results.Result) []results.Step {
	known := s.places.Nearest(results.Inputs(s.Stage, len(s.Steps))).Steps()
	all := true
	for _, step := range s.Steps[len(known):] {
		k, ok := by.Other(step.Key)
		known = append(known, k)
		all = all && ok
	}
	if all {
		return known
	}
	// A copy that was found by content knows the build that gave its files first, which may be another than this.
	if r, err := s.places.Find(ctx, results.Query{Keys: []keys.ID{s.Key()}, Depth: len(known)}); err == nil && r != nil {
		return r.Steps()
	}
	return known
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

// A root is the root file system that a stage's steps run in, opened when the first one does.
type root struct{ executor.Root }

// open opens the files of a result.
func (b *Builder) open(ctx context.Context, r *root, s *results.Result) error {
	if r.Root != nil {
		return nil
	}
	opened, err := b.Executor.Open(ctx, s.Layers())
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
