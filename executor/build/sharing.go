package build

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build/publish"
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

// openQueue makes the queue of a run that publishes.
func (r *run) openQueue(ctx context.Context) {
	if len(r.Caches) == 0 || r.Push == PushNever {
		return
	}
	r.queue = publish.NewQueue(ctx, r.places, r.Compression, r.Push == PushWait, func(sent int64, left int) {
		r.emit(Event{Kind: Pushing, Bytes: sent, Left: left})
	})
}

// closeQueue waits until all is published, the cache mounts too.
func (r *run) closeQueue(ctx context.Context) error {
	if r.queue == nil {
		return nil
	}
	sent, dropped, err := r.queue.Close()
	switch {
	case dropped > 0:
		r.warn(nil, "interrupted before %d results were pushed: the next run pushes them", dropped)
		err = context.Cause(ctx)
	case r.Push != PushRequire:
		err = nil
	}
	more, merr := r.mounts.Push(ctx, func(err error) error {
		if r.Push != PushRequire {
			r.warn(nil, "%v", err)
			err = nil
		}
		return err
	})
	r.report.PushedBytes = sent + more
	return cmp.Or(err, merr)
}

// publish has the result of the stage's steps before index end published, and those of the steps from index first on that led to it.
func (s *stage) publish(first, end int, r *results.Result) {
	if s.queue == nil {
		return
	}
	if why := r.Local(); why != "" {
		s.localOnce.Do(func() { s.warn(s.Stage, "results are not pushed: %s", why) })
	}
	for ; r.Local() != ""; r = r.Parent {
		end--
	}
	if end <= first {
		return
	}
	s.mu.Lock()
	made := s.made[r.Key] == r
	s.mu.Unlock()
	s.queue.Publish(r, s.Steps[first:end], made)
}

// publishFailure has it published that a step's command has failed by itself, if nothing outside the key had a part in it.
func (s *stage) publishFailure(w *work, log *stepLog, err error) {
	var exit *executor.ExitError
	op, isRun := w.step.Op.(*spec.Run)
	if s.queue == nil || !s.CacheFailures || !isRun || len(w.refused) > 0 || w.parent.Local() != "" || len(op.Network) > 0 || len(op.Secrets) > 0 ||
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
	s.queue.PublishFailure(res)
}

// sharing is how a step shares a cache mount with others: "", "shared" or "locked".
func sharing(m spec.Mount) (how string) {
	for _, o := range m.Options {
		if o.Key == "sharing" && o.Value != "private" {
			how = o.Value
		}
	}
	return how
}

// bringMounts brings the cache mounts of a step here that travel.
func (r *run) bringMounts(ctx context.Context, op *spec.Run) error {
	for _, c := range op.Caches {
		if err := r.mounts.Bring(ctx, c.ID, sharing(c) != ""); err != nil {
			return err
		}
	}
	return nil
}

// checkTravels tells of cache mounts that are to travel and that no step has.
func (r *run) checkTravels() {
	var have []string
	for _, s := range r.plan.Steps {
		if op, ok := s.Op.(*spec.Run); ok {
			for _, c := range op.Caches {
				have = append(have, c.ID)
			}
		}
	}
	slices.Sort(have)
	has := "there is none"
	if len(have) > 0 {
		has = "there is " + strings.Join(slices.Compact(have), ", ")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Travels)) {
		if !slices.Contains(have, name) {
			r.warn(nil, "no step has the cache mount %s that is to be shared: %s", name, has)
		}
	}
}

// Export is publish.Transfer's, from the builder's store.
func (b *Builder) Export(ctx context.Context, p *keys.Plan, ids []keys.ID, to *registry.Cache, since time.Duration) (publish.Report, error) {
	places := b.places(func(msg string) {
		if to.Warn != nil {
			to.Warn("export to " + to.Name() + ": " + msg)
		}
	})
	if p != nil {
		if err := holdPlan(places, p); err != nil {
			return publish.Report{}, err
		}
	}
	t := &publish.Transfer{Places: places, Images: b.Images, Compression: b.Compression, Cache: to}
	return t.Export(ctx, p, ids, since)
}

// Import is publish.Transfer's, into the builder's store.
func (b *Builder) Import(ctx context.Context, from *registry.Cache, ids []keys.ID) (publish.Report, error) {
	places := b.places(from.Warn)
	places.Caches = []*registry.Cache{from}
	t := &publish.Transfer{Places: places, Images: b.Images, Cache: from}
	return t.Import(ctx, ids)
}
