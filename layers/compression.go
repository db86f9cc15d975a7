package layers

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"

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
		return zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(min(jobs, 2)))
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
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, err
		}
		return z, nil
	case isZstd(magic):
		// One goroutine: the stages around it are others already, and this is the decoder's fastest way in total.
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

// isZstd knows zstd's frames and its skippable frames, which eStargz-like and seekable files begin with.
func isZstd(magic []byte) bool {
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}
