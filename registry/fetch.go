package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// keepBytes is up to which size the bytes of a layer are kept beside its files, in bytes. Those of larger ones are where they came from, and
// writing them a second time would take longer than unpacking.
const keepBytes = 1 << 20

// ErrGone says that what a record refers to is no longer there, or is not what it says: the result is a miss.
var ErrGone = errors.New("a cached result is gone or broken")

// Fetch brings the layers of a result of Find into the store, several at once, and the image's config, into r.Config: as bytes, or with
// unpack as files, unpacked as they arrive, and then as bytes too if they are few or the base image's. What the store has is not fetched. It gives the
// layers in the order of r.Layers. An error that wraps ErrGone makes the result a miss; others are ctx's, or the store's.
func (c *Cache) Fetch(ctx context.Context, r *Result, unpack bool, p layers.Progress) ([]layers.Layer, error) {
	if r.record == nil || r.record.Status != statusOK {
		return nil, fmt.Errorf("fetch %s: it has no image", r.Key)
	}
	ls := make([]layers.Layer, len(r.Layers))
	first := make(map[digest.Digest]int) // index of the first layer with these bytes
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxReads)
	g.Go(func() (err error) {
		r.Config, err = c.fetchConfig(gctx, r.record)
		return err
	})
	if !r.record.looked {
		g.Go(func() error { return c.findImage(gctx, r.record) })
	}
	for i, l := range r.Layers {
		if _, ok := first[l.Blob.Digest]; ok {
			continue
		}
		first[l.Blob.Digest] = i
		g.Go(func() (err error) {
			form := layers.Bytes
			switch {
			case unpack && (i < r.Base || l.Blob.Size <= keepBytes):
				form = layers.Both
			case unpack:
				form = layers.Files
			}
			if c.Store.HasLayer(layers.DirName(l.DiffID)) && unpack {
				form = layers.Files // the bytes can be had again where they came from
			}
			if ls[i], err = c.fetchLayer(gctx, l, r.record.data(l.Blob), form, p); err != nil {
				err = fmt.Errorf("layer %d of %d: %w", i+1, len(ls), err)
			}
			return err
		})
	}
	err := g.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, ErrGone):
		c.note(r.record.tag, tagState{kind: broken, digest: r.record.digest})
		c.warn("gone", "the result of %s cannot be used: %v", r.Key, err)
		fallthrough
	case err != nil:
		return nil, fmt.Errorf("fetch %s: %w", r.Key, err)
	}
	for i, l := range r.Layers {
		ls[i] = ls[first[l.Blob.Digest]]
	}
	return ls, nil
}

// findImage looks whether the image of a record is under its tag, as other tools want it: two writers at once, or an operator, may have put
// another there, or nothing. Touch puts it again. A failed look says nothing.
func (c *Cache) findImage(ctx context.Context, rec *record) error {
	tag := strings.TrimSuffix(rec.tag, recordSuffix)
	desc, err := c.Repo.Head(ctx, tag)
	rec.looked = err == nil || errors.Is(err, repo.ErrNotFound)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, repo.ErrNotFound):
		c.warn("image", "the image %s is gone, and is put again unless the cache is only read", tag)
		rec.astray = true
	case err == nil:
		rec.astray = desc.Digest != rec.Image.Digest.digest()
	}
	return nil
}

// fetchConfig gives the config of a record's image.
func (c *Cache) fetchConfig(ctx context.Context, rec *record) (img ocispec.Image, err error) {
	desc := rec.Config.descriptor(ocispec.MediaTypeImageConfig)
	fail := func(err error) (ocispec.Image, error) {
		return ocispec.Image{}, fmt.Errorf("config: %w", c.gone(ctx, desc.Digest, &layers.SourceError{Err: err}))
	}
	b, err := c.stored(desc)
	if err != nil {
		if b, err = repo.ReadBlob(ctx, c.Repo, desc); err == nil {
			err = oci.CheckBytes(b, desc.Digest)
		}
		if err != nil {
			return fail(err)
		}
		if _, err := c.Store.PutBlob(b); err != nil {
			return ocispec.Image{}, err
		}
	}
	parsed, err := oci.ParseConfig(b, len(rec.Layers))
	if err != nil {
		return fail(err)
	}
	for i, l := range rec.Layers {
		if parsed.RootFS.DiffIDs[i] != l.DiffID.digest() {
			return fail(fmt.Errorf("layer %d has another diff id than the record says", i+1))
		}
	}
	return *parsed, nil
}

// stored reads a small blob of the store.
func (c *Cache) stored(desc ocispec.Descriptor) ([]byte, error) {
	f, err := c.Store.Blob(desc.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, oci.MaxDocument))
	if err != nil {
		return nil, err
	}
	return b, oci.CheckBytes(b, desc.Digest)
}

// fetchLayer brings one layer, whose bytes are data if that is not nil.
func (c *Cache) fetchLayer(ctx context.Context, l layers.Layer, data []byte, form layers.Form, p layers.Progress) (layers.Layer, error) {
	// One byte more than the record says shows that it is wrong, as one too few does.
	got, err := layers.Fetch(ctx, c.Store, l, form, layers.Limits{Bytes: l.Size}, p, func() (io.ReadCloser, error) {
		if data != nil {
			return io.NopCloser(bytes.NewReader(data)), nil
		}
		return c.Repo.Blob(ctx, l.Blob)
	})
	if err == nil && l.Size != 0 && got.Size != l.Size {
		err = fmt.Errorf("it unpacks to %d bytes, the record says %d", got.Size, l.Size)
	}
	if err != nil {
		return l, c.gone(ctx, l.Blob.Digest, err)
	}
	return got, nil
}

// gone tells what an error means that came with a blob. Whatever a Repo does not give, though asked again, is
// lost to us: to send it once more when the network alone was to blame costs little, never to mend it costs every build.
func (c *Cache) gone(ctx context.Context, d digest.Digest, err error) error {
	var path *fs.PathError
	var errno syscall.Errno
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, new(*layers.SourceError)):
	case errors.As(err, &errno):
		if isStoreErrno(errno) {
			return err
		}
		// Else it is the entry that cannot be made here.
	case errors.As(err, &path):
		return err // of the store
	}
	c.Sender().Note(false, d)
	return fmt.Errorf("%w: blob %s: %w", ErrGone, d, err)
}

// smallLog is up to which size a log passes through memory.
const smallLog = 1 << 20

// FetchLogs brings the logs of a result of Find that were not inlined into the store, several at once: a result is as good as lost without
// what its steps have printed. An error that wraps ErrGone makes it a miss; others are ctx's, or the store's.
func (c *Cache) FetchLogs(ctx context.Context, r *Result) error {
	if r.record == nil {
		return fmt.Errorf("fetch the logs of %s: it has no record", r.Key)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxRequests)
	for i, desc := range r.record.logs {
		if desc.Data != nil {
			continue
		}
		if _, ok := c.Store.HasBlob(desc.Digest); ok {
			continue
		}
		g.Go(func() error {
			rc, err := c.openPacked(gctx, Log{Desc: desc, unpacked: r.record.Logs[i].Unpacked, repo: c.Repo})
			if err != nil {
				return err
			}
			defer rc.Close()
			if desc.Size > smallLog {
				return nil // it is in the store
			}
			b, err := io.ReadAll(rc)
			if err == nil {
				_, err = c.Store.PutBlob(b)
			}
			return err
		})
	}
	err := g.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrGone):
		c.note(r.record.tag, tagState{kind: broken, digest: r.record.digest})
		c.warn("gone", "the result of %s cannot be used: log: %v", r.Key, err)
	}
	if err != nil {
		return fmt.Errorf("fetch the logs of %s: %w", r.Key, err)
	}
	return nil
}

// OpenLog reads a log that Find gave: what was inlined, else by one request. Nothing of it is seen before all of it was verified.
// Few bytes may become very many, as its record says: whoever reads it stops when it is enough.
func (c *Cache) OpenLog(ctx context.Context, l Log) (io.ReadCloser, error) {
	switch {
	case l.Data != nil:
		return io.NopCloser(bytes.NewReader(l.Data)), nil
	case l.Blob != "":
		return c.Store.Blob(l.Blob)
	case l.Desc.Digest == "":
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	r, err := c.openPacked(ctx, l)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("open log: %w", err)
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(logWindow))
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("open log: %w: %w", ErrGone, err)
	}
	return &logReader{Reader: io.LimitReader(z, l.unpacked), z: z, packed: r}, nil
}

// openPacked gives the verified bytes of a log of a Repo.
func (c *Cache) openPacked(ctx context.Context, l Log) (io.ReadCloser, error) {
	if l.Desc.Data != nil {
		return io.NopCloser(bytes.NewReader(l.Desc.Data)), nil // verified by Find
	}
	if f, err := c.Store.Blob(l.Desc.Digest); err == nil {
		return f, nil
	}
	repo := l.repo
	if repo == nil {
		repo = c.Repo
	}
	fail := func(err error) (io.ReadCloser, error) { return nil, c.gone(ctx, l.Desc.Digest, err) }
	rc, err := repo.Blob(ctx, l.Desc)
	if err != nil {
		return fail(&layers.SourceError{Err: err})
	}
	defer rc.Close()
	src := cas.Marked(io.LimitReader(rc, l.Desc.Size+1), func(err error) error { return &layers.SourceError{Err: err} })
	if l.Desc.Size <= smallLog {
		b, err := io.ReadAll(src)
		if err == nil {
			err = oci.CheckBytes(b, l.Desc.Digest)
		}
		if err != nil {
			return fail(&layers.SourceError{Err: err})
		}
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	w, err := c.Store.NewBlob()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := io.Copy(w, cas.Reader(ctx, src)); err != nil {
		return fail(err)
	}
	if _, _, err := w.Commit(l.Desc.Digest); err != nil {
		return fail(err)
	}
	return c.Store.Blob(l.Desc.Digest)
}

type logReader struct {
	io.Reader
	z      *zstd.Decoder
	packed io.Closer
}

func (r *logReader) Close() error {
	r.z.Close()
	return r.packed.Close()
}

// A packedLog is a log as it travels.
type packedLog struct {
	desc     ocispec.Descriptor // with Data if it is small
	unpacked int64
}

// logWindow bounds the memory that a log takes to read.
const logWindow = 1 << 20

// packLog compresses a log, once. The zero packedLog is an empty one.
func (c *Cache) packLog(ctx context.Context, l Log) (packedLog, error) {
	plain := l.Blob
	switch {
	case l.Data != nil:
		plain = digest.FromBytes(l.Data)
	case plain != "":
	default:
		return packedLog{desc: l.Desc, unpacked: l.unpacked}, nil
	}
	c.mu.Lock()
	packed, ok := c.packed[plain]
	c.mu.Unlock()
	if ok {
		return packed, nil
	}
	r, err := c.OpenLog(ctx, l)
	if err != nil {
		return packed, err
	}
	defer r.Close()
	if packed, err = c.compressLog(ctx, r); err != nil {
		return packed, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.packed == nil {
		c.packed = make(map[digest.Digest]packedLog)
	}
	c.packed[plain] = packed
	return packed, nil
}

// newLogWriter compresses a log, so that to read it takes little memory.
func newLogWriter(w io.Writer) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(logWindow), zstd.WithLowerEncoderMem(true))
}

// smallLogs compresses what is in memory. It is kept, since a new one costs more than most logs.
var smallLogs = sync.OnceValues(func() (*zstd.Encoder, error) { return newLogWriter(nil) })

// compressLog keeps a small log in memory, and a large one in the store.
func (c *Cache) compressLog(ctx context.Context, r io.Reader) (p packedLog, err error) {
	head, err := io.ReadAll(io.LimitReader(cas.Reader(ctx, r), smallLog))
	if err != nil || len(head) == 0 {
		return p, err
	}
	p.desc.MediaType = mediaTypeLog
	if len(head) < smallLog {
		z, err := smallLogs()
		if err != nil {
			return p, err
		}
		small := z.EncodeAll(head, nil)
		p.desc.Digest, p.desc.Size, p.unpacked = digest.FromBytes(small), int64(len(small)), int64(len(head))
		if len(small) > inlineLogs {
			_, err = c.Store.PutBlob(small)
		} else {
			p.desc.Data = small
		}
		return p, err
	}
	blob, err := c.Store.NewBlob()
	if err != nil {
		return p, err
	}
	defer blob.Close()
	z, err := newLogWriter(blob)
	if err != nil {
		return p, err
	}
	p.unpacked, err = io.Copy(z, cas.Reader(ctx, io.MultiReader(bytes.NewReader(head), r)))
	if err = errors.Join(err, z.Close()); err != nil {
		return p, err
	}
	if p.desc.Digest, p.desc.Size, err = blob.Commit(""); err == nil && p.desc.Size <= inlineLogs {
		p.desc.Data, err = c.stored(p.desc)
	}
	return p, err
}

// Refuse notes that a result of Find cannot be what it says. It is not found again, and a push replaces it.
func (c *Cache) Refuse(r *Result) {
	if r.record != nil {
		c.note(r.record.tag, tagState{kind: broken, digest: r.record.digest})
	}
}
