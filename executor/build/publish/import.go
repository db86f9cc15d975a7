package publish

import (
	"context"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
)

// Import brings results of the cache into the store: all that it has in its domains, or those of ids; with their logs, with their layers
// as bytes, which are unpacked when a step needs them, and with the base images that the cache has for them and what their names mean.
// After it, a build of the same steps hits without the cache, and without a network. What is broken in the cache is left out,
// with a warning.
func (t *Transfer) Import(ctx context.Context, ids []keys.ID) (Report, error) {
	in := &imports{Transfer: t, pulled: map[string]int64{}, brought: map[keys.ID]bool{}, bases: map[string]bool{}}
	moved, err := in.all(ctx, ids)
	for _, n := range in.pulled {
		moved.Bytes += n
	}
	for _, isNew := range in.brought {
		if isNew {
			moved.Results++
		} else {
			moved.Present++
		}
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return moved, t.Places.Store.Full(err)
}

// An imports is one call of Import.
type imports struct {
	*Transfer
	fetch cas.Once[keys.ID, struct{}] // by content key

	mu      sync.Mutex       // guards what follows
	pulled  map[string]int64 // bytes, by digest
	brought map[keys.ID]bool // what is in the store now, by content key; true: it was not
	bases   map[string]bool  // chains of base layers that results stand on
	missing []keys.ID
}

func (in *imports) all(ctx context.Context, ids []keys.ID) (moved Report, err error) {
	list := ids
	if len(ids) == 0 {
		list, err = in.Cache.Keys(ctx)
	}
	if err == nil {
		err = in.Places.Hold(list...)
	}
	if err != nil {
		return moved, err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(maxPushes)
	for _, id := range list {
		group.Go(func() error { return in.one(gctx, id) })
	}
	if err := group.Wait(); err != nil {
		return moved, err
	}
	if n := len(in.missing); n > 0 {
		in.Places.Warn("%d of %d results in %s cannot be used; the first is %s", n, len(list), in.Cache.Name(), in.missing[0])
	}
	wanted := func(chain []digest.Digest) bool { return in.bases[fmt.Sprint(chain)] }
	if len(ids) == 0 {
		wanted = nil
	}
	moved.Bases, err = in.Images.Import(ctx, in.Cache.Repo, wanted, in.progress, in.Cache.Warn)
	return moved, err
}

func (in *imports) progress(d digest.Digest, done, total int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.pulled[d.String()] = max(in.pulled[d.String()], done)
}

// sharedLog is how large a log may be to be repeated in the records of all steps that come after its own.
const sharedLog = 1 << 10

// one brings the result of a key, and notes that the key leads to it.
func (in *imports) one(ctx context.Context, id keys.ID) error {
	r, err := in.Places.Find(ctx, results.Query{Keys: []keys.ID{id}, Use: func(ctx context.Context, r *results.Result) error {
		_, err := in.fetch.Do(ctx, r.Key, func(ctx context.Context) (none struct{}, _ error) {
			in.mu.Lock()
			in.brought[r.Key] = true // before others can find it in the store
			in.mu.Unlock()
			err := in.Places.Fetch(ctx, r, false, sharedLog, in.progress)
			if err != nil {
				in.mu.Lock()
				delete(in.brought, r.Key)
				in.mu.Unlock()
			}
			return none, err
		})
		if err != nil {
			return err
		}
		return in.Places.Alias(id, r.Key)
	}})
	if err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if r == nil {
		in.missing = append(in.missing, id)
		return nil
	}
	if _, noted := in.brought[r.Key]; !noted {
		in.brought[r.Key] = false
	}
	base, _ := r.Base()
	in.bases[baseChain(r.Layers(), base)] = true
	return nil
}
