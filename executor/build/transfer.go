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
	own := *b
	x := &export{Builder: &own, to: to, picked: map[keys.ID]*exported{}, packed: map[string]layers.Layer{}, names: map[string]images.Name{}}
	own.distrust = once(func(msg string) { x.warn("%s", msg) })
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

// An exported is a state to export, with the input keys that lead to it.
type exported struct {
	*state
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
	if err := (&run{Builder: x.Builder, plan: p}).hold(); err != nil {
		return err
	}
	for _, s := range p.Stages {
		x.name(p.Platform, s.Base)
		var st *state
		for i, step := range slices.Backward(s.Steps) {
			if st == nil {
				if st, _ = x.load(step.Key); st == nil {
					continue
				}
			}
			e := x.add(st)
			if e != nil && step.Key != st.id {
				e.aliases = append(e.aliases, &registry.Result{
					Key: step.Key, Alias: st.id, Preimage: string(step.Preimage), Platform: s.Base.Platform,
				})
			}
			if st = st.parent; st != nil && st.depth() != i {
				st = nil // what is below was rebuilt: look again
			}
		}
	}
	slices.Reverse(x.order)
	return nil
}

func (x *export) pickKeys(ctx context.Context, ids []string) error {
	if err := (&run{Builder: x.Builder}).holdKeys(ids...); err != nil {
		return err
	}
	for _, s := range ids {
		id, err := keys.ParseID(s)
		if err != nil {
			return err
		}
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

// below picks the state of a key, and all that it was made from.
func (x *export) below(ctx context.Context, id keys.ID) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	top, missing := x.load(id)
	if top == nil {
		return fmt.Errorf("result %s: %s: %w", id, missing, cas.ErrNotFound)
	}
	needed := x.recent == nil || x.recent[top.id] // the base
	for st := top; st != nil; st = st.parent {
		if st.rec.Pulled == nil && st.parent == nil {
			ref, d, _ := strings.Cut(st.rec.Ref, "@sha256:")
			if needed && d != "" {
				platform := st.rec.Config.Platform
				x.name(platform, keys.Base{Ref: ref, Digest: digest.NewDigestFromEncoded(digest.SHA256, d), Platform: platform})
			}
			return nil
		}
		if x.picked[st.id] != nil {
			return nil
		}
		if e := x.add(st); e != nil {
			needed = true
			if input := st.input(); !input.IsZero() {
				e.aliases = append(e.aliases, &registry.Result{
					Key: input, Alias: st.id, Preimage: st.rec.Input, Platform: st.lowest().rec.Config.Platform,
				})
			}
		}
		for _, used := range st.rec.Uses {
			if err := x.below(ctx, used); err != nil && !errors.Is(err, cas.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// add picks a state; nil if it is too old.
func (x *export) add(st *state) *exported {
	if x.recent != nil && !x.recent[st.id] {
		return nil
	}
	e := x.picked[st.id]
	if e == nil {
		e = &exported{state: st}
		x.picked[st.id] = e
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
		if p := e.rec.Pulled; p != nil && p.Base > 0 {
			chains[baseChain(e.rec.Layers, p.Base)] = true
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
		if e.rec.Pulled != nil {
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
			if err = x.prepare(gctx, e.state); err != nil {
				break
			}
			res := x.result(e.state)
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
			ids = append(ids, e.id)
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
			all = slices.DeleteFunc(slices.Clone(all), func(e *exported) bool { return !slices.Contains(r.Missing, e.id) })
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

// prepare makes sure that the layers of a state have bytes, as far as that can be done, and keeps the packed form for the next
// time.
func (x *export) prepare(ctx context.Context, st *state) error {
	for t := st; t != nil; t = t.parent {
		changed := false
		for i, l := range t.rec.Layers {
			if l.IsZero() || l.Blob.Digest != "" {
				continue
			}
			packed, ok := x.packed[l.Dir]
			if !ok {
				var err error
				if packed, err = layers.Pack(ctx, x.Store, l, x.Compression); err != nil {
					return fmt.Errorf("pack a layer of %s: %w", t.id, err)
				}
				x.packed[l.Dir] = packed
			}
			t.rec.Layers[i], changed = packed, true
		}
		if changed {
			if err := x.keep(t); err != nil {
				return err
			}
		}
	}
	bottom := st.lowest()
	if bottom.rec.Pulled == nil {
		return nil
	}
	for _, l := range bottom.rec.Layers {
		if _, ok := x.Store.HasBlob(l.Blob.Digest); ok {
			continue
		}
		if has, err := x.to.Repo.HasBlob(ctx, l.Blob); err != nil || !has {
			return x.fetchBytes(ctx, bottom) // packed again, they would be others
		}
	}
	return nil
}

// keep saves a state whose layers were packed, where it is the build's own domain that has it.
func (x *export) keep(st *state) error {
	res, err := x.Store.Result(x.domains()[0], st.id.String())
	if err != nil {
		return nil
	}
	if rec, err := DecodeRecord(res); err != nil || rec.ID != st.rec.ID {
		return nil
	}
	return x.save(st, st.id)
}

// push sends one result, and the aliases that lead to it.
func (x *export) push(ctx context.Context, e *exported, res *registry.Result) error {
	var sent int64
	var err error
	pulled := e.rec.Pulled != nil
	if pulled {
		res.Envelope = e.rec.Pulled.Envelope
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
	here := *b
	here.Events = func(e Event) {
		if e.Kind == Warned && from.Warn != nil {
			from.Warn(e.Message)
		}
	}
	in := &imports{
		stage: &stage{run: &run{Builder: &here, pulled: map[string]int64{}}},
		from:  from,
		done:  map[keys.ID]*future[bool]{},
		bases: map[string]bool{},
	}
	err := in.all(ctx, ids)
	for _, n := range in.pulled {
		in.moved.Bytes += n
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return in.moved, b.Store.Full(err)
}

// An imports is one call of Import. Its stage is that of no plan.
type imports struct {
	*stage
	from *registry.Cache

	// Guarded by run.mu.
	moved   ExportReport
	done    map[keys.ID]*future[bool] // by content key
	bases   map[string]bool           // chains of base layers that results stand on
	missing []keys.ID
}

func (in *imports) all(ctx context.Context, ids []string) error {
	var list []keys.ID
	for _, s := range ids {
		id, err := keys.ParseID(s)
		if err != nil {
			return err
		}
		list = append(list, id)
	}
	if len(ids) == 0 {
		var err error
		if list, err = in.from.Keys(ctx); err != nil {
			return err
		}
	}
	names := make([]string, len(list))
	for i, id := range list {
		names[i] = id.String()
	}
	if err := in.holdKeys(names...); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(maxPushes)
	for _, id := range list {
		group.Go(func() error { return in.one(gctx, id) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if len(in.missing) > 0 {
		in.warn(nil, "%d of %d results in %s cannot be used; the first is %s", len(in.missing), len(list), in.from.Repo.Name(), in.missing[0])
	}
	wanted := func(chain []digest.Digest) bool { return in.bases[fmt.Sprint(chain)] }
	if len(ids) == 0 {
		wanted = nil
	}
	var err error
	in.moved.Bases, err = in.Images.Import(ctx, in.from.Repo, wanted, in.progress, in.from.Warn)
	return err
}

func (in *imports) progress(d digest.Digest, done, total int64) {
	in.emit(Event{Kind: Pulling, Blob: d.String(), Bytes: done, Total: total})
}

// one brings the result of a key, and notes that the key leads to it.
func (in *imports) one(ctx context.Context, id keys.ID) error {
	res, err := in.from.Find(ctx, []keys.ID{id})
	if err != nil {
		return err
	}
	ok := false
	if res != nil && res.Exit == 0 && len(res.Steps) > 0 {
		in.mu.Lock()
		f := in.done[res.Key]
		first := f == nil
		if first {
			f = &future[bool]{done: make(chan struct{})}
			in.done[res.Key] = f
		}
		in.mu.Unlock()
		if first {
			f.value, f.err = in.bring(ctx, res)
			close(f.done)
		}
		if ok, err = f.wait(ctx); err != nil {
			return err
		}
	}
	if !ok {
		in.mu.Lock()
		in.missing = append(in.missing, id)
		in.mu.Unlock()
		return nil
	}
	return in.alias(id, res.Key)
}

// bring makes sure that the store has a result; false if the cache has lost it.
func (in *imports) bring(ctx context.Context, res *registry.Result) (bool, error) {
	if err := in.holdKeys(res.Key.String()); err != nil {
		return false, err
	}
	in.mu.Lock()
	in.bases[baseChain(res.Layers, res.Base)] = true
	in.mu.Unlock()
	if here, _ := in.load(res.Key); here != nil {
		in.mu.Lock()
		in.moved.Present++
		in.mu.Unlock()
		return true, nil
	}
	err := in.fetchInto(ctx, res)
	if errors.Is(err, registry.ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	in.mu.Lock()
	in.moved.Results++
	in.mu.Unlock()
	return true, nil
}

// sharedLog is how large a log may be to be repeated in the records of all steps that come after its own.
const sharedLog = 1 << 10

// fetchInto brings a result's layers and logs into the store, and records it.
func (in *imports) fetchInto(ctx context.Context, res *registry.Result) error {
	st := pulledState(in.from, res)
	fetched, err := in.from.Fetch(ctx, res, false, in.progress)
	if err != nil {
		return err
	}
	p := st.rec.Pulled
	if err := in.keepLogs(ctx, in.from, p, sharedLog); err != nil {
		return err
	}
	last := p.Steps[len(p.Steps)-1]
	cfg := res.Config
	st.rec.Layers, st.rec.Config, st.rec.Log, st.rec.LogBlob = fetched, &cfg, last.Log.Data, last.Log.Blob
	return in.save(st, st.id)
}
