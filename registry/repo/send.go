package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/internal/oci"
)

// A Sender puts blobs and manifests into a Repo. It remembers which blobs the Repo has, and sends each once, however many goroutines want it there.
type Sender struct {
	Repo Repo

	uploads cas.Claims[digest.Digest]

	mu    sync.Mutex
	known map[digest.Digest]bool // false: found missing or wrong
}

// A Blob is bytes that a Repo has to have.
type Blob struct {
	Desc ocispec.Descriptor
	Open func() (io.ReadCloser, error)
	From string // a repository that may have it, as of Repo.PutBlob
	Ask  bool   // whether to ask before sending
}

// BytesBlob is a Blob of bytes in memory.
func BytesBlob(mediaType string, b []byte) Blob {
	return Blob{Desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, Open: oci.Opener(b)}
}

// Note tells the Sender that blobs are in the Repo, or are not, or not what they should be.
func (s *Sender) Note(there bool, ds ...digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = make(map[digest.Digest]bool)
	}
	for _, d := range ds {
		s.known[d] = there
	}
}

// Knows tells what is known of a blob: whether it is there, and whether anything is known at all.
func (s *Sender) Knows(d digest.Digest) (there, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	there, known = s.known[d]
	return there, known
}

// maxUploads is how many blobs of one result are sent or asked for at once.
const maxUploads = 4

// Send makes sure that the Repo has blobs. It adds the bytes that it sends to sent.
func (s *Sender) Send(ctx context.Context, blobs []Blob, sent *atomic.Int64) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxUploads)
	for _, b := range blobs {
		if there, _ := s.Knows(b.Desc.Digest); !there {
			g.Go(func() error { return s.send(gctx, b, sent) })
		}
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

func (s *Sender) send(ctx context.Context, b Blob, sent *atomic.Int64) error {
	release, err := s.uploads.Claim(ctx, b.Desc.Digest)
	if err != nil {
		return err
	}
	defer release()
	there, known := s.Knows(b.Desc.Digest)
	if there {
		return nil
	}
	// What was found missing or wrong may be there, but is not what it should be.
	if b.Ask && !known {
		has, err := s.Repo.HasBlob(ctx, b.Desc)
		if err != nil {
			return fmt.Errorf("look for blob %s: %w", b.Desc.Digest, err)
		}
		if has {
			s.Note(true, b.Desc.Digest)
			return nil
		}
	}
	err = s.Repo.PutBlob(ctx, b.Desc, b.From, func() (io.ReadCloser, error) {
		r, err := b.Open()
		if err != nil {
			return nil, err
		}
		return &countingReader{r, sent}, nil
	})
	if err != nil {
		return fmt.Errorf("send blob %s: %w", b.Desc.Digest, err)
	}
	s.Note(true, b.Desc.Digest)
	return nil
}

type countingReader struct {
	io.ReadCloser
	n *atomic.Int64
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.n.Add(int64(n))
	return n, err
}

// Put makes sure that the Repo has blobs, and puts a manifest that refers to them. Where the Repo does not know a blob that it was believed to have, all
// are asked for, and sent if need be.
func (s *Sender) Put(ctx context.Context, tag, mediaType string, manifest []byte, blobs []Blob, sent *atomic.Int64) (ocispec.Descriptor, error) {
	if err := s.Send(ctx, blobs, sent); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := s.Repo.PutManifest(ctx, tag, mediaType, manifest)
	if errors.Is(err, ErrBlobUnknown) {
		blobs = slices.Clone(blobs) // the caller's stay as they are
		s.mu.Lock()
		for i := range blobs {
			blobs[i].Ask = true
			delete(s.known, blobs[i].Desc.Digest)
		}
		s.mu.Unlock()
		if err := s.Send(ctx, blobs, sent); err != nil {
			return desc, err
		}
		desc, err = s.Repo.PutManifest(ctx, tag, mediaType, manifest)
	}
	if err == nil {
		sent.Add(int64(len(manifest)))
	}
	return desc, err
}

// ErrWrong says that the bytes of a blob are not those that its digest is of.
var ErrWrong = errors.New("its bytes are wrong")

// Verified gives the bytes of a blob, and ends with ErrWrong where they are not the right ones.
func Verified(r io.ReadCloser, want ocispec.Descriptor) io.ReadCloser {
	return &verifyingReader{ReadCloser: r, h: digest.SHA256.Digester(), want: want}
}

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
		return n, fmt.Errorf("blob %s: %w", r.want.Digest, ErrWrong)
	}
	return n, err
}

// ReadBlob reads a small blob. The caller holds it against its digest.
func ReadBlob(ctx context.Context, repo Repo, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > oci.MaxDocument {
		return nil, fmt.Errorf("%s has %d bytes: too many", desc.Digest, desc.Size)
	}
	rc, err := repo.Blob(asDocument(ctx), desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, desc.Size+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	return b, nil
}
