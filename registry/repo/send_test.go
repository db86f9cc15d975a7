package repo

import (
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/internal/oci"
)

// TestPutKeepsBlobs puts a manifest into a Repo that has lost what it was believed to have: the blob is sent again, and what the caller says of it stays.
func TestPutKeepsBlobs(t *testing.T) {
	s, sent := Sender{Repo: &Memory{}}, atomic.Int64{}
	blobs := []Blob{BytesBlob(ocispec.MediaTypeImageConfig, []byte("{}"))}
	s.Note(true, blobs[0].Desc.Digest)
	manifest := []byte(`{"schemaVersion":2,"config":{"digest":"` + blobs[0].Desc.Digest.String() + `","size":2}}`)
	if _, err := s.Put(t.Context(), "x", ocispec.MediaTypeImageManifest, manifest, blobs, &sent); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadBlob(t.Context(), s.Repo, blobs[0].Desc); err != nil || oci.CheckBytes(b, blobs[0].Desc.Digest) != nil {
		t.Errorf("%q, %v", b, err)
	}
	if blobs[0].Ask {
		t.Error("the caller's list was changed")
	}
}
