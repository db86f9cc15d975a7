package layers

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
)

func TestParseCompression(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Compression
	}{
		{"zstd", Compression{"zstd", 0}}, {"gzip", Compression{"gzip", 0}}, {"none", Compression{"none", 0}},
		{"zstd:1", Compression{"zstd", 1}}, {"zstd:22", Compression{"zstd", 22}}, {"gzip:9", Compression{"gzip", 9}},
	} {
		c, err := ParseCompression(tt.in)
		if err != nil || c != tt.want || c.String() != tt.in {
			t.Errorf("%q: %+v, printed as %q, %v", tt.in, c, c, err)
		}
	}
	for _, bad := range []string{"", "lz4", "gzip:10", "gzip:0", "gzip:-1", "zstd:23", "zstd:", "zstd:x", "none:1", ":1", "gzip:9:9"} {
		if c, err := ParseCompression(bad); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}

// TestCompressionIsDeterministic holds that neither the number of goroutines, nor the size of writes, nor what else was
// compressed before shows in the output, and that it can be read again.
func TestCompressionIsDeterministic(t *testing.T) {
	// Like a tar: parts that repeat, parts that do not.
	r := rand.New(rand.NewPCG(1, 1))
	var in bytes.Buffer
	for in.Len() < 5<<18 {
		word := make([]byte, 1+r.IntN(3000))
		for i := range word {
			word[i] = byte(r.IntN(1 + r.IntN(256)))
		}
		in.Write(word)
		in.Write(make([]byte, r.IntN(600)))
		in.Write(word)
	}
	for _, data := range [][]byte{in.Bytes(), in.Bytes()[:100], in.Bytes()[:128<<10], in.Bytes()[:128<<10+1], nil} {
		for _, c := range []Compression{{}, {"zstd", 1}, {"gzip", 0}, {"gzip", 1}, {"none", 0}} {
			first := fresh(t, c, data)
			for _, jobs := range []int{1, 2, 8} {
				for _, reader := range []io.Reader{bytes.NewReader(data), iotest.HalfReader(bytes.NewReader(data)), &ragged{data, r}} {
					var out bytes.Buffer
					z, err := c.writer(&out, jobs)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.Copy(z, struct{ io.Reader }{reader}); err != nil {
						t.Fatal(err)
					}
					if err := z.Close(); err != nil {
						t.Fatal(err)
					}
					if first == nil {
						first = bytes.Clone(out.Bytes())
					}
					if !bytes.Equal(first, out.Bytes()) {
						t.Fatalf("%s of %d bytes: %d jobs give other bytes", c, len(data), jobs)
					}
				}
			}
			d, err := decompress(bytes.NewReader(first))
			if err != nil && len(data) > 0 {
				t.Fatal(err)
			}
			if err == nil {
				if got, err := io.ReadAll(d); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%s of %d bytes: read again: %d bytes, %v", c, len(data), len(got), err)
				}
				if err := errors.Join(d.Close(), d.Close()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// fresh compresses with an encoder that has never been used, if that is zstd's.
func fresh(t *testing.T, c Compression, data []byte) []byte {
	t.Helper()
	level := map[Compression]zstd.EncoderLevel{{}: zstd.SpeedDefault, {"zstd", 1}: zstd.SpeedFastest}[c]
	if level == 0 {
		return nil
	}
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
	if err == nil {
		_, err = z.Write(data)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// ragged reads pieces of any size.
type ragged struct {
	data []byte
	r    *rand.Rand
}

func (r *ragged) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+r.r.IntN(20_000))], r.data)
	r.data = r.data[n:]
	runtime.Gosched()
	return n, nil
}
