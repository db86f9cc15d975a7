package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// A Cache is where results are shared between machines. What is broken in it is a miss: Find's errors are ctx's, Fetch's
// are registry.ErrGone or ctx's. *registry.Cache is one, and says more.
type Cache interface {
	Name() string
	Find(ctx context.Context, ids []keys.ID) (*registry.Result, error)
	Fetch(ctx context.Context, r *registry.Result, unpack bool, p registry.Progress) ([]layers.Layer, error)
	OpenLog(ctx context.Context, l registry.Log) (io.ReadCloser, error)
	Push(ctx context.Context, r *registry.Result) (sent int64, err error)
}

// A PushMode says whether and how results are pushed to the first cache.
type PushMode string

const (
	PushBackground PushMode = "background" // behind the build, and waited for at its end; a failure is a warning. The default
	PushWait       PushMode = "wait"       // each step waits until its result is there; a failure is a warning
	PushNever      PushMode = "never"
	PushRequire    PushMode = "require" // behind the build; a failure fails it
)

// ask looks for the deepest of consecutive keys in the caches; the first key is that of step from. n tells how many of
// them the state answers. Its files are brought into the store if something will use them.
func (s *stage) ask(ctx context.Context, from int, ids []keys.ID) (n int, found *state, err error) {
	if len(ids) == 0 {
		return 0, nil, nil
	}
	for _, c := range s.Caches {
		for rest := ids[n:]; len(rest) > 0; {
			deepest := slices.Clone(rest)
			slices.Reverse(deepest)
			res, err := c.Find(ctx, deepest)
			if err != nil {
				return 0, nil, err
			}
			if res == nil {
				break
			}
			steps := len(res.Steps) - from // how many of ids it answers
			if steps <= n || steps > len(ids) {
				s.warn(s.Stage, "cache %s: result %s has %d steps, which does not fit", c.Name(), res.Key, len(res.Steps))
				break
			}
			st := pulledState(c, res)
			if s.needsFiles() || from+steps < len(s.Steps) {
				if err := s.fetch(ctx, st); errors.Is(err, registry.ErrGone) {
					s.warn(s.Stage, "cache %s: %v", c.Name(), err)
					rest = ids[n : steps-1] // what is lost is lost: the next best
					continue
				} else if err != nil {
					return 0, nil, err
				}
			}
			n, found = steps, st
			break
		}
	}
	return n, found, nil
}

// pulledState is the state that a result from a cache describes. Its files are not here yet.
func pulledState(c Cache, res *registry.Result) *state {
	last := res.Steps[len(res.Steps)-1]
	cfg := res.Config
	return &state{id: res.Key, cache: c, remote: res, rec: &Record{
		Op:       last.Op,
		Preimage: res.Preimage,
		ID:       pulledID(res.Layers),
		Layers:   res.Layers,
		Config:   &cfg,
		Took:     res.Took,
		Log:      last.Log.Data,
		LogBlob:  last.Log.Blob,
		Pulled: &Pulled{
			Base: res.Base, BaseRef: res.BaseRef, Steps: res.Steps, Others: res.Others, Envelope: res.Envelope,
		},
	}}
}

// pulledID names the files of layers, wherever they come from.
func pulledID(chain []layers.Layer) string {
	id := "pulled"
	for _, l := range chain {
		id = stateID(id, layers.Layer{DiffID: l.DiffID})
	}
	return id
}

// fetch brings a state's files and logs from its cache into the store, and records it there.
func (s *stage) fetch(ctx context.Context, st *state) error {
	progress := func(d digest.Digest, done, total int64) {
		s.emit(Event{Kind: Pulling, Stage: s.Stage, Blob: d.String(), Bytes: done, Total: total})
	}
	fetched, err := st.cache.Fetch(ctx, st.remote, true, progress)
	if err != nil {
		return err
	}
	p := *st.rec.Pulled
	p.Steps, p.Others = slices.Clone(p.Steps), slices.Clone(p.Others)
	for _, list := range [][]registry.Step{p.Steps, p.Others} {
		for i := range list {
			if list[i].Log, err = s.keepLog(ctx, st.cache, list[i].Log); err != nil {
				return err
			}
		}
	}
	rec := *st.rec
	rec.Layers, rec.Pulled = fetched, &p
	last := p.Steps[len(p.Steps)-1]
	rec.Log, rec.LogBlob = last.Log.Data, last.Log.Blob
	st.rec, st.cache = &rec, nil
	return s.save(st, s.Steps[len(p.Steps)-1].Key)
}

// keepLog brings a log into the store. One that is lost is empty from now on.
func (s *stage) keepLog(ctx context.Context, c Cache, l registry.Log) (registry.Log, error) {
	if l.Desc.Digest == "" || len(l.Data) > 0 {
		return registry.Log{Data: l.Data, Blob: l.Blob}, nil
	}
	r, err := c.OpenLog(ctx, l)
	if err != nil {
		s.warn(s.Stage, "cache %s: a log is lost: %v", c.Name(), err)
		return registry.Log{}, ctx.Err()
	}
	defer r.Close()
	w, err := s.Store.NewBlob()
	if err != nil {
		return registry.Log{}, fmt.Errorf("keep a log: %w", err)
	}
	defer w.Close()
	if _, err := io.Copy(w, r); err != nil {
		s.warn(s.Stage, "cache %s: a log is lost: %v", c.Name(), err)
		return registry.Log{}, ctx.Err()
	}
	d, _, err := w.Commit("")
	if err != nil {
		return registry.Log{}, fmt.Errorf("keep a log: %w", err)
	}
	return registry.Log{Blob: d}, nil
}

// note remembers what is known of a step, for the results that depend on it.
func (s *stage) note(known registry.Step, step *keys.Step) {
	if known.Key != step.Key {
		known.Input = step.Key
	}
	known.Layers = -1
	s.mu.Lock()
	s.done = append(s.done, known)
	s.mu.Unlock()
}

// others lists the steps of the stages that the first n steps of this one copy from, in the order of the log.
func (s *stage) others(n int) []registry.Step {
	used := map[*keys.Stage]bool{}
	var visit func(steps []*keys.Step)
	visit = func(steps []*keys.Step) {
		for _, step := range steps {
			if step.From != nil && !used[step.From] {
				used[step.From] = true
				visit(step.From.Steps)
			}
		}
	}
	visit(s.Steps[:n])
	var all []registry.Step
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.plan.Stages {
		if used[st] {
			all = append(all, s.stages[st].done...)
		}
	}
	return all
}

// result describes a state for a cache.
func (s *stage) result(index int, st *state) *registry.Result {
	res := &registry.Result{
		Key:      st.id,
		Preimage: st.rec.Preimage,
		Platform: s.Base.Platform,
		Config:   st.config(s.Base.Platform),
		BaseRef:  s.Base.Ref,
		Others:   s.others(index + 1),
		Took:     st.rec.Took,
	}
	var states []*state
	for t := st; t != nil; t = t.parent {
		states = append(states, t)
	}
	for _, t := range slices.Backward(states) {
		for _, l := range t.rec.Layers {
			if !l.IsZero() {
				res.Layers = append(res.Layers, l)
			}
		}
		switch {
		case t.rec.Pulled != nil:
			res.Base, res.BaseRef = t.rec.Pulled.Base, t.rec.Pulled.BaseRef
			res.Steps = slices.Clone(t.rec.Pulled.Steps)
		case t.rec.Parent == "":
			res.Base = len(res.Layers)
		default:
			info := t.stepInfo()
			info.Layers = len(res.Layers)
			res.Steps = append(res.Steps, info)
		}
	}
	return res
}

// share has a state pushed to the first cache, and with it those of the steps from index from on that led to it, unless the
// cache turns out to have it already.
func (r *run) share(s *stage, from, index int, st *state) {
	if r.pusher == nil || st.remote != nil {
		return
	}
	job := s.push(index, st)
	for i, t := index-1, st.parent; i >= from && t != nil && t.rec.Parent != ""; i, t = i-1, t.parent {
		job.before = append(job.before, s.push(i, t))
	}
	r.pusher.add(job)
}

func (s *stage) push(index int, st *state) push {
	job := push{res: s.result(index, st)}
	if step := s.Steps[index]; step.Key != st.id {
		job.alias = &registry.Result{
			Key: step.Key, Alias: st.id, Preimage: string(step.Preimage), Platform: s.Base.Platform,
		}
	}
	return job
}

// A pusher packs and pushes results behind the build. Results wait in a queue that holds no files.
type pusher struct {
	run   *run
	cache Cache
	ctx   context.Context
	queue chan push
	busy  sync.WaitGroup
	cores *semaphore.Weighted // that pack, so that steps have the others

	mu     sync.Mutex
	packed map[string]*future[layers.Layer] // by layer directory
	err    error                            // the first failure
}

// A push is a result to push. Those before it are pushed if it is new to the cache.
type push struct {
	res    *registry.Result
	alias  *registry.Result // of the input key, if that is another one
	before []push
}

// maxPushes is how many results are packed and pushed at once.
const maxPushes = 4

func newPusher(ctx context.Context, r *run) *pusher {
	p := &pusher{
		run:    r,
		cache:  r.Caches[0],
		ctx:    ctx,
		queue:  make(chan push, 4096),
		cores:  semaphore.NewWeighted(max(1, int64(runtime.GOMAXPROCS(0))/2)),
		packed: map[string]*future[layers.Layer]{},
	}
	for range maxPushes {
		p.busy.Go(func() {
			for job := range p.queue {
				p.do(job)
			}
		})
	}
	return p
}

// add queues a result. Failures come with wait.
func (p *pusher) add(job push) {
	if p.run.Push == PushWait {
		p.do(job)
		return
	}
	p.queue <- job
}

// wait ends the queue, waits for what is in it, and gives the first failure.
func (p *pusher) wait() error {
	close(p.queue)
	p.busy.Wait()
	return p.err
}

func (p *pusher) do(job push) {
	if p.ctx.Err() != nil {
		return
	}
	sent, err := p.push(job)
	if err == nil && sent > 0 {
		for _, b := range job.before {
			p.do(b)
		}
	}
	if err == nil || p.ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	first := p.err == nil
	if first {
		p.err = fmt.Errorf("push to %s: %w", p.cache.Name(), err)
	}
	p.mu.Unlock()
	if first {
		p.run.warn(nil, "push to %s: %v", p.cache.Name(), err)
	}
}

func (p *pusher) push(job push) (int64, error) {
	for i, l := range job.res.Layers {
		packed, err := p.pack(l)
		if err != nil {
			return 0, fmt.Errorf("pack a layer of %s: %w", job.res.Key, err)
		}
		job.res.Layers[i] = packed
	}
	sent, err := p.cache.Push(p.ctx, job.res)
	if err == nil && job.alias != nil {
		var more int64
		more, err = p.cache.Push(p.ctx, job.alias)
		sent += more
	}
	p.run.mu.Lock()
	p.run.report.PushedBytes += sent
	p.run.mu.Unlock()
	return sent, err
}

// pack packs a layer once, however many results have it.
func (p *pusher) pack(l layers.Layer) (layers.Layer, error) {
	if l.Blob.Digest != "" {
		return l, nil
	}
	p.mu.Lock()
	f, ok := p.packed[l.Dir]
	if !ok {
		f = &future[layers.Layer]{done: make(chan struct{})}
		p.packed[l.Dir] = f
	}
	p.mu.Unlock()
	if ok {
		return f.wait(p.ctx)
	}
	defer close(f.done)
	if f.err = p.cores.Acquire(p.ctx, 1); f.err == nil {
		f.value, f.err = layers.Pack(p.ctx, p.run.Store, l, p.run.Compression)
		p.cores.Release(1)
	}
	return f.value, f.err
}
