package repo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/internal/oci"
)

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
	c := startClient(tb, &Client{PlainHTTP: []string{"registry.example"}, Patience: Patience{Backoff: 1}})
	c.http.Transport = a
	r, err := c.remote("registry.example", "x")
	if err != nil {
		tb.Fatal(err)
	}
	return r
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
			if err := oci.CheckRef(tag); err == nil && strings.ContainsAny(tag, "/\\\x00") {
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
