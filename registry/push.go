package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// Push publishes a result: blobs in any order (mounted, or skipped where they are known), the image, then the record. Its layers must be
// packed. The first trusted writer wins; a broken, untrusted or incomplete entry is overwritten. (An untrusted one only by a Cache with a
// Signer: an unsigned record would serve its writer no better.) It reports the bytes that it sent. The error wraps ErrGone if bytes of the result
// cannot be had any more.
//
// A result that has an envelope came from another cache: it is published in its domain and under that envelope, since nothing is signed that was not made here.
// Then it is an error if the image or a log cannot be made again as it was.
func (c *Cache) Push(ctx context.Context, r *Result) (sent int64, err error) {
	if r.Envelope != nil {
		return c.republish(ctx, r)
	}
	p := &push{Cache: c, r: r, domain: c.domains()[0]}
	p.tag = tagOf(r.Key, p.domain)
	err = p.run(ctx)
	if errors.Is(err, errNowhere) {
		err = p.run(ctx) // the Repo has lost what it was believed to have: now this is known, and the layer is packed again
	}
	if err != nil {
		err = fmt.Errorf("push the result of %s to %s: %w", r.Key, c.Repo.Name(), err)
	}
	return p.sent.Load(), err
}

// errNowhere says that bytes are in neither store.
var errNowhere = fmt.Errorf("its bytes are neither here nor there: %w", ErrGone)

// A push is one Push.
type push struct {
	*Cache
	r      *Result
	domain string
	tag    string // of the image
	sent   atomic.Int64
}

// askAbove is from which size on a question costs little beside sending bytes that are there already.
const askAbove = 1 << 20

func (p *push) run(ctx context.Context) error {
	done, err := p.entries.Claim(ctx, p.tag)
	if err != nil {
		return err
	}
	defer done()
	if taken, err := p.takenNow(ctx); taken || err != nil {
		return err
	}
	since := p.stateOf(p.tag + recordSuffix).at

	image, rec, err := p.prepare(ctx)
	if err != nil {
		return err
	}
	// The record's blobs go along with the image's: one round trip less.
	if err := p.send(ctx, slices.Concat(image.blobs, rec.blobs(ctx, p.Cache))); err != nil {
		return err
	}
	if image.manifest != nil {
		if err := p.putImage(ctx, image); err != nil {
			return err
		}
	}
	if p.r.Exit != 0 { // blobs took their time
		if taken, err := p.takenNow(ctx); taken || err != nil {
			return err
		}
	}
	desc, err := p.putRecord(ctx, rec)
	if err != nil {
		return err
	}
	if p.r.Exit != 0 {
		p.note(p.tag+recordSuffix, tagState{kind: failure, digest: desc.Digest, made: p.r.Started.Add(p.r.Took)})
		return p.giveWay(ctx, desc.Digest)
	}
	p.note(p.tag+recordSuffix, tagState{kind: good, digest: desc.Digest})
	if image.manifest != nil && p.now().Sub(since) > fresh {
		p.restoreTag(ctx, desc.Digest, image)
	}
	return nil
}

// prepare makes image and record, and with them the layers and logs that are not packed yet.
func (p *push) prepare(ctx context.Context) (*imageDocs, *recordDocs, error) {
	pred, err := p.predicate()
	if err != nil {
		return nil, nil, err
	}
	image := &imageDocs{}
	if pred.Status == statusOK {
		if image, err = p.image(ctx, pred); err != nil {
			return nil, nil, err
		}
	}
	logs, err := p.logs(ctx, pred)
	if err != nil {
		return nil, nil, err
	}
	if err := pred.check(); err != nil {
		return nil, nil, fmt.Errorf("its record would not be believed: %w", err)
	}
	payload, err := pred.encode()
	if err != nil {
		return nil, nil, fmt.Errorf("encode the record: %w", err)
	}
	envelope, err := seal(payload, p.Signer)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the record: %w", err)
	}
	rec := &recordDocs{manifest: p.recordOf(pred, envelope, logs), envelope: envelope, logs: logs}
	if p.refuses() {
		err = rec.disguise()
	}
	return image, rec, err
}

// takenNow is taken, but a failure looks again whatever was seen before, so that it never comes in the place of a success that has come
// meanwhile. A success puts its image before its record, so that an image is one that comes.
func (p *push) takenNow(ctx context.Context) (bool, error) {
	if p.r.Exit == 0 {
		return p.taken(ctx)
	}
	p.note(p.tag+recordSuffix, tagState{})
	if taken, err := p.taken(ctx); taken || err != nil {
		return taken, err
	}
	return p.hasImage(ctx)
}

func (p *push) hasImage(ctx context.Context) (bool, error) {
	_, err := p.Repo.Head(ctx, p.tag)
	if errors.Is(err, repo.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// giveWay removes the record of a failure again if a success has come between the last look and it. What that said cannot be had again: then
// there is none, and the next build makes it.
func (p *push) giveWay(ctx context.Context, rec digest.Digest) error {
	if succeeded, err := p.hasImage(ctx); err != nil || !succeeded {
		return err
	}
	tag := p.tag + recordSuffix
	p.note(tag, tagState{})
	if desc, err := p.Repo.Head(ctx, tag); err != nil || desc.Digest != rec {
		return ctx.Err() // the success came later
	}
	if err := p.Repo.Delete(ctx, rec.String()); err != nil && ctx.Err() == nil {
		p.warn("failure", "the failure of %s is in the place of a success, and cannot be removed: %v", p.r.Key, err)
	}
	return ctx.Err()
}

// taken reports whether what is there stays.
func (p *push) taken(ctx context.Context) (bool, error) {
	tag := p.tag + recordSuffix
	s := p.stateOf(tag)
	// Good records stay good; that others are not may have changed.
	if s.kind != good && (s.kind == unseen || p.now().Sub(s.at) > fresh) {
		switch _, err := p.lookUp(ctx, p.r.Key, p.domain); {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(err, errNoAnswer):
			return false, errNoAnswer
		}
		s = p.stateOf(tag)
	}
	switch s.kind {
	case good, newer:
		return true, nil
	case untrusted:
		return p.Signer == nil, nil
	case failure:
		return p.r.Exit != 0 && p.recent(s.made), nil
	}
	return false, nil
}

// predicate says what is known before layers and logs are.
func (p *push) predicate() (*predicate, error) {
	r := p.r
	preimage := r.Preimage
	if len(preimage) > maxPreimage {
		b, err := keys.Collapse([]byte(preimage), maxPreimage)
		if err != nil {
			return nil, fmt.Errorf("collapse the preimage: %w", err)
		}
		preimage = string(b)
	}
	parent, _, err := keys.Parent([]byte(preimage))
	if err != nil {
		return nil, err
	}
	pred := &predicate{
		Format:   fmt.Sprint(recordFormat, recordVersion),
		Key:      r.Key,
		Preimage: preimage,
		Parent:   parent,
		Platform: oci.NormalizePlatform(r.Platform),
		Domain:   p.domain,
		Status:   statusOK,
		Builder:  text(r.Builder),
	}
	if !r.Started.IsZero() {
		pred.Started = r.Started.UTC().Truncate(time.Second)
	}
	if !r.Alias.IsZero() {
		pred.Status, pred.Alias = statusAlias, r.Alias
		return pred, nil
	}
	pred.Took = max(r.Took.Milliseconds(), 0)
	if r.Exit != 0 {
		pred.Status, pred.Exit = statusFailed, r.Exit
	}
	refs := func(steps []Step) (refs []stepRef) {
		for _, s := range steps {
			ref := stepRef{Key: sum(s.Key), Op: text(s.Op), Layers: -1, Took: max(s.Took.Milliseconds(), 0), Log: -1}
			if s.Input != s.Key {
				ref.Input = sum(s.Input)
			}
			refs = append(refs, ref)
		}
		return refs
	}
	pred.Steps, pred.Others = refs(r.Steps), refs(r.Others)
	return pred, nil
}

// imageDocs are an image as it is pushed.
type imageDocs struct {
	manifest []byte
	digest   digest.Digest
	blobs    []repo.Blob
}

// image makes the image of a result, and says in the predicate what it is.
func (p *push) image(ctx context.Context, pred *predicate) (*imageDocs, error) {
	if p.r.Base < 0 || p.r.Base > len(p.r.Layers) {
		return nil, fmt.Errorf("the base has %d of %d layers", p.r.Base, len(p.r.Layers))
	}
	for i, l := range p.r.Layers {
		if l.Blob.Digest == "" || l.DiffID == "" {
			return nil, fmt.Errorf("layer %d is not packed", i+1)
		}
	}
	parts, counts, err := p.arrange(ctx, p.r)
	if err != nil {
		return nil, err
	}
	doc := &imageDocs{}
	config := p.r.Config
	config.Created = nil
	config.Platform = pred.Platform
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	config.History = mergedHistory(p.r.Config.History, counts)
	pred.Base = p.r.Base
	for i, part := range parts {
		b, err := p.layerBlob(ctx, &part, i < p.r.Base)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		b.Ask = b.Ask || i < len(parts)-1 // only the newest is likely to be new
		doc.blobs = append(doc.blobs, b)
		ref, err := refOf(part)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		pred.Layers = append(pred.Layers, ref)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, part.DiffID)
	}
	for i, s := range p.r.Steps {
		if s.Layers >= p.r.Base && s.Layers < len(counts) {
			pred.Steps[i].Layers = counts[s.Layers]
		}
	}
	b, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode the image's config: %w", err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(b), Size: int64(len(b))}
	doc.blobs = append(doc.blobs, repo.BytesBlob(ocispec.MediaTypeImageConfig, b))
	if pred.Config, err = blobRefOf(desc); err != nil {
		return nil, err
	}
	if doc.manifest, err = pred.imageManifest(); err != nil {
		return nil, err
	}
	doc.digest = digest.FromBytes(doc.manifest)
	pred.Image, err = blobRefOf(ocispec.Descriptor{Digest: doc.digest, Size: int64(len(doc.manifest))})
	return doc, err
}

// imageManifest is the manifest of the image that a predicate describes: the same bytes whoever makes it.
func (p *predicate) imageManifest() ([]byte, error) {
	m := ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      p.Config.descriptor(ocispec.MediaTypeImageConfig),
		Layers:      []ocispec.Descriptor{},
		Annotations: map[string]string{annotationKey: p.Key.String()},
	}
	for _, ref := range p.Layers {
		m.Layers = append(m.Layers, ref.layer())
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the image: %w", err)
	}
	return b, nil
}

// layerBlob says where a layer's bytes are. If the store has lost them, and the Repo has not got them either, they are packed again,
// which may give other bytes of the same diff id.
func (p *push) layerBlob(ctx context.Context, l *part, base bool) (repo.Blob, error) {
	from := ""
	if base {
		from = p.r.BaseRef
	}
	there, _ := p.Sender().Knows(l.Blob.Digest)
	if _, ok := p.Store.HasBlob(l.Blob.Digest); !ok && !there {
		has, err := p.Repo.HasBlob(ctx, l.Blob)
		if err != nil {
			return repo.Blob{}, err
		}
		if has {
			p.Sender().Note(true, l.Blob.Digest)
		} else if l.Dir != "" && p.Store.HasLayer(l.Dir) {
			packed, err := layers.Pack(ctx, p.Store, layers.Layer{Dir: l.Dir}, p.Compression)
			if err != nil {
				return repo.Blob{}, err
			}
			if packed.DiffID != l.DiffID {
				return repo.Blob{}, fmt.Errorf("packing it again gave %s instead of %s: %w", packed.DiffID, l.DiffID, errNowhere)
			}
			l.Layer = packed
		}
	}
	return repo.Blob{
		Desc: oci.Bare(l.Blob),
		Open: p.opener(l.Blob.Digest),
		From: from,
		Ask:  base || l.Blob.Size > askAbove,
	}, nil
}

// opener opens a blob of the store.
func (c *Cache) opener(d digest.Digest) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		f, err := c.Store.Blob(d)
		if errors.Is(err, cas.ErrNotFound) {
			return nil, errNowhere
		}
		return f, err
	}
}

func blobRefOf(desc ocispec.Descriptor) (*blobRef, error) {
	s, err := sumOf(desc.Digest)
	return &blobRef{s, desc.Size}, err
}

func refOf(p part) (ref layerRef, err error) {
	b, err := blobRefOf(p.Blob)
	if err != nil {
		return ref, err
	}
	ref = layerRef{blobRef: *b, Unpacked: p.Size, Members: p.members}
	if ref.DiffID, err = sumOf(p.DiffID); err != nil {
		return ref, err
	}
	ref.Compression, err = layerCompression(p.Blob.MediaType)
	return ref, err
}

// mergedHistory is the history of an image some of whose layers are merged: of those of one range, the last entry is not empty. Commands are
// shortened: each image has those of all steps before.
func mergedHistory(hs []ocispec.History, counts []int) []ocispec.History {
	hs = oci.FitHistory(hs, len(counts)-1)
	n := 0
	for i, h := range hs {
		hs[i].CreatedBy, hs[i].Comment = text(h.CreatedBy), text(h.Comment)
		if !h.EmptyLayer {
			n++
			hs[i].EmptyLayer = counts[n] == -1
		}
	}
	return hs
}

// logs packs the logs of all steps, each once, oldest first, and says in the predicate which are whose.
func (p *push) logs(ctx context.Context, pred *predicate) (all []Log, err error) {
	if pred.Status == statusAlias {
		return nil, nil
	}
	index := make(map[digest.Digest]int)
	add := func(steps []Step, refs []stepRef) error {
		for i, s := range steps {
			l, err := p.packLog(ctx, s.Log)
			if err != nil {
				return fmt.Errorf("log of %s: %w", s.Key, err)
			}
			if l.desc.Digest == "" {
				continue
			}
			at, ok := index[l.desc.Digest]
			if !ok {
				at = len(all)
				index[l.desc.Digest] = at
				ref, err := blobRefOf(l.desc)
				if err != nil {
					return err
				}
				pred.Logs = append(pred.Logs, logRef{*ref, l.unpacked})
				all = append(all, Log{Desc: l.desc, repo: s.Log.repo})
			}
			refs[i].Log = at
		}
		return nil
	}
	if err := add(p.r.Others, pred.Others); err != nil {
		return nil, err
	}
	return all, add(p.r.Steps, pred.Steps)
}

// recordOf makes the manifest of a record.
func (p *push) recordOf(pred *predicate, envelope []byte, logs []Log) *recordManifest {
	at := p.now().UTC().Format(time.RFC3339)
	m := &recordManifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      envelopeDescriptor(mediaTypeRecord, envelope),
		Layers:      []ocispec.Descriptor{},
		Annotations: map[string]string{annotationKey: pred.Key.String(), ocispec.AnnotationCreated: at, annotationUsed: at},
	}
	for _, l := range logs {
		desc := l.Desc
		desc.Data = nil
		m.Layers = append(m.Layers, desc)
	}
	left := inlineLogs
	for i, l := range slices.Backward(logs) {
		if n := len(l.Desc.Data); n <= left {
			m.Layers[i].Data = l.Desc.Data
			left -= n
		}
	}
	m.Layers = append(m.Layers, p.smallLayers(pred)...)
	return m
}

// smallLayers are the newest of the result's own layers that cost more to ask for than to repeat.
func (p *push) smallLayers(pred *predicate) (small []ocispec.Descriptor) {
	left := int64(inlineLayers)
	seen := make(map[sum]bool)
	for _, l := range slices.Backward(pred.Layers[min(pred.Base, len(pred.Layers)):]) {
		if l.Size > inlineLayer || seen[l.Digest] {
			continue
		}
		if left -= l.Size; left < 0 {
			break
		}
		seen[l.Digest] = true
		desc := l.layer()
		var err error
		if desc.Data, err = p.stored(desc); err == nil { // else the store has lost it
			small = append(small, desc)
		}
	}
	return small
}

func envelopeDescriptor(mediaType string, b []byte) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if len(b) <= inlineEnvelope {
		desc.Data = b
	}
	return desc
}

// recordDocs are a record as it is pushed.
type recordDocs struct {
	manifest  *recordManifest
	envelope  []byte
	logs      []Log
	disguised bool
}

// blobs lists what the record's manifest refers to.
func (r *recordDocs) blobs(ctx context.Context, c *Cache) []repo.Blob {
	blobs := []repo.Blob{{Desc: oci.Bare(r.manifest.Config), Open: oci.Opener(r.envelope)}}
	for i, l := range r.logs {
		blobs = append(blobs, repo.Blob{
			Desc: oci.Bare(l.Desc),
			Open: func() (io.ReadCloser, error) { return c.openPacked(ctx, l) },
			Ask:  i < len(r.logs)-1 || l.Desc.Data == nil || l.repo != nil, // only the newest is likely to be new
		})
	}
	return blobs
}

// disguise makes the record look like an image that runs nowhere, for registries that take nothing else.
func (r *recordDocs) disguise() error {
	// Nobody unpacks the logs; but there has to be one diff id for each.
	diffIDs := []digest.Digest{}
	for i := range r.manifest.Layers {
		r.manifest.Layers[i].MediaType = ocispec.MediaTypeImageLayerZstd
		diffIDs = append(diffIDs, r.manifest.Layers[i].Digest)
	}
	return r.disguiseConfig(diffIDs)
}

// disguiseMount is disguise for a cache mount.
func (r *recordDocs) disguiseMount(diffID digest.Digest) error {
	return r.disguiseConfig([]digest.Digest{diffID})
}

// disguiseConfig makes an image's config of the envelope, which it is still: to each of its two readers, the other's fields are
// unknown ones.
func (r *recordDocs) disguiseConfig(diffIDs []digest.Digest) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(r.envelope, &fields); err != nil {
		return fmt.Errorf("disguise the record: %w", err)
	}
	b, err := json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: diffIDs})
	if err != nil {
		return fmt.Errorf("disguise the record: %w", err)
	}
	fields["architecture"], fields["os"], fields["rootfs"] = json.RawMessage(`"unknown"`), json.RawMessage(`"unknown"`), b
	if r.envelope, err = json.Marshal(fields); err != nil {
		return fmt.Errorf("disguise the record: %w", err)
	}
	r.manifest.Config = envelopeDescriptor(ocispec.MediaTypeImageConfig, r.envelope)
	r.disguised = true
	return nil
}

func (p *push) send(ctx context.Context, blobs []repo.Blob) error {
	return p.Sender().Send(ctx, blobs, &p.sent)
}

func (p *push) putImage(ctx context.Context, image *imageDocs) error {
	_, err := p.Sender().Put(ctx, p.tag, ocispec.MediaTypeImageManifest, image.manifest, image.blobs, &p.sent)
	if err != nil {
		return fmt.Errorf("put the image: %w", err)
	}
	return nil
}

// putRecord puts the record, in the form that the Repo takes.
func (p *push) putRecord(ctx context.Context, rec *recordDocs) (desc ocispec.Descriptor, err error) {
	put := func() (err error) {
		b, err := rec.manifest.encode()
		if err == nil {
			desc, err = p.Sender().Put(ctx, p.tag+recordSuffix, ocispec.MediaTypeImageManifest, b, rec.blobs(ctx, p.Cache), &p.sent)
		}
		if err != nil {
			return fmt.Errorf("put the record: %w", err)
		}
		return nil
	}
	err = put()
	if !errors.Is(err, repo.ErrRefused) || rec.disguised {
		return desc, err
	}
	p.mu.Lock()
	p.plain = true
	p.mu.Unlock()
	if err := rec.disguise(); err != nil {
		return desc, err
	}
	return desc, put()
}

// refuses reports whether the Repo is known not to take the media types of records.
func (c *Cache) refuses() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.plain
}

// encode gives a record's manifest as it is put.
func (m *recordManifest) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if err == nil && len(b) > oci.MaxDocument {
		err = fmt.Errorf("it has %d bytes: too many", len(b))
	}
	return b, err
}

// restoreTag puts the image again if another writer's stands under the tag, while the record there is ours. Readers fetch the image that the
// record names, whatever the tag says; but garbage collection deletes manifests that no tag names.
func (p *push) restoreTag(ctx context.Context, rec digest.Digest, image *imageDocs) {
	desc, err := p.Repo.Head(ctx, p.tag)
	if err != nil || desc.Digest == image.digest {
		return
	}
	if desc, err = p.Repo.Head(ctx, p.tag+recordSuffix); err != nil || desc.Digest != rec {
		return
	}
	if err := p.putImage(ctx, image); err != nil && ctx.Err() == nil {
		p.warn("mend", "the image of %s cannot be put again: %v", p.r.Key, err)
	}
}
