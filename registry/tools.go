package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/keys"
)

// A Problem is one broken thing in a Repo.
type Problem struct {
	Tag    string // of the record or image that it spoils
	Detail string
	Note   bool // nothing is broken yet
}

func (p Problem) String() string {
	if p.Note {
		return "note: " + p.Tag + ": " + p.Detail
	}
	return p.Tag + ": " + p.Detail
}

// Verify reads everything that obx has put into the Repo: records and their signatures (by Trust, if there is any), images, base images, what
// names mean, cache mounts, and each blob once. It gives one Problem for each thing that is wrong, in the order of tags, and an error when it cannot go on.
// Tags of other things are left alone.
func (c *Cache) Verify(ctx context.Context) iter.Seq2[Problem, error] {
	return func(yield func(Problem, error) bool) {
		tags, err := c.tagsOf(ctx, IsCacheTag)
		if err != nil {
			yield(Problem{}, err)
			return
		}
		v := &verification{Cache: c, blobs: make(map[digest.Digest]error)}
		for batch := range slices.Chunk(tags, maxTransfers) {
			found := make([][]Problem, len(batch))
			g, gctx := errgroup.WithContext(ctx)
			for i, tag := range batch {
				g.Go(func() (err error) {
					found[i], err = v.tag(gctx, tag)
					return err
				})
			}
			if err := g.Wait(); err != nil {
				yield(Problem{}, err)
				return
			}
			for _, p := range slices.Concat(found...) {
				if !yield(p, nil) {
					return
				}
			}
		}
	}
}

// IsCacheTag reports whether a tag is one that a Cache makes.
func IsCacheTag(tag string) bool {
	hex, isBase := strings.CutPrefix(tag, baseTag)
	return isResult(tag) || isBase && checkDigest(digest.NewDigestFromEncoded(digest.SHA256, hex)) == nil || strings.HasPrefix(tag, nameTag) || isMountTag(tag)
}

// isResult reports the tags of images and records.
func isResult(tag string) bool {
	_, _, _, ok := parseTag(tag)
	return ok
}

// tags lists the tags of images and records.
func (c *Cache) tags(ctx context.Context) ([]string, error) { return c.tagsOf(ctx, isResult) }

// tagsOf lists the tags that are wanted.
func (c *Cache) tagsOf(ctx context.Context, wanted func(tag string) bool) (tags []string, err error) {
	for tag, err := range c.Repo.Tags(ctx) {
		if err != nil {
			return nil, fmt.Errorf("list the tags of %s: %w", c.Repo.Name(), err)
		}
		if wanted(tag) {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags, nil
}

// A verification remembers which blobs it has read.
type verification struct {
	*Cache
	reading flights[digest.Digest]
	mu      sync.Mutex
	blobs   map[digest.Digest]error // nil: as it should be
}

// tag verifies what is under a tag. Its error is one that is no fault of what is there.
func (v *verification) tag(ctx context.Context, tag string) (found []Problem, err error) {
	report := func(format string, args ...any) {
		found = append(found, Problem{Tag: tag, Detail: fmt.Sprintf(format, args...)})
	}
	if isMountTag(tag) {
		return v.mount(ctx, tag)
	}
	_, _, isRecord, _ := parseTag(tag)
	if !isRecord {
		_, b, err := v.Repo.Manifest(ctx, tag)
		if errors.Is(err, ErrNotFound) {
			return nil, nil // deleted since the tags were listed
		}
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(tag, nameTag) {
			if _, _, err := readName(ctx, v.Repo, tag); err != nil && ctx.Err() == nil {
				report("%v", err)
			}
			return found, ctx.Err()
		}
		if hex, ok := strings.CutPrefix(tag, baseTag); ok {
			if err := checkBytes(b, digest.NewDigestFromEncoded(digest.SHA256, hex)); err != nil {
				report("%v", err)
			}
		}
		return found, v.image(ctx, b, report)
	}
	rec, d, err := v.read(ctx, tag)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case d == "":
		return nil, err
	default:
		report("%v", err)
		return found, nil
	}
	if want := tagOf(rec.Key, rec.Domain) + recordSuffix; tag != want {
		report("it is the record of %s", want)
	}
	refs := append([]ocispec.Descriptor{rec.config}, rec.logs...)
	for _, l := range rec.Layers {
		refs = append(refs, l.layer())
	}
	if rec.Image == nil {
		return found, v.all(ctx, refs, report)
	}
	image := strings.TrimSuffix(tag, recordSuffix)
	switch desc, err := v.Repo.Head(ctx, image); {
	case errors.Is(err, ErrNotFound):
		report("its image has no tag")
	case err != nil:
		return nil, err
	case desc.Digest != rec.Image.Digest.digest():
		// Two builders at once do that. Who goes on from the record puts its image again.
		found = append(found, Problem{
			Tag: tag, Note: true,
			Detail: fmt.Sprintf("the tag %s is another image's, %s: garbage collection may remove that of the record", image, desc.Digest),
		})
	}
	switch _, b, err := v.Repo.Manifest(ctx, rec.Image.Digest.digest().String()); {
	case errors.Is(err, ErrNotFound):
		report("its image %s is gone", rec.Image.Digest.digest())
	case err != nil:
		return nil, err
	default:
		if err := checkBytes(b, rec.Image.Digest.digest()); err != nil {
			report("its image: %v", err)
			break
		}
		if config, ls, err := parseManifest(b); err == nil { // else image says what is wrong
			var want []ocispec.Descriptor
			for _, l := range rec.Layers {
				want = append(want, l.layer())
			}
			if config.Digest != rec.Config.Digest.digest() {
				report("its image has another configuration, %s", config.Digest)
			}
			if !slices.Equal(blobsOf(ls), blobsOf(want)) {
				report("its image has other layers than the record")
			}
		}
		if err := v.image(ctx, b, report); err != nil {
			return nil, err
		}
	}
	return found, v.all(ctx, refs, report)
}

func (v *verification) image(ctx context.Context, b []byte, report func(string, ...any)) error {
	config, ls, err := parseManifest(b)
	if err != nil {
		report("%v", err)
		return nil
	}
	return v.all(ctx, append(ls, config), report)
}

// alive reports whether the Repo still answers: then it is the blob that cannot be read.
func (v *verification) alive(ctx context.Context) bool {
	for _, err := range v.Repo.Tags(ctx) {
		return err == nil
	}
	return true
}

// all verifies blobs.
func (v *verification) all(ctx context.Context, descs []ocispec.Descriptor, report func(string, ...any)) error {
	for _, desc := range descs {
		wrong, err := v.blob(ctx, desc)
		if err != nil {
			return err
		}
		if wrong != nil {
			report("%v", wrong)
		}
	}
	return nil
}

// blob says what is wrong with a blob.
func (v *verification) blob(ctx context.Context, desc ocispec.Descriptor) (wrong, err error) {
	done, err := v.reading.claim(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	defer done()
	v.mu.Lock()
	wrong, ok := v.blobs[desc.Digest]
	v.mu.Unlock()
	if ok {
		return wrong, nil
	}
	n, got, err := v.sum(ctx, desc)
	switch {
	case errors.Is(err, ErrNotFound):
		wrong = fmt.Errorf("blob %s is gone", desc.Digest)
	case err != nil:
		err = fmt.Errorf("read blob %s: %w", desc.Digest, err)
		if !v.alive(ctx) {
			return nil, err
		}
		wrong = err
	case got != desc.Digest:
		wrong = fmt.Errorf("blob %s has the %d bytes of %s", desc.Digest, n, got)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.blobs[desc.Digest] = wrong
	return wrong, nil
}

// sum reads a blob.
func (v *verification) sum(ctx context.Context, desc ocispec.Descriptor) (int64, digest.Digest, error) {
	rc, err := v.Repo.Blob(ctx, desc)
	if err != nil {
		return 0, "", err
	}
	defer rc.Close()
	h := sha256.New()
	n, err := io.Copy(h, ctxReader{ctx, rc})
	return n, digest.NewDigest(digest.SHA256, h), err
}

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
	Requests              int   // that it made of the Repo
}

// GC removes entries and cache mounts by their last use. What is used keeps all that it depends on. Records go before images, so that no record is left without its
// image. Manifests are deleted by digest; the registry's own garbage collection then frees the bytes. A build that runs meanwhile may miss
// what it has found, and goes on without.
func (c *Cache) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	repo := &countingRepo{Repo: c.Repo}
	g := &collection{
		repo: c.Repo,
		// Whoever has signed a record, what it refers to is in use. What its signature is worth, its readers judge.
		Cache: &Cache{Repo: repo, Store: c.Store, clock: c.clock},
		o:     o,
		all:   make(map[string]*entry),
	}
	err := g.run(ctx)
	g.report.Requests = int(repo.n.Load())
	if err != nil {
		err = fmt.Errorf("collect garbage in %s: %w", c.Repo.Name(), err)
	}
	return g.report, err
}

// countingRepo counts requests: one a call, and one a page of tags.
type countingRepo struct {
	Repo
	n atomic.Int64
}

func (r *countingRepo) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	r.n.Add(1)
	return r.Repo.Head(ctx, ref)
}

func (r *countingRepo) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	r.n.Add(1)
	return r.Repo.Manifest(ctx, ref)
}

func (r *countingRepo) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r.n.Add(1)
	return r.Repo.Blob(ctx, desc)
}

func (r *countingRepo) Tags(ctx context.Context) iter.Seq2[string, error] {
	if paged, ok := r.Repo.(*remoteRepo); ok {
		return paged.pages(ctx, func() { r.n.Add(1) })
	}
	r.n.Add(1)
	return r.Repo.Tags(ctx)
}

func (r *countingRepo) Delete(ctx context.Context, ref string) error {
	r.n.Add(1)
	return r.Repo.Delete(ctx, ref)
}

// A collection is one GC.
type collection struct {
	*Cache
	repo   Repo // that Cache counts requests of
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
	if repo, ok := g.repo.(Collector); ok {
		g.report.Bytes, err = repo.CollectGarbage(ctx, gcGrace)
	}
	return err
}

// load reads a record. One that cannot be read keeps nothing, but has a date like others.
func (g *collection) load(ctx context.Context, tag string, e *entry) error {
	_, b, err := g.Repo.Manifest(ctx, tag)
	if errors.Is(err, ErrNotFound) {
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
		switch envelope, err = readBlob(ctx, g.Repo, m.Config); {
		case errors.Is(err, ErrNotFound):
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
			if err != nil && !errors.Is(err, ErrNotFound) {
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
			if _, err := g.Repo.Head(ctx, tag+recordSuffix); !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		dead := []digest.Digest{e.manifest}
		if e.image {
			desc, err := g.Repo.Head(ctx, tag)
			switch {
			case err == nil:
				dead = append(dead, desc.Digest)
			case !errors.Is(err, ErrNotFound):
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

// A CopyReport says what Copy did.
type CopyReport struct {
	Copied, Present int       // entries, aliases included
	Missing         []keys.ID // that from has not, or does not believe
	Sent            int64     // bytes
}

// Copy copies entries whole from one Repo to another: image, record, and all their blobs, streamed and verified, skipped where they are known,
// mounted where the two are one registry. Envelopes stay as they are, byte for byte, and with them domain, signatures and
// dates. from.Trust decides what is copied, to.Trust what is replaced.
func Copy(ctx context.Context, from, to *Cache, ids []keys.ID) (CopyReport, error) {
	cp := &copying{from: from, to: to}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxTransfers)
	for _, id := range ids {
		g.Go(func() error {
			found, err := cp.key(gctx, id)
			if err != nil {
				return fmt.Errorf("copy the result of %s from %s to %s: %w", id, from.Repo.Name(), to.Repo.Name(), err)
			}
			if !found {
				cp.mu.Lock()
				defer cp.mu.Unlock()
				cp.report.Missing = append(cp.report.Missing, id)
			}
			return nil
		})
	}
	err := g.Wait()
	cp.report.Sent = cp.sent.Load()
	return cp.report, err
}

type copying struct {
	from, to *Cache
	sent     atomic.Int64
	mu       sync.Mutex
	report   CopyReport
}

// key copies what from has of a key, in all its domains, and of what the key is an alias of.
func (cp *copying) key(ctx context.Context, id keys.ID) (found bool, err error) {
	return cp.keyOrTarget(ctx, id, false)
}

// keyOrTarget is key; with target, only what is no alias, since an alias of an alias leads nowhere.
func (cp *copying) keyOrTarget(ctx context.Context, id keys.ID, target bool) (found bool, err error) {
	for _, domain := range cp.from.domains() {
		rec, err := cp.from.lookUp(ctx, id, domain)
		if err != nil {
			return found, err
		}
		if rec == nil {
			continue
		}
		if rec.Status == statusAlias {
			if target {
				continue
			}
			ok, err := cp.keyOrTarget(ctx, rec.Alias, true)
			if err != nil {
				return found, err
			}
			if !ok {
				continue
			}
		}
		switch err := cp.entry(ctx, rec); {
		case errors.Is(err, ErrGone):
			cp.from.note(rec.tag, sight{verdict: broken, digest: rec.digest})
			cp.from.warn("gone", "the result of %s cannot be copied: %v", id, err)
		case err != nil:
			return found, err
		default:
			found = true
		}
	}
	return found, nil
}

// entry copies one record, and what it refers to.
func (cp *copying) entry(ctx context.Context, rec *record) error {
	done, err := cp.to.entries.claim(ctx, rec.tag)
	if err != nil {
		return err
	}
	defer done()
	if stays, err := cp.stays(ctx, rec); err != nil || stays {
		if stays {
			cp.count(&cp.report.Present)
		}
		return err
	}
	p := &push{Cache: cp.to, tag: strings.TrimSuffix(rec.tag, recordSuffix), domain: rec.Domain}
	defer func() { cp.sent.Add(p.sent.Load()) }()
	m, err := decodeRecordManifest(rec.manifest)
	if err != nil {
		return err
	}
	docs := &recordDocs{manifest: m, envelope: rec.envelope, disguised: m.Config.MediaType == ocispec.MediaTypeImageConfig}
	for _, l := range rec.logs {
		docs.logs = append(docs.logs, Log{Desc: l, repo: cp.from.Repo})
	}
	if cp.to.refuses() && !docs.disguised {
		if err := docs.disguise(); err != nil {
			return err
		}
	}
	image, err := cp.image(ctx, rec)
	if err != nil {
		return err
	}
	if err := p.putAll(ctx, slices.Concat(image.blobs, docs.blobs(ctx, cp.to))); err != nil {
		return err
	}
	if image.manifest != nil {
		if err := p.putImage(ctx, image); err != nil {
			return err
		}
	}
	desc, err := p.putRecord(ctx, docs)
	if err != nil {
		return err
	}
	cp.to.note(rec.tag, sight{verdict: good, digest: desc.Digest})
	cp.count(&cp.report.Copied)
	return nil
}

func (cp *copying) count(n *int) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	*n++
}

// stays reports whether to keeps what it has under the record's tag. Unlike a push, it asks only for what there is no need to read: most
// entries of a second copy are the same.
func (cp *copying) stays(ctx context.Context, rec *record) (bool, error) {
	desc, err := cp.to.Repo.Head(ctx, rec.tag)
	switch {
	case errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case desc.Digest == rec.digest:
		return true, nil
	}
	there, err := cp.to.lookUp(ctx, rec.Key, rec.Domain)
	if err != nil {
		return false, err
	}
	if there == nil {
		return cp.to.sightOf(rec.tag).verdict == newer, nil
	}
	return there.Status != statusFailed || rec.Status == statusFailed, nil
}

// image reads a record's image where it is.
func (cp *copying) image(ctx context.Context, rec *record) (*imageDocs, error) {
	if rec.Image == nil {
		return &imageDocs{}, nil
	}
	d := rec.Image.Digest.digest()
	_, b, err := cp.from.Repo.Manifest(ctx, d.String())
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("image %s: %w", d, ErrGone)
	}
	if err != nil {
		return nil, err
	}
	if err := checkBytes(b, d); err != nil {
		return nil, fmt.Errorf("image: %w: %w", ErrGone, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", d, ErrGone, err)
	}
	docs := &imageDocs{manifest: b, digest: d}
	for _, desc := range append(m.Layers, m.Config) {
		docs.blobs = append(docs.blobs, blob{
			desc: desc, from: cp.from.Repo.Name(), ask: true,
			open: func() (io.ReadCloser, error) { return cp.open(ctx, desc) },
		})
	}
	return docs, nil
}

// open reads a blob to copy: from the store, or from where it is.
func (cp *copying) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if size, ok := cp.from.Store.HasBlob(desc.Digest); ok && size == desc.Size {
		return cp.from.Store.Blob(desc.Digest)
	}
	rc, err := cp.from.Repo.Blob(ctx, desc)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, ErrGone)
	}
	if err != nil {
		return nil, err
	}
	return &verifyingReader{ReadCloser: rc, h: digest.SHA256.Digester(), want: desc}, nil
}

// verifyingReader ends with an error unless its bytes were the right ones: ErrGone, with the last of them.
type verifyingReader struct {
	io.ReadCloser
	h    digest.Digester
	n    int64
	want ocispec.Descriptor
}

func (r *verifyingReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.h.Hash().Write(b[:n])
	r.n += int64(n)
	// Who knows the size does not read to the end.
	if (err == io.EOF || r.n >= r.want.Size) && r.h.Digest() != r.want.Digest {
		return n, fmt.Errorf("blob %s: %w", r.want.Digest, ErrGone)
	}
	return n, err
}
