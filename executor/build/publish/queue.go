package publish

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// headStart is what the next step has for its start, where it and a push would take turns: somebody waits for the step.
const headStart = 100 * time.Millisecond

// maxPushes is how many results are packed and pushed at once.
const maxPushes = 4

// A Queue packs and pushes results behind the build. Results wait in it without their files.
type Queue struct {
	places *results.Places
	to     *registry.Cache // the first
	packer *packer
	wait   bool
	told   func(sent int64, left int)
	jobs   chan job
	hurry  chan struct{} // closed when nothing else is waited for
	busy   sync.WaitGroup

	mu      sync.Mutex
	err     error // the first failure
	sent    int64
	left    int  // queued results that are not pushed yet
	awaited bool // nothing but the pushes is waited for
	dropped int  // results that were not pushed because the build was cancelled
}

// A job is something to publish, by push. Those before it are published if it is new to the cache.
type job struct {
	push   func(ctx context.Context) (sent int64, err error)
	before func(do func(job))
	untold bool          // waited for like others, but it is no result to tell of, or not known to be one
	unlost bool          // no result that others will not see if this is dropped
	added  time.Time     // to the queue
	done   chan struct{} // closed when that is so; nil: nobody waits
}

// NewQueue makes a queue that publishes in the first of the places' caches until ctx ends. With wait, each result is there when Publish returns. told
// hears how much was sent, and how many results are left, while Close waits.
func NewQueue(ctx context.Context, places *results.Places, c layers.Compression, wait bool, told func(sent int64, left int)) *Queue {
	q := &Queue{
		places: places,
		to:     places.Caches[0],
		packer: newPacker(places.Store, c),
		wait:   wait,
		told:   told,
		jobs:   make(chan job, 4096),
		hurry:  make(chan struct{}),
	}
	for range maxPushes {
		q.busy.Go(func() {
			for j := range q.jobs {
				if j.done == nil {
					select {
					case <-time.After(time.Until(j.added.Add(headStart))):
					case <-q.hurry:
					case <-ctx.Done():
					}
				}
				q.do(ctx, j)
				if !j.untold {
					q.count(-1)
				}
				if j.done != nil {
					close(j.done)
				}
			}
		})
	}
	return q
}

// Publish has a result published, that of the last of some steps of one stage, and those of the others, unless the cache turns out to have it
// already. made says that it is new: this run has made it.
func (q *Queue) Publish(r *results.Result, steps []*keys.Step, made bool) {
	step := steps[len(steps)-1]
	if c, found := r.Origin(); c != nil {
		q.forward(c, found, aliasOf(step, r))
		return
	}
	j := q.job(r, step, made)
	j.before = func(do func(job)) {
		for i, s := len(steps)-2, r.Parent; i >= 0 && s != nil && s.Record.Parent != ""; i, s = i-1, s.Parent {
			do(q.job(s, steps[i], true))
		}
	}
	q.add(j)
}

// PublishFailure has it published that a step has failed.
func (q *Queue) PublishFailure(res *registry.Result) {
	q.add(job{push: func(ctx context.Context) (int64, error) { return q.push(ctx, res) }})
}

// aliasOf is what the input key of a step means, if that is another one than its result's.
func aliasOf(step *keys.Step, r *results.Result) *registry.Result {
	if step.Key == r.Key {
		return nil
	}
	return &registry.Result{
		Key: step.Key, Alias: r.Key, Preimage: string(step.Preimage), Platform: step.Stage.Base.Platform,
	}
}

// job publishes one result, after a question if the cache may well have it: then packing its layers may be work for nothing.
func (q *Queue) job(r *results.Result, step *keys.Step, isNew bool) job {
	return job{untold: !isNew, push: func(ctx context.Context) (sent int64, err error) {
		if !isNew {
			found, err := q.to.Find(ctx, []keys.ID{r.Key})
			if err != nil {
				return 0, err
			}
			if found != nil && found.Exit == 0 {
				q.to.Touch(ctx, found) // this machine may never ask for it otherwise
				return q.pushAlias(ctx, aliasOf(step, r))
			}
			q.count(1)
			defer q.count(-1)
		}
		if sent, err = q.push(ctx, q.places.ToCache(r)); err != nil {
			return sent, err
		}
		more, err := q.pushAlias(ctx, aliasOf(step, r))
		return sent + more, err
	}}
}

// forward publishes what a result from a cache has made known: what another cache has is copied to the first one, whole, since it was
// not made here, and is not signed here; of what the first one has, it is noted that it was used, since garbage collection goes by that; and a result that was
// found by its content key becomes that of its input key.
func (q *Queue) forward(from *registry.Cache, found *registry.Result, alias *registry.Result) {
	if found.Found != found.Key {
		alias = nil // it was found by that
	}
	j := job{unlost: from == q.to && alias == nil}
	j.untold = j.unlost
	j.push = func(ctx context.Context) (sent int64, err error) {
		if from == q.to {
			q.to.Touch(ctx, found)
		} else {
			ids := []keys.ID{found.Found}
			for _, step := range slices.Concat(found.Steps, found.Others) { // what a change in an earlier step goes on from
				ids = append(ids, step.Key)
			}
			rep, err := registry.Copy(ctx, from, q.to, ids)
			if err != nil {
				return rep.Sent, err
			}
			sent = rep.Sent
		}
		more, err := q.pushAlias(ctx, alias)
		return sent + more, err
	}
	q.add(j)
}

func (q *Queue) pushAlias(ctx context.Context, alias *registry.Result) (int64, error) {
	if alias == nil {
		return 0, nil
	}
	return q.to.Push(ctx, alias)
}

// push packs what is not packed yet of a result, and pushes it.
func (q *Queue) push(ctx context.Context, res *registry.Result) (int64, error) {
	for i, l := range res.Layers {
		packed, err := q.packer.pack(ctx, l)
		if err != nil {
			return 0, fmt.Errorf("pack a layer of %s: %w", res.Key, err)
		}
		res.Layers[i] = packed
	}
	return q.to.Push(ctx, res)
}

// count notes that more results, or fewer, are to be pushed, and tells when that is what the build waits for.
func (q *Queue) count(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.left += n
	if q.awaited {
		q.told(q.sent, q.left)
	}
}

// add queues a job. Failures come with Close.
func (q *Queue) add(j job) {
	if !j.untold {
		q.count(1)
	}
	j.added = time.Now()
	if q.wait {
		j.done = make(chan struct{})
	}
	q.jobs <- j
	if j.done != nil {
		<-j.done
	}
}

// Close ends the queue, and waits for what is in it. It gives how many bytes were sent, how many results were not because ctx has ended, and the first
// failure, of which Places.Warned has heard.
func (q *Queue) Close() (sent int64, dropped int, err error) {
	close(q.jobs)
	close(q.hurry)
	q.mu.Lock()
	q.awaited = true
	waiting := q.left > 0
	q.mu.Unlock()
	if waiting {
		q.count(0)
	}
	q.busy.Wait()
	return q.sent, q.dropped, q.err
}

func (q *Queue) do(ctx context.Context, j job) {
	var sent int64
	err := ctx.Err()
	if err == nil {
		sent, err = j.push(ctx)
	}
	q.mu.Lock()
	q.sent += sent
	first := err != nil && ctx.Err() == nil && q.err == nil
	switch {
	case first:
		q.err = err
	case err != nil && ctx.Err() != nil && !j.unlost:
		q.dropped++
	}
	q.mu.Unlock()
	if first {
		q.places.Warn("%v", err)
	}
	if err == nil && sent > 0 && j.before != nil {
		j.before(func(j job) { q.do(ctx, j) })
	}
}
