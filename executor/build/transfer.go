package build

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

// An ExportReport says what Export or Import has moved. A failed one has moved that much.
type ExportReport struct {
	Results int   // that were new there
	Present int   // that were there
	Bases   int   // base images
	Bytes   int64 // sent or fetched
}

// Export puts results of the store into a cache, each with its log and an image of all its layers; base images and what their
// names mean go with them, so that a machine that has only the cache can go on. Those of a plan's steps if p is given,
// else those of ids with all that they were made from, else all of the builder's first domain. If since is not zero, only
// those that were made or used within it.
//
// What the cache has is not sent again. Base layers that are no longer in the store come from where the image is, results that came
// from another cache from there, if it can be reached, as they are: they keep their envelope, for only what was run here is signed
// here. What cannot be had as it was is left out, with a warning to the cache's Warn.
func (b *Builder) Export(ctx context.Context, p *keys.Plan, ids []string, to *registry.Cache, since time.Duration) (ExportReport, error) {
	x := &export{Builder: b, to: to, picked: map[keys.ID]*exported{}, packed: map[string]layers.Layer{}, names: map[string]images.Name{}}
	x.places = b.places(func(msg string) { x.warn("%s", msg) })
	err := x.pick(ctx, p, ids, since)
	if err == nil {
		err = x.run(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return x.report, b.Store.Full(err)
}

// An export is one call of Export.
type export struct {
	*Builder
	places *results.Places
	to     *registry.Cache
	recent map[keys.ID]bool // nil: all
	picked map[keys.ID]*exported
	order  []*exported             // those of picked, each after what it was made from
	names  map[string]images.Name  // of bases; by name, platform and digest
	packed map[string]layers.Layer // by layer directory

	mu     sync.Mutex
	report ExportReport
	lost   []error // why results are left out
}

// An exported is a result to export, with the input keys that lead to it.
type exported struct {
	*results.Result
	aliases []*registry.Result
}

// pick finds the states to export.
func (x *export) pick(ctx context.Context, p *keys.Plan, ids []string, since time.Duration) error {
	var infos []cas.ResultInfo // of the first domain
	if since > 0 || p == nil && len(ids) == 0 {
		if since > 0 {
			x.recent = map[keys.ID]bool{}
		}
		for info, err := range x.Store.Results() {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("list results: %w", err)
			}
			id, err := keys.ParseID(info.Result.Key)
			if err != nil || info.Result.Alias != "" || !slices.Contains(x.domains(), info.Domain) {
				continue
			}
			if since > 0 && time.Since(info.LastUsed) <= since {
				x.recent[id] = true
			}
			if info.Domain == x.domains()[0] {
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

func (x *export) pickPlan(p *keys.Plan) error {
	if err := holdPlan(x.places, p); err != nil {
		return err
	}
	for _, s := range p.Stages {
		x.name(p.Platform, s.Base)
		var st *results.Result
		for i, step := range slices.Backward(s.Steps) {
			if st == nil {
				if st, _ = x.places.Load(step.Key); st == nil {
					continue
				}
			}
			e := x.add(st)
			if e != nil && step.Key != st.Key {
				e.aliases = append(e.aliases, &registry.Result{
					Key: step.Key, Alias: st.Key, Preimage: string(step.Preimage), Platform: s.Base.Platform,
				})
			}
			if st = st.Parent; st != nil && st.Depth() != i {
				st = nil // what is below was rebuilt: look again
			}
		}
	}
	slices.Reverse(x.order)
	return nil
}

func (x *export) pickKeys(ctx context.Context, ids []string) error {
	list, err := parseIDs(ids)
	if err == nil {
		err = x.places.Hold(list...)
	}
	if err != nil {
		return err
	}
	for _, id := range list {
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
	top, missing := x.places.Load(id)
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
		if x.picked[st.Key] != nil {
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

// add picks a result; nil if it is too old.
func (x *export) add(r *results.Result) *exported {
	if x.recent != nil && !x.recent[r.Key] {
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

// recordedNames adds the names that the store knows of the bases: of those that states name, and, as what came from a cache does not
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
		x.warn("base images of results that came from a cache are left out (%d): %s", lost, reason)
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

// run moves what was picked: first what others have made, for results that were made here may lack the bytes of layers below.
func (x *export) run(ctx context.Context) error {
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
			res := x.places.ToCache(e.Result)
			group.Go(func() error { return x.push(gctx, e, res) })
		}
		if err := cmp.Or(group.Wait(), err); err != nil {
			return err
		}
	}
	if len(x.lost) > 0 {
		x.warn("%d results are left out; the first: %v", len(x.lost), x.lost[0])
	}
	return nil
}

func (x *export) warn(format string, args ...any) {
	if x.to.Warn != nil {
		x.to.Warn(fmt.Sprintf("export to "+x.to.Repo.Name()+": "+format, args...))
	}
}

// forward copies results from the caches that they may have come from, and gives those that it could not copy.
func (x *export) forward(ctx context.Context, all []*exported) (left []*exported, err error) {
	for _, c := range x.Caches {
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
		r, err := registry.Copy(ctx, c, x.to, ids)
		x.report.Results += r.Copied
		x.report.Present += r.Present
		x.report.Bytes += r.Sent
		if err == nil {
			var more registry.CopyReport
			more, err = registry.Copy(ctx, c, x.to, aliases)
			x.report.Bytes += more.Sent
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil: // perhaps another cache has them
			x.warn("%v", err)
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
		sent, err := x.Images.PublishBase(ctx, x.to.Sender(), base)
		x.report.Bytes += sent
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			x.warn("a base image is left out: %v", err)
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
		sent, err := x.Images.PublishName(ctx, x.to.Sender(), n)
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
	bottom := r
	for s := r; s != nil; bottom, s = s, s.Parent {
		changed := false
		for i, l := range s.Record.Layers {
			if l.IsZero() || l.Blob.Digest != "" {
				continue
			}
			packed, ok := x.packed[l.Dir]
			if !ok {
				var err error
				if packed, err = layers.Pack(ctx, x.Store, l, x.Compression); err != nil {
					return fmt.Errorf("pack a layer of %s: %w", s.Key, err)
				}
				x.packed[l.Dir] = packed
			}
			s.Record.Layers[i], changed = packed, true
		}
		if changed {
			if err := x.places.Resave(s); err != nil {
				return err
			}
		}
	}
	if bottom.Record.Pulled == nil {
		return nil
	}
	for _, l := range bottom.Record.Layers {
		if _, ok := x.Store.HasBlob(l.Blob.Digest); ok {
			continue
		}
		if has, err := x.to.Repo.HasBlob(ctx, l.Blob); err != nil || !has {
			return x.places.FetchBytes(ctx, bottom) // packed again, they would be others
		}
	}
	return nil
}

// push sends one result, and the aliases that lead to it.
func (x *export) push(ctx context.Context, e *exported, res *registry.Result) error {
	var sent int64
	var err error
	pulled := e.Record.Pulled != nil
	if pulled {
		sent, err = x.to.Republish(ctx, res)
	} else {
		sent, err = x.to.Push(ctx, res)
	}
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
	if err != nil || pulled && x.to.Signer != nil { // that others are right is not for this machine to sign
		return nil
	}
	for _, alias := range e.aliases {
		sent, err := x.to.Push(ctx, alias)
		x.mu.Lock()
		x.report.Bytes += sent
		x.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Import brings results of a cache into the store: all that it has in its domains, or those of ids; with their logs, with their layers
// as bytes, which are unpacked when a step needs them, and with the base images that the cache has for them and what their names mean.
// After it, a build of the same steps hits without the cache, and without a network. What is broken in the cache is left out,
// with a warning to its Warn.
func (b *Builder) Import(ctx context.Context, from *registry.Cache, ids []string) (ExportReport, error) {
	in := &imports{
		Builder: b, from: from,
		pulled:  map[string]int64{},
		results: map[keys.ID]bool{},
		bases:   map[string]bool{},
	}
	in.places = b.places(from.Warn)
	in.places.Caches = []*registry.Cache{from}
	moved, err := in.all(ctx, ids)
	for _, n := range in.pulled {
		moved.Bytes += n
	}
	for _, brought := range in.results {
		if brought {
			moved.Results++
		} else {
			moved.Present++
		}
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return moved, b.Store.Full(err)
}

// An imports is one call of Import.
type imports struct {
	*Builder
	places *results.Places
	from   *registry.Cache
	fetch  cas.Once[keys.ID, struct{}] // by content key

	mu      sync.Mutex       // guards what follows
	pulled  map[string]int64 // bytes, by digest
	results map[keys.ID]bool // that are in the store now, by content key; true: they were not
	bases   map[string]bool  // chains of base layers that results stand on
	missing []keys.ID
}

func (in *imports) all(ctx context.Context, ids []string) (moved ExportReport, err error) {
	list, err := parseIDs(ids)
	if err == nil && len(ids) == 0 {
		list, err = in.from.Keys(ctx)
	}
	if err == nil {
		err = in.places.Hold(list...)
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
	if len(in.missing) > 0 && in.from.Warn != nil {
		in.from.Warn(fmt.Sprintf("%d of %d results in %s cannot be used; the first is %s", len(in.missing), len(list), in.from.Repo.Name(), in.missing[0]))
	}
	wanted := func(chain []digest.Digest) bool { return in.bases[fmt.Sprint(chain)] }
	if len(ids) == 0 {
		wanted = nil
	}
	moved.Bases, err = in.Images.Import(ctx, in.from.Repo, wanted, in.progress, in.from.Warn)
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
	r, err := in.places.Find(ctx, results.Query{Keys: []keys.ID{id}, Use: func(ctx context.Context, r *results.Result) error {
		_, err := in.fetch.Do(ctx, r.Key, func(ctx context.Context) (none struct{}, _ error) {
			in.mu.Lock()
			in.results[r.Key] = true // before others can find it in the store
			in.mu.Unlock()
			err := in.places.Fetch(ctx, r, false, sharedLog, in.progress)
			if err != nil {
				in.mu.Lock()
				delete(in.results, r.Key)
				in.mu.Unlock()
			}
			return none, err
		})
		if err != nil {
			return err
		}
		return in.places.Alias(id, r.Key)
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
	if _, noted := in.results[r.Key]; !noted {
		in.results[r.Key] = false
	}
	base, _ := r.Base()
	in.bases[baseChain(r.Layers(), base)] = true
	return nil
}

// parseIDs reads keys.
func parseIDs(ids []string) (list []keys.ID, err error) {
	for _, s := range ids {
		id, err := keys.ParseID(s)
		if err != nil {
			return nil, err
		}
		list = append(list, id)
	}
	return list, nil
}
