package oci

import (
	"fmt"
	"strings"
	"testing"
)

const (
	okConfig = `"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + anyDigest + `","size":2}`
	okLayer  = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + anyDigest + `","size":2}`
)

func TestParseManifest(t *testing.T) {
	layer := func(mediaType, more string) string {
		return fmt.Sprintf(`{"schemaVersion":2,%s,"layers":[{"mediaType":%q,"digest":%q,"size":2%s}]}`, okConfig, mediaType, anyDigest, more)
	}
	tests := []struct{ manifest, want string }{
		{`{"schemaVersion":2,` + okConfig + `,"layers":[` + okLayer + `]}`, ""},
		{`{"schemaVersion":2,` + okConfig + `,"layers":[]}`, ""},
		{layer(dockerLayerGzip, ""), ""},
		{layer("application/vnd.oci.image.layer.v1.tar+zstd", ""), ""},
		{layer(dockerForeign, ""), "foreign layer"},
		{layer(dockerLayerGzip, `,"urls":["https://x"]`), "foreign layer"},
		{layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", ""), "layer 1: layers of type"},
		{``, "read the manifest"},
		{`[]`, "read the manifest"},
		{`{}`, "schema version 0"},
		{`{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		{`{"schemaVersion":2}`, "what should be an image's manifest is none"},
		{`{"schemaVersion":2,"manifests":[]}`, "what should be an image's manifest is none"},
		{`{"schemaVersion":2,"manifests":[],` + okConfig + `}`, "ambiguous"},
		{`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",` + okConfig + `}`, "what should be an image's manifest is none"},
		{`{"schemaVersion":2,"mediaType":"text/plain",` + okConfig + `}`, "it is no image"},
		{`{"schemaVersion":2,` + strings.Replace(okConfig, "image.config", "empty", 1) + `}`, "artifact"},
		{`{"schemaVersion":2,` + strings.Replace(okConfig, "sha256:e3", "sha256:zz", 1) + `}`, "digest"},
		{`{"schemaVersion":2,` + okConfig + `,"layers":[` + strings.Replace(okLayer, `"size":2`, `"size":-2`, 1) + `]}`, "the size of"},
		{`{"schemaVersion":2,` + okConfig + `,"layers":[` + strings.Replace(okLayer, `sha256:`, `sha256:../`, 1) + `]}`, "digest"},
	}
	for _, tt := range tests {
		_, _, err := ParseManifest([]byte(tt.manifest))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want %q", tt.manifest, err, tt.want)
		}
	}
}

func FuzzDocuments(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,` + okConfig + `,"layers":[` + okLayer + `]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[` + okLayer + `]}`))
	f.Add([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + anyDigest + `"]}}`))
	f.Add([]byte(`{"schemaVersion":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		conf, ls, err := ParseManifest(b)
		if err == nil {
			if _, err := ParseIndex(b); err == nil {
				t.Fatal("both a manifest and an index")
			}
			if CheckDigest(conf.Digest) != nil {
				t.Fatal("bad digest of the config")
			}
			for _, l := range ls {
				if CheckDigest(l.Digest) != nil || l.Size < 0 || l.URLs != nil {
					t.Fatalf("bad layer: %v", l)
				}
			}
			if m, err := MediaTypeOf(b); err != nil || IsIndex(m) {
				t.Fatalf("media type %q, %v", m, err)
			}
		}
		if entries, err := ParseIndex(b); err == nil {
			for _, e := range entries {
				if CheckDigest(e.Digest) != nil {
					t.Fatalf("bad entry: %v", e)
				}
			}
		}
		if c, err := ParseConfig(b, 1); err == nil && len(c.RootFS.DiffIDs) != 1 {
			t.Fatal("diff ids do not fit")
		}
	})
}

const anyDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
