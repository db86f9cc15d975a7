package registry

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// fuzzSigner makes the same key each time, so that what was found is found again.
func fuzzSigner(name string) *Signer {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return &Signer{Name: name, key: ed25519.NewKeyFromSeed(seed)}
}

// FuzzLog holds that a log comes back as it was, and that no bytes unpack to more than their record says.
func FuzzLog(f *testing.F) {
	st, err := cas.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	c := &Cache{Repo: &repo.Memory{}, Store: st}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"", "a line\n", strings.Repeat("a line\n", 1000), "\x1b[31mred\x00\xff"} {
		packed := z.EncodeAll([]byte(s), nil)
		f.Add([]byte(s), packed, int64(len(s)))
		f.Add([]byte(s), append(packed, packed...), int64(len(s))) // two frames
		f.Add([]byte(s), packed[:len(packed)/2], int64(len(s))/2)
	}
	f.Add([]byte{}, z.EncodeAll(make([]byte, 1<<20), nil), int64(10)) // a bomb
	f.Fuzz(func(t *testing.T, plain, hostile []byte, unpacked int64) {
		if len(plain) > inlineLogs/2 {
			return // it would go through the store, which syncs
		}
		p, err := c.compressLog(t.Context(), bytes.NewReader(plain))
		if err != nil {
			t.Fatal(err)
		}
		if p.unpacked != int64(len(plain)) {
			t.Fatalf("%d bytes are told as %d", len(plain), p.unpacked)
		}
		if len(plain) > 0 {
			if got, err := readLog(t, c, Log{Desc: p.desc, unpacked: p.unpacked}); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%q came back as %q, %v", plain, got, err)
			}
		}
		if unpacked < 1 || len(hostile) == 0 {
			return
		}
		unpacked %= 1 << 20
		desc := ocispec.Descriptor{MediaType: mediaTypeLog, Digest: digest.FromBytes(hostile), Size: int64(len(hostile)), Data: hostile}
		if got, _ := readLog(t, c, Log{Desc: desc, unpacked: unpacked + 1}); int64(len(got)) > unpacked+1 {
			t.Fatalf("%d bytes came, of at most %d", len(got), unpacked+1)
		}
	})
}

func readLog(tb testing.TB, c *Cache, l Log) ([]byte, error) {
	tb.Helper()
	r, err := c.OpenLog(tb.Context(), l)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, 4<<20))
}

// FuzzMount holds that a cache mount is believed only if a trusted key has signed the very words that say what it is.
func FuzzMount(f *testing.F) {
	ci, other := fuzzSigner("ci"), fuzzSigner("other")
	want := mountPredicate{
		Format: mountFormat, Name: "opam", Domain: "default", DiffID: digest.FromString("plain"), Size: 1000,
		Layer: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: digest.FromString("packed"), Size: 100},
	}
	sealed := func(s *Signer, change func(*mountPredicate)) []byte {
		p := want
		change(&p)
		payload, err := json.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		env, err := seal(payload, s)
		if err != nil {
			f.Fatal(err)
		}
		return env
	}
	same := func(*mountPredicate) {}
	good := sealed(ci, same)
	signed, err := unseal(good, []PublicKey{ci.Public()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte{})
	f.Add(sealed(nil, same), []byte{})
	f.Add(sealed(other, same), []byte{})
	f.Add(sealed(nil, func(p *mountPredicate) { p.Domain = "default\nopam"; p.Name = "" }), []byte{})
	f.Add(sealed(nil, func(p *mountPredicate) { p.Size = 1 << 62 }), []byte{})
	f.Add(sealed(nil, func(p *mountPredicate) { p.Layer.MediaType = "text/plain" }), []byte{})
	f.Add(sealed(nil, func(p *mountPredicate) { p.Layer.Digest = "sha256:../../x" }), []byte{})
	f.Add(bytes.Replace(good, []byte(`"payload":`), []byte(`"payload":"e30=","Payload":`), 1), []byte{})
	f.Add(bytes.Replace(good, []byte(`"signatures":[`), []byte(`"signatures":[{"keyid":"ci","sig":""},`), 1), []byte{})
	f.Add([]byte{}, []byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.obx.mount.v1+json","digest":"sha256:00","size":-1}}`))
	c, trusting := &Cache{Repo: &repo.Memory{}}, &Cache{Repo: &repo.Memory{}, Trust: []PublicKey{ci.Public()}}
	tag := mountTag(want.Domain, want.Name)
	f.Fuzz(func(t *testing.T, env, manifest []byte) {
		made := len(manifest) == 0
		if made { // bytes that do not have their digest get no further
			var err error
			manifest, err = json.Marshal(recordManifest{
				Versioned: specs.Versioned{SchemaVersion: 2}, Config: envelopeDescriptor(mediaTypeMount, env),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if l, err := trusting.openMount(t.Context(), tag, manifest); err == nil {
			m, err := decodeMountManifest(manifest)
			if err != nil {
				t.Fatal(err)
			}
			payload, err := unseal(m.Config.Data, trusting.Trust)
			if err != nil || !bytes.Equal(payload, signed) {
				t.Fatalf("believed: %q, %v", payload, err)
			}
			if l.Blob.Digest != want.Layer.Digest || l.Blob.Size != want.Layer.Size || l.DiffID != want.DiffID || l.Size != want.Size {
				t.Fatalf("believed: %+v", l)
			}
		} else if made && bytes.Equal(env, good) {
			t.Fatal(err)
		}
		l, err := c.openMount(t.Context(), tag, manifest)
		if err != nil {
			return
		}
		if oci.CheckDigest(l.Blob.Digest) != nil || oci.CheckDigest(l.DiffID) != nil || l.Blob.Size <= 0 || l.Blob.Size > maxSize || l.Size < 0 || l.Size > maxSize {
			t.Fatalf("usable: %+v", l)
		}
		if _, err := oci.LayerType(l.Blob.MediaType); err != nil || len(l.Blob.URLs)+len(l.Blob.Data)+len(l.Blob.Annotations) > 0 {
			t.Fatalf("usable: %+v", l)
		}
		if _, err := c.openMount(t.Context(), mountTag("pr-7", want.Name), manifest); err == nil {
			t.Fatal("it is the mount of another domain, too")
		}
	})
}

// FuzzKey holds that a key is read as it is written, that nothing else is a key, and that no error tells a secret.
func FuzzKey(f *testing.F) {
	s := fuzzSigner("ci")
	f.Add(s.Marshal())
	f.Add([]byte(s.Public().String()))
	f.Add(bytes.ToUpper(s.Marshal()))
	f.Add(append(s.Marshal(), '\n', '\n', ' '))
	f.Add(s.Marshal()[:40])
	f.Add([]byte("two words:" + strings.Repeat("A", 86) + "=="))
	f.Add([]byte("ci:" + strings.Repeat("A", 86) + "=B")) // bits after the end
	f.Add([]byte(":"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if k, err := ParsePublicKey(string(data)); err == nil {
			again, err := ParsePublicKey(k.String())
			if err != nil || k.String() != string(data) || again.Name != k.Name || !again.key.Equal(k.key) {
				t.Fatalf("%q was read as %q, %v", data, k, err)
			}
		}
		signer, err := ParseSigner(data)
		if err != nil {
			name, secret, ok := strings.Cut(string(bytes.TrimSpace(data)), ":")
			if ok && len(secret) > 12 && strings.Contains(err.Error(), secret[:12]) && !strings.Contains(name, secret[:12]) {
				t.Fatalf("the error tells the secret: %v", err)
			}
			return
		}
		if got := bytes.TrimSpace(signer.Marshal()); !bytes.Equal(got, bytes.TrimSpace(data)) {
			t.Fatalf("%q was read as %q", data, got)
		}
		env, err := seal([]byte("words"), signer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unseal(env, []PublicKey{signer.Public()}); err != nil {
			t.Fatalf("its own signature: %v", err)
		}
		if _, err := unseal(env, []PublicKey{fuzzSigner("another one").Public()}); err == nil {
			t.Fatal("another key verifies its signature")
		}
	})
}
