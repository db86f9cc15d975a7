package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
)

// A Transfer moves results between the store and a cache.
type Transfer struct {
	Places      *results.Places // of Export: its caches are asked for what the store has lost. Of Import: Cache is its only one
	Images      *images.Resolver
	Compression layers.Compression // of layers that are packed
	Cache       *registry.Cache
}

// A Report says what a Transfer has moved. A failed one has moved that much.
type Report struct {
	Results int   // that were new there
	Present int   // that were there
	Bases   int   // base images
	Bytes   int64 // sent or fetched
}

// Export puts results of the store into a cache, each with its log and an image of all its layers; base images and what their
// names mean go with them, so that a machine that has only the cache can go on. Those of a plan's steps if p is given,
// else those of ids with all that they were made from, else all of the first domain. If since is not zero, only
// those that were made or used within it.
//
// What the cache has is not sent again. Base layers that are no longer in the store come from where the image is, results that came
// from another cache from there, if it can be reached, as they are: they keep their envelope, for only what was run here is signed
// here. What cannot be had as it was is left out, with a warning.
func (t *Transfer) Export(ctx context.Context, p *keys.Plan, ids []keys.ID, since time.Duration) (Report, error) {
	x := &export{
		Transfer: t, packer: newPacker(t.Places.Store, t.Compression),
		picked: map[keys.ID]*exported{}, names: map[string]images.Name{}, local: map[keys.ID]bool{},
	}
	err := x.pick(ctx, p, ids, since)
	if err == nil {
		err = x.move(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return x.report, t.Places.Store.Full(err)
}

// An export is one call of Export.
type export struct {
	*Transfer
	packer *packer
	recent map[keys.ID]bool // nil: all
	picked map[keys.ID]*exported
	order  []*exported            // those of picked, each after what it was made from
	names  map[string]images.Name // of bases; by name, platform and digest

	mu     sync.Mutex
	report Report
	lost   []error // why results are left out
	local  map[keys.ID]bool
}

// An exported is a result to export, with the input keys that lead to it.
type exported struct {
	*results.Result
	aliases []*registry.Result
}

// pick finds the results to export.
func (x *export) pick(ctx context.Context, p *keys.Plan, ids []keys.ID, since time.Duration) error {
	var infos []cas.ResultInfo // of the first domain
	if since > 0 || p == nil && len(ids) == 0 {
		if since > 0 {
			x.recent = map[keys.ID]bool{}
		}
		for info, err := range x.Places.Store.Results() {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("list results: %w", err)
			}
			id, err := keys.ParseID(info.Result.Key)
			if err != nil || info.Result.Alias != "" || !slices.Contains(x.Places.Domains, info.Domain) {
				continue
			}
			if since > 0 && time.Since(info.LastUsed) <= since {
				x.recent[id] = true
			}
			if info.Domain == x.Places.Domains[0] {
				infos = append(infos, info)
			}
		}
	}
	switch {
	case p != nil:
		return x.pickPlan(p)
	case len(ids) > 0:
		return x.pickKeys(ctx, ids)
	}
	return x.pickAll(ctx, infos)
}

// pickPlan picks the deepest results of all stages, and those below them.
func (x *export) pickPlan(p *keys.Plan) error {
	for _, s := range p.Stages {
		x.name(p.Platform, s.Base)
		for n := len(s.Steps); n > 0; { // below a result that came from a cache, there may be more of the store
			r := x.Places.Nearest(results.Inputs(s, n))
			for n = r.Depth(); n > 0 && r != nil; r = r.Parent {
				n--
				if e, alias := x.add(r), aliasOf(s.Steps[n], r); e != nil && alias != nil {
					e.aliases = append(e.aliases, alias)
				}
			}
		}
	}
	slices.Reverse(x.order)
	return nil
}

func (x *export) pickKeys(ctx context.Context, ids []keys.ID) error {
	if err := x.Places.Hold(ids...); err != nil {
		return err
	}
	for _, id := range ids {
		if err := x.below(ctx, id); err != nil {
			return err
		}
	}
	slices.Reverse(x.order)
	return x.recordedNames(ctx)
}

// pickAll picks all results that are whole. Those that others were made from come with these.
func (x *export) pickAll(ctx context.Context, infos []cas.ResultInfo) error {
	inner := map[string]bool{}
	for _, info := range infos {
		for _, parent := range info.Result.Parents {
			inner[parent] = true
		}
	}
	slices.SortStableFunc(infos, func(a, b cas.ResultInfo) int {
		switch in, other := inner[a.Result.Key], inner[b.Result.Key]; {
		case in == other:
			return 0
		case other:
			return -1
		}
		return 1
	})
	for _, info := range infos {
		id, err := keys.ParseID(info.Result.Key)
		if err != nil || x.picked[id] != nil || x.recent != nil && !x.recent[id] {
			continue // to look at an old result is to use it
		}
		if err := x.below(ctx, id); err != nil && !errors.Is(err, cas.ErrNotFound) {
			return err
		}
	}
	slices.Reverse(x.order)
	return x.recordedNames(ctx)
}

// below picks the result of a key, and all that it was made from.
func (x *export) below(ctx context.Context, id keys.ID) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	top, missing := x.Places.Load(id)
	if top == nil {
		return fmt.Errorf("result %s: %s: %w", id, missing, cas.ErrNotFound)
	}
	needed := x.recent == nil || x.recent[top.Key] // the base
	for st := top; st != nil; st = st.Parent {
		if st.Record.Pulled == nil && st.Parent == nil {
			ref, d, _ := strings.Cut(st.Record.Ref, "@sha256:")
			if needed && d != "" {
				platform := st.Record.Config.Platform
				x.name(platform, keys.Base{Ref: ref, Digest: digest.NewDigestFromEncoded(digest.SHA256, d), Platform: platform})
			}
			return nil
		}
		if x.picked[st.Key] != nil || x.local[st.Key] {
			return nil
		}
		if e := x.add(st); e != nil {
			needed = true
			if input := st.Input(); !input.IsZero() {
				e.aliases = append(e.aliases, &registry.Result{
					Key: input, Alias: st.Key, Preimage: st.Record.Input, Platform: st.BaseConfig().Platform,
				})
			}
		}
		for _, used := range st.Record.Uses {
			if err := x.below(ctx, used); err != nil && !errors.Is(err, cas.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// add picks a result; nil if it is too old, or not for others.
func (x *export) add(r *results.Result) *exported {
	if x.recent != nil && !x.recent[r.Key] {
		return nil
	}
	if why := r.Local(); why != "" {
		if !x.local[r.Key] {
			x.lost = append(x.lost, fmt.Errorf("result %s: %s", r.Key, why))
		}
		x.local[r.Key] = true
		return nil
	}
	e := x.picked[r.Key]
	if e == nil {
		e = &exported{Result: r}
		x.picked[r.Key] = e
		x.order = append(x.order, e)
	}
	return e
}

func (x *export) name(asked ocispec.Platform, base keys.Base) {
	if base.Digest != "" {
		x.names[fmt.Sprint(base.Ref, asked, base.Digest)] = images.Name{For: asked, Base: base}
	}
}

// recordedNames adds the names that the store knows of the bases: of those that results name, and, as what came from a cache does not
// tell its base, of images with the same layers.
func (x *export) recordedNames(ctx context.Context) error {
	known, err := x.Images.Names(ctx)
	if err != nil {
		return err
	}
	bases, chains := x.bases(), map[string]bool{}
	for _, e := range x.order {
		if p := e.Record.Pulled; p != nil && p.Base > 0 {
			chains[baseChain(e.Record.Layers, p.Base)] = true
		}
	}
	found := map[string]bool{}
	var unknown error // why a name could not be compared
	for _, n := range known {
		_, wanted := bases[n.Base.Digest]
		if len(chains) > 0 {
			blobs, err := x.Images.Blobs(ctx, n.Base)
			if chain := fmt.Sprint(blobs); err == nil && chains[chain] {
				found[chain], wanted = true, true
			}
			unknown = cmp.Or(unknown, err)
		}
		if wanted {
			x.name(n.For, n.Base)
		}
	}
	if lost := len(chains) - len(found); lost > 0 && ctx.Err() == nil {
		reason := "the store does not know what they are called"
		if unknown != nil {
			reason = unknown.Error()
		}
		x.Places.Warn("base images of results that came from a cache are left out (%d): %s", lost, reason)
	}
	return ctx.Err()
}

// baseChain names the layers of a base image.
func baseChain(chain []layers.Layer, base int) string {
	blobs := make([]digest.Digest, base)
	for i, l := range chain[:base] {
		blobs[i] = l.Blob.Digest
	}
	return fmt.Sprint(blobs)
}

// bases are the images that names mean.
func (x *export) bases() map[digest.Digest]keys.Base {
	bases := map[digest.Digest]keys.Base{}
	for _, n := range x.names {
		bases[n.Base.Digest] = n.Base
	}
	return bases
}

// move moves what was picked: first what others have made, for results that were made here may lack the bytes of layers below.
func (x *export) move(ctx context.Context) error {
	var pulled, made []*exported
	for _, e := range x.order {
		if e.Record.Pulled != nil {
			pulled = append(pulled, e)
		} else {
			made = append(made, e)
		}
	}
	left, err := x.forward(ctx, pulled)
	if err != nil {
		return err
	}
	if err := x.putBases(ctx); err != nil {
		return err
	}
	for _, batch := range [][]*exported{left, made} {
		group, gctx := errgroup.WithContext(ctx)
		group.SetLimit(maxPushes)
		for _, e := range batch {
			if err = x.prepare(gctx, e.Result); err != nil {
				break
			}
			res := x.Places.ToCache(e.Result)
			group.Go(func() error { return x.push(gctx, e, res) })
		}
		if err := cmp.Or(group.Wait(), err); err != nil {
			return err
		}
	}
	if len(x.lost) > 0 {
		x.Places.Warn("%d results are left out; the first: %v", len(x.lost), x.lost[0])
	}
	return nil
}

// forward copies results from the caches that they may have come from, and gives those that it could not copy.
func (x *export) forward(ctx context.Context, all []*exported) (left []*exported, err error) {
	for _, c := range x.Places.Caches {
		if len(all) == 0 {
			break
		}
		var ids, aliases []keys.ID
		for _, e := range all {
			ids = append(ids, e.Key)
			for _, a := range e.aliases {
				aliases = append(aliases, a.Key)
			}
		}
		r, err := registry.Copy(ctx, c, x.Cache, ids)
		x.report.Results += r.Copied
		x.report.Present += r.Present
		x.report.Bytes += r.Sent
		if err == nil {
			var more registry.CopyReport
			more, err = registry.Copy(ctx, c, x.Cache, aliases)
			x.report.Bytes += more.Sent
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil: // perhaps another cache has them
			x.Places.Warn("%v", err)
		default:
			all = slices.DeleteFunc(slices.Clone(all), func(e *exported) bool { return !slices.Contains(r.Missing, e.Key) })
		}
	}
	return all, nil
}

// putBases puts the base images, and what their names mean.
func (x *export) putBases(ctx context.Context) error {
	there := map[digest.Digest]bool{}
	for d, base := range x.bases() {
		sent, err := x.Images.PublishBase(ctx, x.Cache.Sender(), base)
		x.report.Bytes += sent
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			x.Places.Warn("a base image is left out: %v", err)
			continue
		case sent > 0:
			x.report.Bases++
		}
		there[d] = true
	}
	for _, n := range x.names {
		if !there[n.Base.Digest] {
			continue
		}
		sent, err := x.Images.PublishName(ctx, x.Cache.Sender(), n)
		x.report.Bytes += sent
		if err != nil {
			return err
		}
	}
	return nil
}

// prepare makes sure that the layers of a result have bytes, as far as that can be done, and keeps the packed form for the next
// time.
func (x *export) prepare(ctx context.Context, r *results.Result) error {
	err := x.Places.Pack(r, func(l layers.Layer) (layers.Layer, error) { return x.packer.pack(ctx, l) })
	if err != nil || r.Pulled() == nil {
		return err
	}
	bottom := r
	for bottom.Parent != nil {
		bottom = bottom.Parent
	}
	for _, l := range bottom.Record.Layers {
		if _, ok := x.Places.Store.HasBlob(l.Blob.Digest); ok {
			continue
		}
		if has, err := x.Cache.Repo.HasBlob(ctx, l.Blob); err != nil || !has {
			return x.Places.FetchBytes(ctx, r) // packed again, they would be others
		}
	}
	return nil
}

// push sends one result, and the aliases that lead to it.
func (x *export) push(ctx context.Context, e *exported, res *registry.Result) error {
	pulled := e.Record.Pulled != nil
	sent, err := x.Cache.Push(ctx, res)
	lost := err != nil && ctx.Err() == nil && (pulled || errors.Is(err, registry.ErrGone))
	x.mu.Lock()
	x.report.Bytes += sent
	switch {
	case lost:
		x.lost = append(x.lost, err)
	case err == nil && sent == 0:
		x.report.Present++
	case err == nil:
		x.report.Results++
	}
	x.mu.Unlock()
	if err != nil && !lost {
		return err
	}
	if err != nil || pulled && x.Cache.Signer != nil { // that others are right is not for this machine to sign
		return nil
	}
	for _, alias := range e.aliases {
		sent, err := x.Cache.Push(ctx, alias)
		x.mu.Lock()
		x.report.Bytes += sent
		x.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
