package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
)

// Limits bound what Load accepts. Zero fields mean generous defaults.
type Limits struct {
	Bytes   int64 // uncompressed
	Entries int64
}

// Far beyond real layers, and far from filling a disk of today with one.
const (
	defaultBytes   = 256 << 30
	defaultEntries = 10_000_000
)

func (l Limits) orDefault() Limits {
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	if l.Entries == 0 {
		l.Entries = defaultEntries
	}
	return l
}

// untarOptions say how a tar becomes files.
type untarOptions struct {
	plain  bool                   // .wh. names mean nothing, and what the directory has stays
	filter func(*tar.Header) bool // may change an entry; false leaves it out; nil: all are as they are
	limits Limits
	beside string // where to keep what the layer leaves open until the layers below it are known; "": nothing is kept
}

// A Form is what Load makes of a layer's bytes.
type Form int

const (
	Bytes Form = iota // a blob of the store
	Files             // a layer directory (DirName), which is all that steps need; the bytes can be had again where they came from
	Both
)

// Load reads a layer's compressed bytes from r once, verifies them, and keeps them in the form that is asked for: by blob.Size, by
// blob.Digest unless only files are kept, and by diffID if that is not "". Files are made while the bytes arrive, with several writers. Nothing is visible unless all of it is right.
// Media types: OCI and Docker, tar, gzip, zstd.
func Load(ctx context.Context, st *cas.Store, blob ocispec.Descriptor, diffID digest.Digest, r io.Reader, form Form, lim Limits) (Layer, error) {
	fail := func(err error) (Layer, error) { return Layer{}, fmt.Errorf("load layer %s: %w", blob.Digest, err) }
	if !isLayer(blob.MediaType) {
		return fail(fmt.Errorf("media type %q is not a layer's", blob.MediaType))
	}
	var err error
	var keep *cas.BlobWriter
	var to io.Writer // nil: nothing is kept of the bytes, and the diff id alone tells whether the files are right
	packed := digest.SHA256.Digester()
	switch {
	case form != Files:
		if keep, err = st.NewBlob(); err != nil {
			return fail(err)
		}
		defer keep.Close()
		to = keep
	case diffID == "":
		to = packed.Hash()
	}
	l := Layer{Blob: blob, DiffID: diffID}
	dir := ""
	if form != Bytes && (diffID == "" || !st.HasLayer(DirName(diffID))) {
		if dir, err = newLayerDir(st); err != nil {
			return fail(err)
		}
		defer discard(st, dir)
	}
	if err := l.expand(ctx, &sizedReader{r: r, left: blob.Size}, to, dir, lim); err != nil {
		return fail(err)
	}
	switch {
	case keep != nil:
		if _, _, err := keep.Commit(blob.Digest); err != nil {
			return fail(err)
		}
	case to != nil && packed.Digest() != blob.Digest:
		return fail(fmt.Errorf("the bytes have digest %s", packed.Digest()))
	}
	if form != Bytes {
		if err := l.commit(st, dir); err != nil {
			return fail(err)
		}
	}
	return l, nil
}

// Unpack makes the layer directory of a layer whose blob is in the store.
func Unpack(ctx context.Context, st *cas.Store, l Layer) (Layer, error) {
	if l.IsZero() || l.Dir != "" && st.HasLayer(l.Dir) {
		return l, nil
	}
	fail := func(err error) (Layer, error) { return Layer{}, fmt.Errorf("unpack layer %s: %w", l.Blob.Digest, err) }
	if l.Blob.Digest == "" {
		return fail(fmt.Errorf("directory %s: %w", l.Dir, cas.ErrNotFound))
	}
	if l.DiffID != "" && st.HasLayer(DirName(l.DiffID)) {
		l.Dir = DirName(l.DiffID)
		return l, nil
	}
	f, err := st.Blob(l.Blob.Digest)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	dir, err := newLayerDir(st)
	if err != nil {
		return fail(err)
	}
	defer discard(st, dir)
	// The stored bytes are verified when they are stored; the diff id still catches a disk that has changed them.
	lim := Limits{Bytes: l.Size}
	if err := l.expand(ctx, f, nil, dir, lim); err != nil {
		return fail(err)
	}
	if err := l.commit(st, dir); err != nil {
		return fail(err)
	}
	return l, nil
}

// expand passes compressed bytes on to blob, unless that is nil, and meanwhile decompresses, hashes and (into dir/fs, unless dir is "")
// unpacks them. It sets DiffID and Size.
func (l *Layer) expand(ctx context.Context, r io.Reader, blob io.Writer, dir string, lim Limits) error {
	lim = lim.orDefault()
	g, ctx := errgroup.WithContext(ctx)
	in := cas.Reader(ctx, r)
	stop := func(error) {}
	if blob != nil {
		packed := newTee(1)
		all := in
		g.Go(func() error {
			_, err := io.Copy(io.MultiWriter(blob, packed), all)
			packed.close(err)
			return err
		})
		in, stop = packed.readers[0], packed.readers[0].close
	}
	plain := newTee(2)
	g.Go(func() (err error) {
		defer func() { plain.close(err); stop(err) }()
		z, err := decompress(in)
		if err != nil {
			return fmt.Errorf("decompress: %w", err)
		}
		defer z.Close()
		n, err := io.Copy(plain, io.LimitReader(z, lim.Bytes+1))
		if err != nil {
			return fmt.Errorf("decompress: %w", err)
		}
		if n > lim.Bytes {
			return fmt.Errorf("more than %d bytes uncompressed", lim.Bytes)
		}
		// What follows the last stream is an error to all decoders here; none leaves bytes unread.
		_, err = io.Copy(io.Discard, in)
		return err
	})
	h := digest.SHA256.Digester()
	g.Go(func() (err error) {
		in := plain.readers[0]
		defer func() { in.close(err) }()
		l.Size, err = io.Copy(h.Hash(), in)
		return err
	})
	g.Go(func() (err error) {
		in := plain.readers[1]
		defer func() { in.close(err) }()
		if dir != "" {
			if err := untar(ctx, in, filepath.Join(dir, "fs"), untarOptions{limits: lim, beside: dir}); err != nil {
				return err
			}
		}
		_, err = io.Copy(io.Discard, in)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if d := h.Digest(); l.DiffID == "" {
		l.DiffID = d
	} else if d != l.DiffID {
		return fmt.Errorf("the uncompressed bytes have digest %s instead of %s", d, l.DiffID)
	}
	return nil
}

// commit makes the unpacked directory visible; dir is "" if it is there already.
func (l *Layer) commit(st *cas.Store, dir string) error {
	l.Dir = DirName(l.DiffID)
	if dir == "" {
		return nil
	}
	_, err := st.CommitLayer(dir, l.Dir)
	return err
}

// newLayerDir makes DIR/fs, for CommitLayer.
func newLayerDir(st *cas.Store) (string, error) {
	dir, err := os.MkdirTemp(st.TempDir(), "layer-")
	if err != nil {
		return "", err
	}
	return dir, os.Mkdir(filepath.Join(dir, "fs"), 0o755)
}

// discard removes what was not committed. Errors do not matter: TempDir goes with the process.
func discard(st *cas.Store, dir string) {
	if _, err := os.Lstat(dir); err == nil {
		st.Trash(dir)
	}
}

// sizedReader is a reader of exactly left bytes.
type sizedReader struct {
	r    io.Reader
	left int64
}

func (s *sizedReader) Read(p []byte) (int, error) {
	if int64(len(p)) > s.left+1 {
		p = p[:s.left+1]
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if s.left < 0 {
		return 0, errors.New("more bytes than announced")
	}
	if err == io.EOF && s.left > 0 {
		err = fmt.Errorf("%d bytes too few: %w", s.left, io.ErrUnexpectedEOF)
	}
	return n, err
}

// zeros reports whether p has no other byte.
func zeros(p []byte) bool { return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }
