package results

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// fromCache is the result that a cache describes. Its files are not here yet.
func fromCache(c *registry.Cache, res *registry.Result) *Result {
	return &Result{Key: res.Key, cache: c, remote: res, Record: &Record{
		Op:       res.Steps[len(res.Steps)-1].Op,
		Preimage: res.Preimage,
		ID:       pulledID(res.Layers),
		Layers:   res.Layers,
		Took:     res.Took,
		Pulled: &Pulled{
			Base: res.Base, BaseRef: res.BaseRef, Steps: res.Steps, Others: res.Others, Envelope: res.Envelope,
		},
	}}
}

// ToCache describes a result for a cache.
func (p *Places) ToCache(r *Result) *registry.Result {
	res := &registry.Result{Key: r.Key, Preimage: r.Record.Preimage, Others: p.others(r), Took: r.Record.Took}
	if base := r.BaseConfig(); base != nil {
		res.Platform = base.Platform
	}
	res.Config = r.Config(res.Platform)
	res.Base, res.BaseRef = r.Base()
	if r.Record.Pulled != nil {
		res.Envelope = r.Record.Pulled.Envelope
	}
	var chain []*Result
	for s := r; s != nil; s = s.Parent {
		chain = append(chain, s)
	}
	for _, s := range slices.Backward(chain) {
		for _, l := range s.Record.Layers {
			if !l.IsZero() {
				res.Layers = append(res.Layers, l)
			}
		}
		if s.Record.Pulled != nil {
			res.Steps = slices.Clone(s.Record.Pulled.Steps)
		} else if s.Parent != nil {
			step := s.step()
			step.Layers = len(res.Layers)
			res.Steps = append(res.Steps, step)
		}
	}
	return res
}

// FetchLogs brings the logs of a result of a cache into the store. What a step has printed belongs to its result: if that is lost, so is the result.
func (r *Result) FetchLogs(ctx context.Context) error { return r.cache.FetchLogs(ctx, r.remote) }

// Fetch brings a result of a cache into the store, with its logs, and records it there under its key and that by which it was found. With unpack, its
// layers come as files, else as bytes. Logs of up to inline bytes are kept in the record.
func (p *Places) Fetch(ctx context.Context, r *Result, unpack bool, inline int, progress layers.Progress) error {
	fetched, err := r.cache.Fetch(ctx, r.remote, unpack, progress)
	if err != nil {
		return err
	}
	pulled := *r.Record.Pulled
	if err := p.keepLogs(ctx, r.cache, &pulled, inline); err != nil {
		return err
	}
	rec, cfg := *r.Record, r.remote.Config
	rec.Layers, rec.Config, rec.Pulled = fetched, &cfg, &pulled
	last := pulled.Steps[len(pulled.Steps)-1]
	rec.Log, rec.LogBlob = last.Log.Data, last.Log.Blob
	r.Record, r.fetched = &rec, true
	return p.Save(r, r.remote.Found)
}

// FetchBytes brings the bytes of layers that are here only unpacked, from the first cache that has what a result came from.
func (p *Places) FetchBytes(ctx context.Context, r *Result) error {
	r = r.bottom()
	if r.Record.Pulled == nil {
		return nil
	}
	l := p.loader()
	l.lost[r.Key] = true // it is not what the store has that is looked for
	_, err := p.farther(ctx, Query{Keys: []keys.ID{r.Key}, Use: func(ctx context.Context, same *Result) error {
		if same.Record.ID != r.Record.ID {
			return fmt.Errorf("cache %s has other files of %s: %w", same.Where(), r.Key, registry.ErrGone)
		}
		_, err := same.cache.Fetch(ctx, same.remote, false, nil)
		return err
	}}, l, 1, nil)
	return err
}

// OpenLog reads what a step has printed.
func (p *Places) OpenLog(ctx context.Context, s Step) (io.ReadCloser, error) {
	switch {
	case s.cache != nil:
		return s.cache.OpenLog(ctx, s.Log)
	case s.Log.Blob == "":
		return io.NopCloser(bytes.NewReader(s.Log.Data)), nil
	}
	return p.Store.Blob(s.Log.Blob)
}

// keepLogs brings the logs of a record's steps into the store. Those of up to inline bytes stay in memory.
func (p *Places) keepLogs(ctx context.Context, c *registry.Cache, pulled *Pulled, inline int) error {
	total, kept := NewLogTotal(p.LogLimit), map[digest.Digest]registry.Log{}
	pulled.Steps, pulled.Others = slices.Clone(pulled.Steps), slices.Clone(pulled.Others)
	for _, list := range [][]registry.Step{pulled.Steps, pulled.Others} {
		for i, step := range slices.Backward(list) { // the result's own log comes first
			d := step.Log.Desc.Digest
			if d == "" {
				continue
			}
			l, ok := kept[d]
			if !ok {
				var err error
				if l, err = p.keepLog(ctx, c, step.Log, total, inline); err != nil {
					return err
				}
				kept[d] = l
			}
			list[i].Log = l
		}
	}
	return nil
}

// keepLog brings a log into the store. One that is lost is empty from now on.
func (p *Places) keepLog(ctx context.Context, c *registry.Cache, l registry.Log, total *LogTotal, inline int) (registry.Log, error) {
	lost := func(err error) (registry.Log, error) {
		p.Warn("cache %s: a log is lost: %v", c.Name(), err)
		return registry.Log{}, ctx.Err()
	}
	r, err := c.OpenLog(ctx, l)
	if err != nil {
		return lost(err)
	}
	defer r.Close()
	limited := total.Next().Reader(r)
	data, err := io.ReadAll(io.LimitReader(limited, int64(inline)+1))
	if err != nil {
		return lost(err)
	}
	if len(data) <= inline {
		return registry.Log{Data: data}, nil
	}
	w, err := p.Store.NewBlob()
	if err != nil {
		return registry.Log{}, fmt.Errorf("keep a log: %w", err)
	}
	defer w.Close()
	if _, err := io.Copy(w, io.MultiReader(bytes.NewReader(data), limited)); err != nil {
		return lost(err)
	}
	d, _, err := w.Commit("")
	if err != nil {
		return registry.Log{}, fmt.Errorf("keep a log: %w", err)
	}
	return registry.Log{Blob: d}, nil
}
