package registry

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
)

// fuzzSigner makes the same key each time, so that what was found is found again.
func fuzzSigner(name string) *Signer {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return &Signer{Name: name, key: ed25519.NewKeyFromSeed(seed)}
}

// answers is a registry: it answers each request as it likes.
type answers func(req *http.Request) (*http.Response, error)

func (a answers) RoundTrip(req *http.Request) (*http.Response, error) { return a(req) }

// answer makes a response.
func answer(req *http.Request, status int, header http.Header, length int64, body io.Reader) *http.Response {
	return &http.Response{
		StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)), Header: header, ContentLength: length,
		Body: io.NopCloser(body), Request: req, ProtoMajor: 1, ProtoMinor: 1,
	}
}

// fuzzRepo is a repository of a registry without a network.
func fuzzRepo(tb testing.TB, a answers) *remoteRepo {
	tb.Helper()
	c, err := newClient([]string{"registry.example"}, "", patience{backoff: 1}, "", nil)
	if err != nil {
		tb.Fatal(err)
	}
	c.http.Transport = a
	return &remoteRepo{c.repository("registry.example", "x")}
}

// FuzzResume holds that whatever a registry does in the middle of a blob, what is read is what it has, from the first byte on and as far as was read:
// connections break, ranges are ignored, wrong or too long. A registry that lies about which bytes it sends is caught by their digest, not here.
func FuzzResume(f *testing.F) {
	// A connection takes three bytes of the script: what it does, and two numbers.
	f.Add([]byte("the quick brown fox jumps over the lazy dog"), []byte{0, 3, 0, 0, 5, 0, 0, 2, 0}, byte(7))
	f.Add([]byte("the quick brown fox jumps over the lazy dog"), []byte{0, 3, 0, 1, 9, 0}, byte(1))
	f.Add([]byte("the quick brown fox jumps over the lazy dog"), []byte{0, 10, 0, 2, 9, 3}, byte(200))
	f.Add([]byte("the quick brown fox jumps over the lazy dog"), []byte{0, 10, 0, 3, 4, 9, 5, 0, 0, 6, 0, 0}, byte(3))
	f.Add([]byte("the quick brown fox jumps over the lazy dog"), []byte{0, 1, 0, 4, 0, 0, 7, 0, 0}, byte(64))
	f.Add([]byte(""), []byte{1, 0, 0}, byte(1))
	f.Add(bytes.Repeat([]byte("0123456789abcdef"), 100), bytes.Repeat([]byte{0, 20, 0}, 20), byte(16))
	f.Fuzz(func(t *testing.T, blob, script []byte, chunk byte) {
		desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
		requests := 0
		repo := fuzzRepo(t, func(req *http.Request) (*http.Response, error) {
			requests++
			from := 0
			if v := req.Header.Get("Range"); v != "" {
				var last int
				if _, err := fmt.Sscanf(v, "bytes=%d-%d", &from, &last); err != nil || from <= 0 || from >= len(blob) || last != len(blob)-1 {
					t.Fatalf("it asks for %q of %d bytes", v, len(blob))
				}
			}
			var act [3]byte
			if n := copy(act[:], script); n == 3 {
				script = script[3:]
			} else {
				script, act = nil, [3]byte{8}
			}
			// part is what comes of the bytes from an offset on, and how it ends.
			part := func(from int) io.Reader {
				r := bytes.NewReader(blob[min(from, len(blob)):])
				if act[0]%9 > 5 {
					return r
				}
				var end error = syscall.ECONNRESET
				if act[2]%2 == 1 {
					end = io.ErrUnexpectedEOF
				}
				return io.MultiReader(io.LimitReader(r, int64(act[1])), errReader{end})
			}
			ranged := func(from int, more string) *http.Response {
				h := http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob))}}
				return answer(req, http.StatusPartialContent, h, -1, io.MultiReader(part(from), strings.NewReader(more)))
			}
			switch act[0] % 9 {
			case 0: // as it should, until it breaks
				if from > 0 {
					return ranged(from, ""), nil
				}
				return answer(req, http.StatusOK, http.Header{}, int64(len(blob)), part(0)), nil
			case 1: // knows no ranges
				return answer(req, http.StatusOK, http.Header{}, int64(len(blob)), part(0)), nil
			case 2: // another range, and says so
				return ranged(from+int(act[2])+1, ""), nil
			case 3: // one that begins before
				return ranged(max(0, from-int(act[2])), ""), nil
			case 4:
				return answer(req, http.StatusServiceUnavailable, http.Header{}, 0, strings.NewReader("")), nil
			case 5:
				return nil, syscall.ECONNREFUSED
			case 6: // more than was asked for
				if from > 0 {
					return ranged(from, "and more"), nil
				}
				return answer(req, http.StatusOK, http.Header{}, -1, io.MultiReader(part(0), strings.NewReader("and more"))), nil
			case 7: // another blob's size
				return answer(req, http.StatusOK, http.Header{}, int64(len(blob)+1), io.MultiReader(part(0), strings.NewReader("x"))), nil
			}
			if from > 0 {
				return ranged(from, ""), nil
			}
			return answer(req, http.StatusOK, http.Header{}, int64(len(blob)), part(0)), nil
		})
		rc, err := repo.Blob(t.Context(), desc)
		if err != nil {
			return
		}
		defer rc.Close()
		var got []byte
		for buf := make([]byte, max(1, chunk)); err == nil; {
			var n int
			n, err = rc.Read(buf)
			got = append(got, buf[:n]...)
		}
		if !bytes.HasPrefix(blob, got) {
			t.Fatalf("%q was read of %q", got, blob)
		}
		if err == io.EOF && len(got) != len(blob) {
			t.Fatalf("%d bytes of %d are all of it", len(got), len(blob))
		}
		if bad := len(blob) + 2*maxFailures; requests > bad {
			t.Fatalf("%d requests for %d bytes", requests, len(blob))
		}
	})
}

// FuzzTagPages holds that a list of tags is asked of the registry that was named, whatever its links say, that it ends, and that it is given as
// it was sent.
func FuzzTagPages(f *testing.F) {
	f.Add(`</v2/x/tags/list?last=b&n=2>; rel="next"`, []byte(`{"name":"x","tags":["a","b"]}`), `<list?last=c>; rel=next`, []byte(`{"tags":["c"]}`))
	f.Add(`<https://wrong.example/v2/x/tags/list?last=b>; rel="next"`, []byte(`{"tags":["a"]}`), ``, []byte(`{"tags":[]}`))
	f.Add(`<//user:secret@wrong.example:1/x?last=b>; rel="next"`, []byte(`{"tags":["a"]}`), `<file:///etc/passwd>; rel="next"`, []byte(`{"tags":["b"]}`))
	f.Add(`<tags/list?n=1000>; rel="next"`, []byte(`{"tags":["a"]}`), `<?n=1000>; rel="next"`, []byte(`{"tags":["a"]}`))
	f.Add(`<0/>; rel="next"`, []byte(`{"tags":["a"]}`), `<list?last=c>; rel=next`, []byte(`{"tags":["c"]}`)) // longer each time
	f.Add(`<http:1>; rel="next"`, []byte(`{"tags":["a"]}`), ``, []byte(`{"tags":["a"]}`))
	f.Add(`<%zz>; rel="next"`, []byte(`{"tags":null}`), `</x>; rel="prev"`, []byte(`{"tags":[1]}`))
	f.Add(`</x>; rel="next`, []byte(`{"tags":["../../etc/passwd","a\u0000b",""]}`), `next`, []byte(`[`))
	f.Fuzz(func(t *testing.T, link1 string, page1 []byte, link2 string, page2 []byte) {
		links, pages := []string{link1, link2}, [][]byte{page1, page2}
		requests := 0
		repo := fuzzRepo(t, func(req *http.Request) (*http.Response, error) {
			if req.URL.Scheme != "http" || req.URL.Host != "registry.example" || req.Host != "registry.example" && req.Host != "" {
				t.Fatalf("it asks %s (%s)", req.URL, req.Host)
			}
			if _, _, ok := req.BasicAuth(); ok || req.URL.User != nil {
				t.Fatalf("a link gave it a login: %s", req.URL)
			}
			i := requests % 2
			if requests++; requests > 3 {
				t.Fatal("the list has no end")
			}
			return answer(req, http.StatusOK, http.Header{"Link": {links[i]}}, -1, bytes.NewReader(pages[i])), nil
		})
		var got []string
		var failed error
		for tag, err := range repo.Tags(t.Context()) {
			if err != nil {
				failed = err
				break
			}
			got = append(got, tag)
			if err := checkRef(tag); err == nil && strings.ContainsAny(tag, "/\\\x00") {
				t.Fatalf("the tag %q is one", tag)
			}
		}
		var want []string
		for _, p := range pages[:min(requests, 2)] {
			var list struct{ Tags []string }
			if json.Unmarshal(p, &list) != nil {
				break
			}
			want = append(want, list.Tags...)
		}
		if failed == nil && !slices.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// FuzzLog holds that a log comes back as it was, and that no bytes unpack to more than their record says.
func FuzzLog(f *testing.F) {
	st, err := cas.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	c := &Cache{Repo: &Memory{}, Store: st}
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
	signed, _, err := unseal(good, []PublicKey{ci.Public()})
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
	c, trusting := &Cache{Repo: &Memory{}}, &Cache{Repo: &Memory{}, Trust: []PublicKey{ci.Public()}}
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
			payload, signers, err := unseal(m.Config.Data, trusting.Trust)
			if err != nil || !bytes.Equal(payload, signed) || !slices.Equal(signers, []string{"ci"}) {
				t.Fatalf("believed: %q, of %q, %v", payload, signers, err)
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
		if checkDigest(l.Blob.Digest) != nil || checkDigest(l.DiffID) != nil || l.Blob.Size <= 0 || l.Blob.Size > maxSize || l.Size < 0 || l.Size > maxSize {
			t.Fatalf("usable: %+v", l)
		}
		if _, err := ociLayerType(l.Blob.MediaType); err != nil || len(l.Blob.URLs)+len(l.Blob.Data)+len(l.Blob.Annotations) > 0 {
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
		if _, who, err := unseal(env, []PublicKey{signer.Public()}); err != nil || !slices.Equal(who, []string{signer.Name}) {
			t.Fatalf("its own signature: %q, %v", who, err)
		}
		if _, _, err := unseal(env, []PublicKey{fuzzSigner("another one").Public()}); err == nil {
			t.Fatal("another key verifies its signature")
		}
	})
}
