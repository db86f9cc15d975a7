package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// A cache mount that travels is an artifact under the tag mount-HASH: one layer, and a DSSE envelope that says of which
// mount, in which domain. Whoever writes last wins: what a cache mount holds may be lost at any time. See FORMAT.md, section 9.
const (
	mountPrefix    = "mount-"
	mediaTypeMount = "application/vnd.obx.mount.v1+json"
	mountFormat    = 1
)

// mountPredicate is what the envelope of a mount holds.
type mountPredicate struct {
	Format int                `json:"format"`
	Name   string             `json:"name"`
	Domain string             `json:"domain"`
	Layer  ocispec.Descriptor `json:"layer"`
	DiffID digest.Digest      `json:"diffID"`
	Size   int64              `json:"size"` // unpacked
}

func mountTag(domain, name string) string {
	sum := sha256.Sum256([]byte(domain + "\n" + name))
	return mountPrefix + hex.EncodeToString(sum[:])
}

func isMountTag(tag string) bool { return strings.HasPrefix(tag, mountPrefix) }

// A Mount is what a Repo has of a cache mount.
type Mount struct {
	layers.Layer               // still in the Repo; zero: there is none, or none to be believed
	manifest     digest.Digest // of what is under the tag, whatever that is; "" for nothing
	document     []byte
}

// ErrMountMoved says that somebody else has published a cache mount meanwhile.
var ErrMountMoved = errors.New("somebody else has published the cache mount meanwhile")

// FindMount gives the content of a cache mount of the cache's first domain.
func (c *Cache) FindMount(ctx context.Context, name string) (Mount, error) {
	tag := mountTag(c.domains()[0], name)
	var m Mount
	_, b, err := c.Repo.Manifest(ctx, tag)
	if err == nil {
		m.document, m.manifest = b, digest.FromBytes(b)
		m.Layer, err = c.openMount(ctx, tag, b)
	}
	switch {
	case ctx.Err() != nil:
		return Mount{}, ctx.Err()
	case err != nil && !errors.Is(err, repo.ErrNotFound):
		c.warn("mount", "the cache mount %s cannot be used: %v", name, err)
	}
	return m, nil
}

// openMount believes the manifest of a mount.
func (c *Cache) openMount(ctx context.Context, tag string, manifest []byte) (l layers.Layer, err error) {
	m, err := decodeMountManifest(manifest)
	if err != nil {
		return l, err
	}
	envelope := m.Config.Data
	if envelope == nil {
		if envelope, err = repo.ReadBlob(ctx, c.Repo, m.Config); err != nil {
			return l, fmt.Errorf("read its envelope: %w", err)
		}
	}
	if err := oci.CheckBytes(envelope, m.Config.Digest); err != nil {
		return l, fmt.Errorf("its envelope: %w", err)
	}
	payload, err := unseal(envelope, c.Trust)
	if err != nil {
		return l, err
	}
	var p mountPredicate
	if err := json.Unmarshal(payload, &p); err != nil {
		return l, fmt.Errorf("read its envelope: %w", err)
	}
	switch {
	case p.Format != mountFormat:
		return l, fmt.Errorf("its format is %d, this program knows %d", p.Format, mountFormat)
	case mountTag(p.Domain, p.Name) != tag || !isText(p.Domain): // a line of its own in what the tag hashes
		return l, fmt.Errorf("it is the mount %q of domain %q", p.Name, p.Domain)
	case p.Layer.Size <= 0 || p.Layer.Size > maxSize || p.Size < 0 || p.Size > maxSize:
		return l, errors.New("it has a size that cannot be")
	}
	if err := errors.Join(oci.CheckDigest(p.Layer.Digest), oci.CheckDigest(p.DiffID)); err != nil {
		return l, err
	}
	mediaType, err := oci.LayerType(p.Layer.MediaType)
	if err != nil {
		return l, err
	}
	blob := ocispec.Descriptor{MediaType: mediaType, Digest: p.Layer.Digest, Size: p.Layer.Size}
	return layers.Layer{Blob: blob, DiffID: p.DiffID, Size: p.Size}, nil
}

// decodeMountManifest reads what stands outside the envelope: hints.
func decodeMountManifest(b []byte) (*recordManifest, error) {
	var m recordManifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read its manifest: %w", err)
	}
	// The second is what registries get that refuse the first.
	if t := m.Config.MediaType; t != mediaTypeMount && t != ocispec.MediaTypeImageConfig {
		return nil, fmt.Errorf("it is no cache mount: its config's type is %q", t)
	}
	return &m, oci.CheckDescriptor(m.Config)
}

// FetchMount brings what FindMount gave into the store, unpacked. An error that wraps ErrGone says that it is lost.
func (c *Cache) FetchMount(ctx context.Context, m Mount, p layers.Progress) (layers.Layer, error) {
	return c.fetchLayer(ctx, m.Layer, nil, layers.Files, p)
}

// PushMount publishes the content of a cache mount, a packed layer. If over is not nil, it is put in the place of that alone, as FindMount
// gave it: ErrMountMoved says that something else was there just before, or is there right after. (What comes between is not seen.
// No registry compares and swaps.)
func (c *Cache) PushMount(ctx context.Context, name string, l layers.Layer, over *Mount) (sent int64, err error) {
	p := &push{Cache: c}
	if err := p.pushMount(ctx, name, l, over); err != nil {
		return p.sent.Load(), fmt.Errorf("push cache mount %s: %w", name, err)
	}
	return p.sent.Load(), nil
}

func (p *push) pushMount(ctx context.Context, name string, l layers.Layer, over *Mount) error {
	domain := p.domains()[0]
	tag := mountTag(domain, name)
	payload, err := json.Marshal(mountPredicate{
		Format: mountFormat, Name: name, Domain: domain, Layer: oci.Bare(l.Blob), DiffID: l.DiffID, Size: l.Size,
	})
	if err != nil {
		return fmt.Errorf("encode it: %w", err)
	}
	envelope, err := seal(payload, p.Signer)
	if err != nil {
		return fmt.Errorf("sign it: %w", err)
	}
	layer := repo.Blob{Desc: oci.Bare(l.Blob), Open: p.opener(l.Blob.Digest), Ask: l.Blob.Size > askAbove}
	if err := p.send(ctx, []repo.Blob{layer}); err != nil { // that may take a while
		return err
	}
	is := func(d digest.Digest) error {
		desc, err := p.Repo.Head(ctx, tag)
		if errors.Is(err, repo.ErrNotFound) {
			err = nil
		}
		if err == nil && desc.Digest != d {
			err = ErrMountMoved
		}
		return err
	}
	if over != nil {
		if err := is(over.manifest); err != nil {
			return err
		}
	}
	at := p.now().UTC().Format(time.RFC3339)
	docs := &recordDocs{envelope: envelope, manifest: &recordManifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      envelopeDescriptor(mediaTypeMount, envelope),
		Layers:      []ocispec.Descriptor{oci.Bare(l.Blob)},
		Annotations: map[string]string{ocispec.AnnotationCreated: at, annotationUsed: at},
	}}
	put := func() (d digest.Digest, err error) {
		b, err := json.Marshal(docs.manifest)
		if err != nil {
			return "", err
		}
		config := repo.Blob{Desc: oci.Bare(docs.manifest.Config), Open: oci.Opener(docs.envelope)}
		desc, err := p.Sender().Put(ctx, tag, ocispec.MediaTypeImageManifest, b, []repo.Blob{layer, config}, &p.sent)
		return desc.Digest, err
	}
	if p.refuses() {
		if err := docs.disguiseMount(l.DiffID); err != nil {
			return err
		}
	}
	d, err := put()
	if errors.Is(err, repo.ErrRefused) && !docs.disguised {
		if err := docs.disguiseMount(l.DiffID); err != nil {
			return err
		}
		d, err = put()
	}
	if err != nil || over == nil {
		return err
	}
	return is(d)
}

// TouchMount notes that a cache mount is used, as Touch does.
func (c *Cache) TouchMount(ctx context.Context, name string, m Mount) {
	doc, err := decodeMountManifest(m.document)
	if err != nil || c.now().Sub(lastUse(doc)) < 24*time.Hour {
		return
	}
	tag := mountTag(c.domains()[0], name)
	if desc, err := c.Repo.Head(ctx, tag); err != nil || desc.Digest != m.manifest {
		return
	}
	if doc.Annotations == nil {
		doc.Annotations = make(map[string]string)
	}
	doc.Annotations[annotationUsed] = c.now().UTC().Format(time.RFC3339)
	b, err := json.Marshal(doc)
	if err == nil {
		_, err = c.Repo.PutManifest(ctx, tag, ocispec.MediaTypeImageManifest, b)
	}
	if err != nil && !errors.Is(err, repo.ErrReadOnly) && ctx.Err() == nil {
		c.warn("touch", "the date of last use cannot be noted: %v", err)
	}
}
