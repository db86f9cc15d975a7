package layers

import (
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
)

// Bytes of a layer in another compression are the same layer, whatever the label of the first ones said, and are made once.
func TestRepack(t *testing.T) {
	t.Parallel()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	plain := bytes.Repeat([]byte("a layer, as far as its bytes go\n"), 1<<12)
	labels := []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd}
	for _, from := range []Compression{{"none", 0}, {"gzip", 0}, {"zstd", 0}} {
		b := packedBytes(t, from, plain)
		d, err := st.PutBlob(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, label := range labels {
			l := Layer{DiffID: digest.FromBytes(plain), Blob: ocispec.Descriptor{MediaType: label, Digest: d, Size: int64(len(b))}}
			for _, to := range []Compression{{"none", 0}, {"gzip", 0}, {"zstd", 0}, {"gzip", 9}, {}} {
				got, err := Repack(t.Context(), st, l, to)
				if err != nil {
					t.Fatal(err)
				}
				if want := packedBytes(t, to, plain); got.Blob.Digest != digest.FromBytes(want) || got.Blob.Size != int64(len(want)) {
					t.Errorf("%s labelled %s to %s: other bytes", from, label, to)
				}
				if got.DiffID != l.DiffID || got.Blob.MediaType != to.mediaType() {
					t.Errorf("%s labelled %s to %s: got %v", from, label, to, got)
				}
				if is, err := CompressionOf(st, got); err != nil || is.mediaType() != to.mediaType() {
					t.Errorf("%s to %s: the bytes are %s, %v", from, to, is, err)
				}
			}
		}
	}
	b := packedBytes(t, Compression{}, plain)
	d, err := st.PutBlob(b)
	if err != nil {
		t.Fatal(err)
	}
	wrong := Layer{DiffID: digest.FromString("another"), Blob: ocispec.Descriptor{MediaType: labels[2], Digest: d, Size: int64(len(b))}}
	if got, err := Repack(t.Context(), st, wrong, Compression{Algorithm: "gzip"}); err == nil {
		t.Errorf("bytes that are another layer's: got %v", got)
	}
	wrong.Blob.Digest = digest.FromString("missing")
	if got, err := Repack(t.Context(), st, wrong, Compression{Algorithm: "gzip"}); err == nil {
		t.Errorf("bytes that are not there: got %v", got)
	}
}

func packedBytes(t *testing.T, c Compression, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := c.writer(&out, 1)
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
