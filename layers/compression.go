package layers

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression says how layers are packed. The zero Compression is zstd's default level.
type Compression struct {
	Algorithm string // "zstd" (default), "gzip" or "none"
	Level     int    // 0: the default
}

// ParseCompression reads "zstd", "gzip:9".
func ParseCompression(s string) (Compression, error) {
	name, level, found := strings.Cut(s, ":")
	c := Compression{Algorithm: name}
	highest := map[string]int{"zstd": 22, "gzip": 9, "none": 0}[name]
	if highest == 0 && name != "none" {
		return Compression{}, fmt.Errorf("compression %q: want zstd, gzip or none", s)
	}
	if found {
		n, err := strconv.Atoi(level)
		if err != nil || n < 1 || n > highest {
			if highest == 0 {
				return Compression{}, fmt.Errorf("compression %q: %s has no levels", s, name)
			}
			return Compression{}, fmt.Errorf("compression %q: %s has levels 1 to %d", s, name, highest)
		}
		c.Level = n
	}
	return c, nil
}

// String is what ParseCompression reads.
func (c Compression) String() string {
	s := c.Algorithm
	if s == "" {
		s = "zstd"
	}
	if c.Level != 0 {
		s += ":" + strconv.Itoa(c.Level)
	}
	return s
}

func (c Compression) mediaType() string {
	switch c.Algorithm {
	case "gzip":
		return ocispec.MediaTypeImageLayerGzip
	case "none":
		return ocispec.MediaTypeImageLayer
	}
	return ocispec.MediaTypeImageLayerZstd
}

// gzipBlock is what one goroutine compresses: it is part of the output's identity, as the level is.
const gzipBlock = 1 << 20

// writer compresses to w, deterministically: the output depends on the bytes and on c alone. jobs bounds the
// processors used.
func (c Compression) writer(w io.Writer, jobs int) (io.WriteCloser, error) {
	switch c.Algorithm {
	case "", "zstd":
		level := zstd.SpeedDefault
		if c.Level != 0 {
			level = zstd.EncoderLevelFromZstd(c.Level)
		}
		return newZstdWriter(w, level, min(jobs, 2))
	case "gzip":
		level := gzip.DefaultCompression
		if c.Level != 0 {
			level = c.Level
		}
		z, err := pgzip.NewWriterLevel(w, level)
		if err != nil {
			return nil, err
		}
		if err := z.SetConcurrency(gzipBlock, jobs); err != nil {
			return nil, err
		}
		return z, nil
	case "none":
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("unknown compression %q", c.Algorithm)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// packJobs leaves half of the processors to the step that runs meanwhile.
func packJobs() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// maxWindow bounds a zstd decoder's memory: what `zstd --long` asks for, and more than any level without it.
const maxWindow = 128 << 20

// isLayer reports whether a media type is that of a tar layer, OCI's or Docker's.
func isLayer(mediaType string) bool {
	base, _, _ := strings.Cut(mediaType, "+")
	base = strings.TrimSuffix(base, ".gzip")
	switch base {
	case ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar":
		return true
	}
	return false
}

// decompress reads a layer's bytes. It looks at the bytes, not at the media type: registries hold gzip that is
// labelled as plain tar, and zstd that is labelled as gzip. A tar cannot begin like either.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch algorithmOf(magic) {
	case "gzip":
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, err
		}
		return z, nil
	case "zstd":
		// One goroutine: the stages around it are others already, and this is the decoder's fastest way in total.
		return newZstdReader(br)
	}
	return io.NopCloser(br), nil
}

// algorithmOf tells by what bytes that begin like this are compressed.
func algorithmOf(magic []byte) string {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return "gzip"
	case isZstd(magic):
		return "zstd"
	}
	return "none"
}

// Most layers are small, and megabytes of tables and windows cost more than they do: encoders and decoders are used again.
// What an encoder writes does not depend on what it wrote before.
var (
	zstdEncoders sync.Map // of zstdKind to *sync.Pool of *zstd.Encoder
	zstdDecoders sync.Pool
)

type zstdKind struct {
	level zstd.EncoderLevel
	jobs  int
}

// A zstdWriter gives its encoder back when it is closed.
type zstdWriter struct {
	z    *zstd.Encoder
	pool *sync.Pool
}

func newZstdWriter(w io.Writer, level zstd.EncoderLevel, jobs int) (io.WriteCloser, error) {
	p, _ := zstdEncoders.LoadOrStore(zstdKind{level, jobs}, new(sync.Pool))
	pool := p.(*sync.Pool)
	if z, ok := pool.Get().(*zstd.Encoder); ok {
		z.Reset(w)
		return &zstdWriter{z, pool}, nil
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(jobs))
	if err != nil {
		return nil, err
	}
	return &zstdWriter{z, pool}, nil
}

func (w *zstdWriter) Write(b []byte) (int, error) {
	if w.z == nil {
		return 0, zstd.ErrEncoderClosed
	}
	return w.z.Write(b)
}

// Close ends the frame. A second Close does nothing.
func (w *zstdWriter) Close() error {
	if w.z == nil {
		return nil
	}
	err := w.z.Close()
	w.z.Reset(nil)
	w.pool.Put(w.z)
	w.z = nil
	return err
}

// A zstdReader gives its decoder back when it is closed.
type zstdReader struct{ z *zstd.Decoder }

func newZstdReader(r io.Reader) (io.ReadCloser, error) {
	if z, ok := zstdDecoders.Get().(*zstd.Decoder); ok {
		if err := z.Reset(r); err != nil {
			return nil, err
		}
		return &zstdReader{z}, nil
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	return &zstdReader{z}, nil
}

func (r *zstdReader) Read(b []byte) (int, error) {
	if r.z == nil {
		return 0, zstd.ErrDecoderClosed
	}
	return r.z.Read(b)
}

// Close is done once; what follows it does nothing.
func (r *zstdReader) Close() error {
	if r.z == nil {
		return nil
	}
	err := r.z.Reset(nil)
	zstdDecoders.Put(r.z)
	r.z = nil
	return err
}

// isZstd knows zstd's frames and its skippable frames, which eStargz-like and seekable files begin with.
func isZstd(magic []byte) bool {
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}
