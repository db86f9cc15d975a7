package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

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
	g.SetLimit(maxReads)
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
		case errors.Is(err, ErrGone), errors.Is(err, repo.ErrWrong):
			cp.from.note(rec.tag, tagState{kind: broken, digest: rec.digest})
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
	done, err := cp.to.entries.Claim(ctx, rec.tag)
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
	if err := p.send(ctx, slices.Concat(image.blobs, docs.blobs(ctx, cp.to))); err != nil {
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
	cp.to.note(rec.tag, tagState{kind: good, digest: desc.Digest})
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
	case errors.Is(err, repo.ErrNotFound):
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
		return cp.to.stateOf(rec.tag).kind == newer, nil
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
	if errors.Is(err, repo.ErrNotFound) {
		return nil, fmt.Errorf("image %s: %w", d, ErrGone)
	}
	if err != nil {
		return nil, err
	}
	if err := oci.CheckBytes(b, d); err != nil {
		return nil, fmt.Errorf("image: %w: %w", ErrGone, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", d, ErrGone, err)
	}
	docs := &imageDocs{manifest: b, digest: d}
	for _, desc := range append(m.Layers, m.Config) {
		docs.blobs = append(docs.blobs, repo.Blob{
			Desc: desc, From: cp.from.Repo.Name(), Ask: true,
			Open: func() (io.ReadCloser, error) { return cp.open(ctx, desc) },
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
	if errors.Is(err, repo.ErrNotFound) {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, ErrGone)
	}
	if err != nil {
		return nil, err
	}
	return repo.Verified(rc, desc), nil
}
