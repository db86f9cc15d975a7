package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry/repo"
)

// GCOptions says what GC removes.
type GCOptions struct {
	OlderThan time.Duration // entries last used longer ago
	DryRun    bool
}

// gcGrace is how long a push may take from its first blob to its record.
const gcGrace = 24 * time.Hour

// A GCReport says what GC has removed, or would have.
type GCReport struct {
	Kept, Records, Images int
	Mounts                int   // cache mounts
	Bytes                 int64 // freed; a registry does that later, by itself
	Requests              int   // that a registry has seen
}

// GC removes entries and cache mounts by their last use. What is used keeps all that it depends on. Records go before images, so that no record is
// left without its image. Manifests are deleted by digest; the registry's own garbage collection then frees the bytes. A build that runs meanwhile may
// miss what it has found, and goes on without.
func (c *Cache) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	g := &collection{
		// Whoever has signed a record, what it refers to is in use. What its signature is worth, its readers judge.
		Cache: &Cache{Repo: c.Repo, Store: c.Store, clock: c.clock},
		o:     o,
		all:   make(map[string]*entry),
	}
	counter, counts := c.Repo.(interface{ Requests() int })
	if counts {
		counter.Requests()
	}
	err := g.run(ctx)
	if counts {
		g.report.Requests = counter.Requests()
	}
	if err != nil {
		err = fmt.Errorf("collect garbage in %s: %w", c.Repo.Name(), err)
	}
	return g.report, err
}

// A collection is one GC.
type collection struct {
	*Cache
	o      GCOptions
	mu     sync.Mutex
	all    map[string]*entry // by the tag of the image
	report GCReport
}

// An entry is what the Repo has of a key in a domain.
type entry struct {
	id       keys.ID
	image    bool          // the tag of the image is there
	record   digest.Digest // of its manifest; "" if there is none
	used     time.Time
	needs    []keys.ID
	manifest digest.Digest // of the image that the record names
	live     bool
}

func (g *collection) run(ctx context.Context) error {
	tags, err := g.tagsOf(ctx, func(tag string) bool { return isResult(tag) || isMountTag(tag) })
	if err != nil {
		return err
	}
	work, wctx := errgroup.WithContext(ctx)
	work.SetLimit(maxRequests)
	var mounts []string
	for _, tag := range tags {
		if isMountTag(tag) {
			mounts = append(mounts, tag)
			continue
		}
		id, _, isRecord, _ := parseTag(tag)
		image := strings.TrimSuffix(tag, recordSuffix)
		g.mu.Lock()
		e := g.all[image]
		if e == nil {
			e = &entry{id: id}
			g.all[image] = e
		}
		g.mu.Unlock()
		if !isRecord {
			e.image = true
			continue
		}
		work.Go(func() error { return g.load(wctx, tag, e) })
	}
	if err := work.Wait(); err != nil {
		return err
	}
	g.mark()
	if err := g.sweep(ctx); err != nil {
		return err
	}
	if err := g.sweepMounts(ctx, mounts); err != nil || g.o.DryRun {
		return err
	}
	if repo, ok := g.Repo.(repo.Collector); ok {
		g.report.Bytes, err = repo.CollectGarbage(ctx, gcGrace)
	}
	return err
}

// load reads a record. One that cannot be read keeps nothing, but has a date like others.
func (g *collection) load(ctx context.Context, tag string, e *entry) error {
	_, b, err := g.Repo.Manifest(ctx, tag)
	if errors.Is(err, repo.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	e.record = digest.FromBytes(b)
	m, err := decodeRecordManifest(b)
	if err != nil {
		return nil
	}
	e.used = lastUse(m)
	envelope := m.Config.Data
	if envelope == nil {
		if g.now().Sub(e.used) > g.o.OlderThan {
			return nil // what it needs does not matter, unless another needs it; and that then names the same
		}
		switch envelope, err = repo.ReadBlob(ctx, g.Repo, m.Config); {
		case errors.Is(err, repo.ErrNotFound):
			return nil
		case err != nil:
			return err // what it needs is not known, and must not be taken for garbage
		}
	}
	rec, err := openRecord(m, envelope, nil)
	if err != nil {
		return nil
	}
	if !rec.Alias.IsZero() {
		e.needs = append(e.needs, rec.Alias)
	}
	for _, s := range slices.Concat(rec.Steps, rec.Others) {
		if keys.ID(s.Key) != e.id { // that of another domain is another's
			e.needs = append(e.needs, keys.ID(s.Key))
		}
		if s.Input != (sum{}) {
			e.needs = append(e.needs, keys.ID(s.Input))
		}
	}
	if !rec.Parent.IsZero() {
		e.needs = append(e.needs, rec.Parent)
	}
	if rec.Image != nil {
		e.manifest = rec.Image.Digest.digest()
	}
	return nil
}

// mark finds what is used, and all that it needs, in any domain.
func (g *collection) mark() {
	byKey := make(map[keys.ID][]*entry)
	var work []*entry
	for _, e := range g.all {
		byKey[e.id] = append(byKey[e.id], e)
		if e.record != "" && g.now().Sub(e.used) <= g.o.OlderThan {
			work = append(work, e)
		}
	}
	for len(work) > 0 {
		e := work[len(work)-1]
		work = work[:len(work)-1]
		if e.live {
			continue
		}
		e.live = true
		for _, id := range e.needs {
			work = append(work, byKey[id]...)
		}
	}
}

// sweep deletes the rest.
func (g *collection) sweep(ctx context.Context) error {
	kept := make(map[digest.Digest]bool) // an image may be that of two domains
	if err := g.each(ctx, func(ctx context.Context, tag string, e *entry) error {
		if !e.live {
			return nil
		}
		d := e.manifest
		if d == "" && e.image { // its envelope was not read
			desc, err := g.Repo.Head(ctx, tag)
			if err != nil && !errors.Is(err, repo.ErrNotFound) {
				return err
			}
			d = desc.Digest
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.report.Kept++
		kept[d] = true
		return nil
	}); err != nil {
		return err
	}
	if err := g.each(ctx, func(ctx context.Context, tag string, e *entry) error {
		if e.live || e.record == "" {
			return nil
		}
		g.count(&g.report.Records)
		return g.delete(ctx, e.record)
	}); err != nil {
		return err
	}
	return g.each(ctx, func(ctx context.Context, tag string, e *entry) error {
		if e.live {
			return nil
		}
		if !g.o.DryRun {
			// Somebody may have published it again.
			if _, err := g.Repo.Head(ctx, tag+recordSuffix); !errors.Is(err, repo.ErrNotFound) {
				return err
			}
		}
		dead := []digest.Digest{e.manifest}
		if e.image {
			desc, err := g.Repo.Head(ctx, tag)
			switch {
			case err == nil:
				dead = append(dead, desc.Digest)
			case !errors.Is(err, repo.ErrNotFound):
				return err
			}
		}
		slices.Sort(dead)
		for _, d := range slices.Compact(dead) {
			if d == "" || kept[d] {
				continue
			}
			g.count(&g.report.Images)
			if err := g.delete(ctx, d); err != nil {
				return err
			}
		}
		return nil
	})
}

func (g *collection) each(ctx context.Context, do func(ctx context.Context, tag string, e *entry) error) error {
	work, wctx := errgroup.WithContext(ctx)
	work.SetLimit(maxRequests)
	for tag, e := range g.all {
		work.Go(func() error { return do(wctx, tag, e) })
	}
	return work.Wait()
}

func (g *collection) count(n *int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	*n++
}

func (g *collection) delete(ctx context.Context, d digest.Digest) error {
	if g.o.DryRun {
		return nil
	}
	return g.Repo.Delete(ctx, d.String())
}

// sweepMounts removes cache mounts by their last use.
func (g *collection) sweepMounts(ctx context.Context, tags []string) error {
	for _, tag := range tags {
		_, b, err := g.Repo.Manifest(ctx, tag)
		if errors.Is(err, repo.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		var m recordManifest // of what cannot be read, nobody knows a use
		if json.Unmarshal(b, &m) == nil && g.now().Sub(lastUse(&m)) <= g.o.OlderThan {
			continue
		}
		g.report.Mounts++
		if err := g.delete(ctx, digest.FromBytes(b)); err != nil {
			return err
		}
	}
	return nil
}
