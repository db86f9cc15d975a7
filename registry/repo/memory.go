package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/internal/oci"
)

// Memory is a Repo in memory. It is as strict as registries are: a blob must have its digest, and a manifest must refer to what is there. The
// zero Memory is empty and ready to use.
type Memory struct {
	mu        sync.Mutex
	blobs     map[digest.Digest]memoryBlob
	manifests map[digest.Digest]memoryManifest
	tags      map[string]digest.Digest
	requests  int
}

type memoryBlob struct {
	data []byte
	at   time.Time
}

type memoryManifest struct {
	desc ocispec.Descriptor
	data []byte
	at   time.Time
}

// Name is "memory".
func (m *Memory) Name() string { return "memory" }

// Requests tells how many requests a registry would have seen since the last call.
func (m *Memory) Requests() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func() { m.requests = 0 }()
	return m.requests
}

// begin counts n requests and locks; the caller unlocks.
func (m *Memory) begin(n int) {
	m.mu.Lock()
	m.requests += n
	if m.blobs == nil {
		m.blobs = make(map[digest.Digest]memoryBlob)
		m.manifests = make(map[digest.Digest]memoryManifest)
		m.tags = make(map[string]digest.Digest)
	}
}

func (m *Memory) manifest(ref string) (memoryManifest, error) {
	d, ok := m.tags[ref]
	if !ok {
		d = digest.Digest(ref)
	}
	if f, ok := m.manifests[d]; ok {
		return f, nil
	}
	return memoryManifest{}, fmt.Errorf("manifest %s: %w", ref, ErrNotFound)
}

// Head implements Repo.
func (m *Memory) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	desc, _, err := m.Manifest(ctx, ref)
	return desc, err
}

// Manifest implements Repo.
func (m *Memory) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	if err := ctx.Err(); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	m.begin(1)
	defer m.mu.Unlock()
	f, err := m.manifest(ref)
	return f.desc, f.data, err
}

// Blob implements Repo.
func (m *Memory) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.begin(1)
	defer m.mu.Unlock()
	b, ok := m.blobs[desc.Digest]
	if !ok || int64(len(b.data)) != desc.Size {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b.data)), nil
}

// HasBlob implements Repo.
func (m *Memory) HasBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	m.begin(1)
	defer m.mu.Unlock()
	b, ok := m.blobs[desc.Digest]
	return ok && int64(len(b.data)) == desc.Size, nil
}

// PutBlob implements Repo. It mounts nothing.
func (m *Memory) PutBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) error {
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(cas.Reader(ctx, r))
	if err != nil {
		return err
	}
	if err := oci.CheckBytes(b, desc.Digest); err != nil {
		return err
	}
	m.begin(2)
	defer m.mu.Unlock()
	m.blobs[desc.Digest] = memoryBlob{b, time.Now()}
	return nil
}

// PutManifest implements Repo.
func (m *Memory) PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := ctx.Err(); err != nil {
		return desc, err
	}
	var doc oci.Document
	if err := json.Unmarshal(data, &doc); err != nil {
		return desc, fmt.Errorf("put manifest %s: %w", tag, err)
	}
	if err := oci.CheckPut(tag, data); err != nil {
		return desc, fmt.Errorf("put manifest %s: %w", tag, err)
	}
	m.begin(1)
	defer m.mu.Unlock()
	blobs := doc.Layers
	if doc.Config != nil {
		blobs = append(blobs, *doc.Config)
	}
	for _, b := range blobs {
		if _, ok := m.blobs[b.Digest]; !ok {
			return desc, fmt.Errorf("put manifest %s: %s: %w", tag, b.Digest, ErrBlobUnknown)
		}
	}
	for _, d := range doc.Manifests {
		if _, ok := m.manifests[d.Digest]; !ok {
			return desc, fmt.Errorf("put manifest %s: %s: %w", tag, d.Digest, ErrBlobUnknown)
		}
	}
	m.manifests[desc.Digest] = memoryManifest{desc, bytes.Clone(data), time.Now()}
	if tag != "" {
		m.tags[tag] = desc.Digest
	}
	return desc, nil
}

// Tags implements Repo.
func (m *Memory) Tags(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		m.begin(1)
		tags := slices.Sorted(maps.Keys(m.tags))
		m.mu.Unlock()
		for _, tag := range tags {
			if err := ctx.Err(); err != nil {
				yield("", err)
				return
			}
			if !yield(tag, nil) {
				return
			}
		}
	}
}

// Delete implements Repo.
func (m *Memory) Delete(ctx context.Context, ref string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.begin(1)
	defer m.mu.Unlock()
	if _, ok := m.tags[ref]; ok {
		delete(m.tags, ref)
		return nil
	}
	d := digest.Digest(ref)
	delete(m.manifests, d)
	maps.DeleteFunc(m.tags, func(_ string, to digest.Digest) bool { return to == d })
	return nil
}

// CollectGarbage implements Collector.
func (m *Memory) CollectGarbage(ctx context.Context, grace time.Duration) (freed int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.begin(0)
	defer m.mu.Unlock()
	young := time.Now().Add(-grace)
	live := make(map[digest.Digest]bool)
	for _, d := range m.tags {
		if err := m.mark(d, live); err != nil {
			return 0, fmt.Errorf("collect garbage: %w", err)
		}
	}
	for d, f := range m.manifests {
		if f.at.After(young) {
			if err := m.mark(d, live); err != nil {
				return 0, fmt.Errorf("collect garbage: %w", err)
			}
		}
	}
	maps.DeleteFunc(m.manifests, func(d digest.Digest, f memoryManifest) bool {
		if live[d] {
			return false
		}
		freed += f.desc.Size
		return true
	})
	maps.DeleteFunc(m.blobs, func(d digest.Digest, b memoryBlob) bool {
		if live[d] || b.at.After(young) {
			return false
		}
		freed += int64(len(b.data))
		return true
	})
	return freed, nil
}

// mark notes a manifest, and all that it refers to.
func (m *Memory) mark(d digest.Digest, live map[digest.Digest]bool) error {
	f, ok := m.manifests[d]
	if !ok || live[d] {
		return nil
	}
	live[d] = true
	var doc oci.Document
	if err := json.Unmarshal(f.data, &doc); err != nil {
		return fmt.Errorf("manifest %s: %w", d, err)
	}
	for _, l := range doc.Layers {
		live[l.Digest] = true
	}
	if doc.Config != nil {
		live[doc.Config.Digest] = true
	}
	for _, child := range doc.Manifests {
		if err := m.mark(child.Digest, live); err != nil {
			return err
		}
	}
	return nil
}
