package layers

import (
	"bytes"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzCompression holds that what is compressed comes back, by the bytes and the settings alone, and that no bytes expand to more than they may.
func FuzzCompression(f *testing.F) {
	var packed [][]byte
	for i, c := range compressions {
		b, err := compress(c, []byte("the same bytes, the same bytes"), 1)
		if err != nil {
			f.Fatal(err)
		}
		packed = append(packed, b)
		f.Add(byte(i), []byte("a tar"), b)
		f.Add(byte(i), bytes.Repeat([]byte("a tar "), 1000), b[:len(b)/2])
		f.Add(byte(i), []byte{}, append(bytes.Clone(b), b...)) // two streams
		bomb, err := compress(c, make([]byte, 2<<20), 1)
		if err != nil {
			f.Fatal(err)
		}
		if len(bomb) < 10<<10 {
			f.Add(byte(i), make([]byte, 5000), bomb)
		}
	}
	f.Add(byte(0), []byte{0x1f, 0x8b}, []byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Add(byte(2), []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, packed[0]...))
	const most = 64 << 10
	f.Fuzz(func(t *testing.T, which byte, plain, hostile []byte) {
		if c := compressions[int(which)%len(compressions)]; c.Algorithm != "none" || !looksPacked(plain) { // no tar begins so
			checkCompression(t, c, plain)
		}
		got, err := expand(t, hostile, most)
		if err == nil && len(got) > most {
			t.Fatalf("%d bytes, of at most %d", len(got), most)
		}
	})
}

func checkCompression(t *testing.T, c Compression, plain []byte) {
	b, err := compress(c, plain, 1)
	if err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	again, err := compress(c, plain, 2)
	if err != nil || !bytes.Equal(b, again) {
		t.Fatalf("%s: other bytes with another number of processors, %v", c, err)
	}
	size := int64(len(plain))
	got, err := expand(t, b, size)
	if err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%s: %q came back as %q, %v", c, plain, got, err)
	}
	if size > 1 {
		if _, err := expand(t, b, size-1); err == nil {
			t.Fatalf("%s: %d bytes where one less is allowed", c, size)
		}
	}
	if c.Algorithm == "none" {
		return
	}
	if _, err := expand(t, append(bytes.Clone(b), 'x'), size+1); err == nil {
		t.Fatalf("%s: a byte after the end is taken for nothing", c)
	}
	if _, err := expand(t, b[:len(b)-1], size+1); err == nil {
		t.Fatalf("%s: the last byte is missing, and nobody sees it", c)
	}
}

var compressions = []Compression{{}, {Algorithm: "zstd", Level: 1}, {Algorithm: "gzip"}, {Algorithm: "none"}}

func compress(c Compression, plain []byte, jobs int) ([]byte, error) {
	var b bytes.Buffer
	z, err := c.writer(&b, jobs)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(plain); err != nil {
		return nil, err
	}
	err = z.Close()
	return b.Bytes(), err
}

func looksPacked(b []byte) bool {
	return bytes.HasPrefix(b, []byte{0x1f, 0x8b}) || isZstd(b[:min(4, len(b))])
}

// expand decompresses as a layer is, and checks what is told of the result.
func expand(t testing.TB, packed []byte, most int64) ([]byte, error) {
	z, err := decompress(bytes.NewReader(packed))
	var plain []byte
	if err == nil {
		plain, err = io.ReadAll(io.LimitReader(z, most+1))
		z.Close()
	}
	l := Layer{Blob: ocispec.Descriptor{Size: int64(len(packed))}}
	if lerr := l.expand(t.Context(), bytes.NewReader(packed), io.Discard, "", Limits{Bytes: max(most, 1)}); lerr != nil {
		return nil, lerr
	}
	if err != nil || l.Size != int64(len(plain)) || l.DiffID != digest.FromBytes(plain) {
		t.Fatalf("%d bytes of %s are told as %d of %s, %v", len(plain), digest.FromBytes(plain), l.Size, l.DiffID, err)
	}
	return plain, nil
}
