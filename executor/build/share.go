package build

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// A PushMode says whether and how results are pushed to the first cache.
type PushMode string

const (
	PushBackground PushMode = "background" // behind the build, and waited for at its end; a failure is a warning. The default
	PushWait       PushMode = "wait"       // each step waits until its result is there; a failure is a warning
	PushNever      PushMode = "never"
	PushRequire    PushMode = "require" // behind the build; a failure fails it
)

// shareFailure has it pushed that a step's command has failed by itself, if nothing outside the key had a part in it.
func (s *stage) shareFailure(w *work, log *stepLog, err error) {
	var exit *executor.ExitError
	op, isRun := w.step.Op.(*spec.Run)
	if s.pusher == nil || !s.CacheFailures || !isRun || len(op.Network) > 0 || len(op.Secrets) > 0 ||
		!errors.As(err, &exit) || exit.Reason != executor.Exited || exit.Code < 1 || exit.Code > registry.MaxExit {
		return
	}
	rec := results.Record{
		Op: spec.HeadingIn(w.step.Env.Workdir, op), Preimage: string(w.preimage), Env: w.step.Env, Took: time.Since(log.start),
	}
	if rec.Log, rec.LogBlob, err = log.finish(s.Store); err != nil {
		s.warn(s.Stage, "%v", err)
		return
	}
	res := s.places.ToCache(w.parent.Next(w.id, layers.Layer{}, rec))
	res.Exit, res.Started = exit.Code, log.start
	s.pusher.add(push{key: w.id, result: func() *registry.Result { return res }})
}

// share has a state pushed to the first cache, and with it those of the steps from index from on that led to it, unless the
// cache turns out to have it already.
func (r *run) share(s *stage, from, index int, st *results.Result) {
	if r.pusher == nil {
		return
	}
	if c, found := st.Origin(); c != nil {
		r.forward(s, index, st, c, found)
		return
	}
	job := s.job(index, st)
	r.mu.Lock()
	job.old = r.made[st.Key] != st
	r.mu.Unlock()
	job.untold = job.old
	job.before = func(push func(push)) {
		for i, t := index-1, st.Parent; i >= from && t != nil && t.Record.Parent != ""; i, t = i-1, t.Parent {
			push(s.job(i, t))
		}
	}
	r.pusher.add(job)
}

// forward publishes what a result from a cache has made known: what another cache has is copied to the first one, whole, since it was
// not made here, and is not signed here; of what the first one has, it is noted that it was used; and a result that was found by its content key becomes that of its input key.
func (r *run) forward(s *stage, index int, st *results.Result, from *registry.Cache, found *registry.Result) {
	job := s.job(index, st)
	job.result = nil
	if found.Found != st.Key {
		job.alias = nil // it was found by that
	}
	to := r.Caches[0]
	if from == to { // garbage collection goes by when a result was used
		job.untold = job.alias == nil
		job.copy = func(ctx context.Context) (int64, error) {
			to.Touch(ctx, found)
			return 0, nil
		}
	} else {
		ids := []keys.ID{found.Found}
		for _, step := range slices.Concat(found.Steps, found.Others) { // what a change in an earlier step goes on from
			ids = append(ids, step.Key)
		}
		job.copy = func(ctx context.Context) (int64, error) {
			rep, err := registry.Copy(ctx, from, to, ids)
			return rep.Sent, err
		}
	}
	r.pusher.add(job)
}

func (s *stage) job(index int, st *results.Result) push {
	job := push{key: st.Key, result: func() *registry.Result { return s.places.ToCache(st) }}
	if step := s.Steps[index]; step.Key != st.Key {
		job.alias = &registry.Result{
			Key: step.Key, Alias: st.Key, Preimage: string(step.Preimage), Platform: s.Base.Platform,
		}
	}
	return job
}

// headStart is what the next step has for its start, where it and a push would take turns: somebody waits for the step.
const headStart = 100 * time.Millisecond

// A pusher packs and pushes results behind the build. Results wait in a queue that holds no files.
type pusher struct {
	run   *run
	cache *registry.Cache
	ctx   context.Context
	queue chan push
	hurry chan struct{} // closed when nothing else is waited for
	busy  sync.WaitGroup
	cores *semaphore.Weighted // that pack, so that steps have the others

	mu      sync.Mutex
	packed  map[string]*future[layers.Layer] // by layer directory
	err     error                            // the first failure
	left    int                              // queued results that are not pushed yet
	awaited bool                             // nothing but the pushes is waited for
	dropped int                              // results that were not pushed because the build was cancelled
}

// A push is a result to push. Those before it are pushed if it is new to the cache.
type push struct {
	key    keys.ID
	result func() *registry.Result                           // described when it is needed: that names all steps before it. nil: the alias alone
	alias  *registry.Result                                  // of the input key, if that is another one
	old    bool                                              // not made by this run: the cache may well have it
	untold bool                                              // waited for like others, but it is no result to tell of, or not known to be one
	copy   func(ctx context.Context) (sent int64, err error) // instead of all that: has it from another cache
	before func(push func(push))
	added  time.Time // to the queue
}

// maxPushes is how many results are packed and pushed at once.
const maxPushes = 4

func newPusher(ctx context.Context, r *run) *pusher {
	p := &pusher{
		run:    r,
		cache:  r.Caches[0],
		ctx:    ctx,
		queue:  make(chan push, 4096),
		hurry:  make(chan struct{}),
		cores:  semaphore.NewWeighted(max(1, int64(runtime.GOMAXPROCS(0))/2)),
		packed: map[string]*future[layers.Layer]{},
	}
	for range maxPushes {
		p.busy.Go(func() {
			for job := range p.queue {
				select {
				case <-time.After(time.Until(job.added.Add(headStart))):
				case <-p.hurry:
				case <-ctx.Done():
				}
				p.do(job)
				if !job.untold {
					p.count(-1)
				}
			}
		})
	}
	return p
}

// count notes that more results, or fewer, are to be pushed, and tells when that is what the build waits for.
func (p *pusher) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left += n
	if p.awaited {
		p.run.mu.Lock()
		sent := p.run.report.PushedBytes
		p.run.mu.Unlock()
		p.run.emit(Event{Kind: Pushing, Bytes: sent, Left: p.left})
	}
}

// add queues a result. Failures come with wait.
func (p *pusher) add(job push) {
	if p.run.Push == PushWait {
		p.do(job)
		return
	}
	if !job.untold {
		p.count(1)
	}
	job.added = time.Now()
	p.queue <- job
}

// wait ends the queue, waits for what is in it, and gives the first failure.
func (p *pusher) wait() error {
	close(p.queue)
	close(p.hurry)
	p.mu.Lock()
	p.awaited = true
	waiting := p.left > 0
	p.mu.Unlock()
	if waiting {
		p.count(0)
	}
	p.busy.Wait()
	return p.err
}

func (p *pusher) do(job push) {
	if p.ctx.Err() != nil {
		p.drop(job)
		return
	}
	sent, err := p.push(job)
	if err == nil && sent > 0 && job.before != nil {
		job.before(p.do)
	}
	if err == nil {
		return
	}
	if p.ctx.Err() != nil {
		p.drop(job)
		return
	}
	p.mu.Lock()
	first := p.err == nil
	if first {
		p.err = err
	}
	p.mu.Unlock()
	if first {
		p.run.warn(nil, "%v", err)
	}
}

// drop counts a result that others will not see.
func (p *pusher) drop(job push) {
	if job.result == nil && job.untold {
		return // the cache has it
	}
	p.mu.Lock()
	p.dropped++
	p.mu.Unlock()
}

func (p *pusher) push(job push) (sent int64, err error) {
	defer func() {
		p.run.mu.Lock()
		p.run.report.PushedBytes += sent
		p.run.mu.Unlock()
	}()
	there := job.result == nil
	if job.old { // then packing its layers may be work for nothing
		found, err := p.cache.Find(p.ctx, []keys.ID{job.key})
		if err != nil {
			return 0, err
		}
		there = found != nil && found.Exit == 0
		if there {
			p.cache.Touch(p.ctx, found) // this machine may never ask for it otherwise
		} else {
			p.count(1)
			defer p.count(-1)
		}
	}
	switch {
	case job.copy != nil:
		sent, err = job.copy(p.ctx)
	case !there:
		sent, err = p.pushResult(job.result())
	}
	if err != nil || job.alias == nil {
		return sent, err
	}
	more, err := p.cache.Push(p.ctx, job.alias)
	return sent + more, err
}

// pushResult packs what is not packed yet of a result, and pushes it.
func (p *pusher) pushResult(res *registry.Result) (int64, error) {
	for i, l := range res.Layers {
		packed, err := p.pack(l)
		if err != nil {
			return 0, fmt.Errorf("pack a layer of %s: %w", res.Key, err)
		}
		res.Layers[i] = packed
	}
	if res.Envelope == nil {
		return p.cache.Push(p.ctx, res)
	}
	return p.cache.Republish(p.ctx, res) // it was pulled by an earlier run: others' results are not for this one to sign
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
