package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/layers"
)

// A cache mount that travels is an artifact under the tag mount-HASH: one layer, and a DSSE envelope that says of which
// mount, in which domain. Whoever writes last wins: what a cache mount holds may be lost at any time.
const (
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
	return "mount-" + hex.EncodeToString(sum[:])
}

// FindMount gives the content of a cache mount of the cache's first domain, as a layer that is still in the Repo; the zero Layer if
// there is none, or none to be believed.
func (c *Cache) FindMount(ctx context.Context, name string) (layers.Layer, error) {
	domain := c.domains()[0]
	l, err := c.findMount(ctx, domain, name)
	switch {
	case ctx.Err() != nil:
		return layers.Layer{}, ctx.Err()
	case errors.Is(err, ErrNotFound):
		return layers.Layer{}, nil
	case err != nil:
		c.warn("mount", "the cache mount %s cannot be used: %v", name, err)
		return layers.Layer{}, nil
	}
	return l, nil
}

func (c *Cache) findMount(ctx context.Context, domain, name string) (l layers.Layer, err error) {
	_, data, err := c.Repo.Manifest(ctx, mountTag(domain, name))
	if err != nil {
		return l, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return l, fmt.Errorf("read its manifest: %w", err)
	}
	envelope := m.Config.Data
	if envelope == nil {
		if envelope, err = readBlob(ctx, c.Repo, m.Config); err != nil {
			return l, err
		}
	}
	payload, _, err := unseal(envelope, c.Trust)
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
	case p.Name != name || p.Domain != domain:
		return l, fmt.Errorf("it is the mount %q of domain %q", p.Name, p.Domain)
	}
	if err := errors.Join(checkDigest(p.Layer.Digest), checkDigest(p.DiffID)); err != nil {
		return l, err
	}
	mediaType, err := ociLayerType(p.Layer.MediaType)
	if err != nil {
		return l, err
	}
	blob := ocispec.Descriptor{MediaType: mediaType, Digest: p.Layer.Digest, Size: p.Layer.Size}
	return layers.Layer{Blob: blob, DiffID: p.DiffID, Size: p.Size}, nil
}

// FetchMount brings what FindMount gave into the store, unpacked. An error that wraps ErrGone says that it is lost.
func (c *Cache) FetchMount(ctx context.Context, l layers.Layer, p Progress) (layers.Layer, error) {
	return c.fetchLayer(ctx, l, layers.Files, p)
}

// PushMount publishes the content of a cache mount, a packed layer.
func (c *Cache) PushMount(ctx context.Context, name string, l layers.Layer) (sent int64, err error) {
	domain := c.domains()[0]
	payload, err := json.Marshal(mountPredicate{
		Format: mountFormat, Name: name, Domain: domain, Layer: bare(l.Blob), DiffID: l.DiffID, Size: l.Size,
	})
	if err != nil {
		return 0, fmt.Errorf("encode cache mount %s: %w", name, err)
	}
	envelope, err := seal(payload, c.Signer)
	if err != nil {
		return 0, fmt.Errorf("sign cache mount %s: %w", name, err)
	}
	config := ocispec.Descriptor{MediaType: mediaTypeMount, Digest: digest.FromBytes(envelope), Size: int64(len(envelope))}
	blobs := []blob{
		{desc: bare(l.Blob), open: func() (io.ReadCloser, error) { return c.Store.Blob(l.Blob.Digest) }, ask: l.Blob.Size > askAbove},
		{desc: config, open: opener(envelope)},
	}
	p := &push{Cache: c}
	if err := p.putAll(ctx, blobs); err != nil {
		return p.sent.Load(), fmt.Errorf("push cache mount %s: %w", name, err)
	}
	config.Data = envelope
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{bare(l.Blob)},
	})
	if err != nil {
		return p.sent.Load(), fmt.Errorf("encode cache mount %s: %w", name, err)
	}
	err = p.retrying(ctx, blobs, func() error {
		_, err := c.Repo.PutManifest(ctx, mountTag(domain, name), ocispec.MediaTypeImageManifest, data)
		return err
	})
	if err != nil {
		return p.sent.Load(), fmt.Errorf("push cache mount %s: %w", name, err)
	}
	return p.sent.Load() + int64(len(data)), nil
}
