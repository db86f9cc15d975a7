package results

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
)

// A Query asks for the deepest result of consecutive steps of one stage.
type Query struct {
	Keys  []keys.ID // input keys or content keys, deepest first
	Depth int       // how many steps lead to the result of the first; 0: not known

	// Use makes what a cache has ready for who asks: what it needs of it is in the store afterwards. An error that wraps registry.ErrGone says that this cannot be
	// had, and the next best is looked for. Where Use is nil, nothing will be used: then nothing changes in the store, and all caches are asked at once.
	Use      func(ctx context.Context, r *Result) error
	Failures bool // a step that has failed elsewhere is an answer too, see Result.Failed

	// Base makes the base image be in the store, which has the key BaseKey. It is called if the store has lost that, but not what stands on it. May be nil.
	Base    func(ctx context.Context) error
	BaseKey keys.ID
}

// Inputs asks for the deepest of the first n steps of a stage by their input keys.
func Inputs(s *keys.Stage, n int) Query {
	q := Query{Depth: n}
	for _, step := range slices.Backward(s.Steps[:n]) {
		q.Keys = append(q.Keys, step.Key)
	}
	return q
}

// Find gives the deepest result that there is, from the nearest place that has it; nil if there is none. The error is ctx's, the store's, or of Use or Base.
func (p *Places) Find(ctx context.Context, q Query) (*Result, error) {
	l := p.loader()
	at, best, baseLost := l.deepest(q)
	if baseLost && best == nil && q.Base != nil {
		if err := q.Base(ctx); err != nil {
			return nil, err
		}
		l = p.loader()
		at, best, _ = l.deepest(q)
	}
	return p.farther(ctx, q, l, at, best)
}

// Nearest is Find in the store alone.
func (p *Places) Nearest(q Query) *Result {
	_, best, _ := p.loader().deepest(q)
	return best
}

// deepest gives the deepest result that the store has, and its index among the keys; their number if there is none.
func (l loader) deepest(q Query) (at int, best *Result, baseLost bool) {
	for i, id := range q.Keys {
		r, missing := l.load(id)
		if r != nil && q.fits(i, r.Depth()) {
			return i, r, baseLost
		}
		baseLost = baseLost || r == nil && missing == q.BaseKey
	}
	return len(q.Keys), nil, baseLost
}

// fits reports whether a result of so many steps can be that of a key.
func (q Query) fits(at, depth int) bool { return q.Depth == 0 || depth == q.Depth-at }

// farther asks the caches for results of keys before n, the index of the best one so far.
func (p *Places) farther(ctx context.Context, q Query, l loader, n int, best *Result) (*Result, error) {
	answers := make([]*registry.Result, len(p.Caches))
	if q.Use == nil && n > 0 {
		g, gctx := errgroup.WithContext(ctx)
		for i, c := range p.Caches {
			g.Go(func() (err error) {
				answers[i], err = c.Find(gctx, q.Keys[:n])
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
	}
	for i, c := range p.Caches {
		for from := 0; from < n; {
			res, err := answers[i], error(nil)
			if from > 0 || q.Use != nil {
				res, err = c.Find(ctx, q.Keys[from:n])
			}
			if err != nil {
				return nil, err
			}
			if res == nil {
				break
			}
			at := slices.Index(q.Keys[:n], res.Found)
			if at < from {
				break // not deeper than what a nearer cache has
			}
			r, err := p.take(ctx, q, l, at, c, res)
			if err != nil {
				return nil, err
			}
			if r != nil {
				n, best = at, r
			}
			from = at + 1
		}
	}
	return best, nil
}

// take gives what a cache has found for a key as a result; nil if it cannot be used.
func (p *Places) take(ctx context.Context, q Query, l loader, at int, c *registry.Cache, res *registry.Result) (*Result, error) {
	switch {
	case len(res.Steps) == 0 || !q.fits(at, len(res.Steps)):
		if q.Use != nil { // else whoever will use something is to be told
			p.Warn("cache %s: result %s has %d steps, which does not fit", c.Name(), res.Key, len(res.Steps))
			c.Refuse(res)
		}
		return nil, nil
	case res.Exit != 0 && !q.Failures:
		return nil, nil
	case res.Exit == 0:
		if q.Use != nil && res.Found != res.Key {
			if err := p.Hold(res.Key); err != nil {
				return nil, err
			}
		}
		if here, _ := l.load(res.Key); here != nil && q.fits(at, here.Depth()) { // then only what the key means was news
			if q.Use == nil {
				return here, nil
			}
			return here, p.Alias(res.Found, here.Key)
		}
	}
	r := fromCache(c, res)
	if q.Use == nil {
		return r, nil
	}
	err := q.Use(ctx, r)
	switch {
	case errors.Is(err, registry.ErrGone):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return r, nil
}
