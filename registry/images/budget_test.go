package images_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
)

// A hostile registry has documents, and its own way to hand them out.
type hostile struct {
	docs     map[string][]byte // by tag and digest
	send     func(w http.ResponseWriter, r *http.Request, b []byte)
	requests atomic.Int32
}

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.requests.Add(1)
	b, ok := h.docs[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	if r.Method == http.MethodHead {
		return
	}
	if h.send == nil {
		_, _ = w.Write(b)
		return
	}
	h.send(w, r, b)
}

// drip sends a byte each moment, and so never ends nor stalls.
func drip(every time.Duration) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, r *http.Request, b []byte) {
		for i := range b {
			_, _ = w.Write(b[i : i+1])
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(every):
			case <-r.Context().Done():
				return
			}
		}
	}
}

func serve(t testing.TB, h http.Handler) (addr string) {
	srv := httptest.NewServer(h)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.Listener.Addr().String()
}

// fanOut is an index of n others, each of so many bytes.
func fanOut(t testing.TB, n, size int) *hostile {
	h := &hostile{docs: make(map[string][]byte)}
	var entries []ocispec.Descriptor
	for i := range n {
		b, err := json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{},
			"annotations": map[string]string{"n": fmt.Sprint(i), "pad": strings.Repeat("x", size)},
		})
		if err != nil {
			t.Fatal(err)
		}
		d := digest.FromBytes(b)
		h.docs[d.String()] = b
		entries = append(entries, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: d, Size: int64(len(b))})
	}
	desc, b := makeIndex(t, ocispec.MediaTypeImageIndex, entries...)
	h.docs["latest"], h.docs[desc.Digest.String()] = b, b
	return h
}

// However many documents a name leads to, however large they are and however slowly they come, resolving it ends soon, and the error says what it took.
func TestResolveBudget(t *testing.T) {
	t.Parallel()
	many := fanOut(t, 300, 0)
	large := fanOut(t, 20, 3<<20)
	slow := fanOut(t, 300, 0)
	slow.send = func(w http.ResponseWriter, _ *http.Request, b []byte) {
		time.Sleep(50 * time.Millisecond)
		_, _ = w.Write(b)
	}
	dripping := fanOut(t, 300, 0)
	dripping.send = drip(20 * time.Millisecond)
	for _, tt := range []struct {
		name     string
		server   *hostile
		time     time.Duration // of the budget
		want     string
		requests int32 // at most
	}{
		{"many documents", many, time.Minute, "read 64 documents of ", 70},
		{"large documents", large, time.Minute, "read 7 documents of 18", 12},
		{"slow documents", slow, 500 * time.Millisecond, "without finding an image for linux/amd64: at most 64 documents, 16 MiB and 500ms are spent on that", 20},
		{"a byte at a time", dripping, time.Minute, "the bytes came too slowly", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, tt.server)
			im := newImages(t)
			im.Client = repotest.Hurried(5*time.Second, 300*time.Millisecond, time.Second)
			images.SetResolveTime(im, tt.time)
			began := time.Now()
			_, err := im.Resolve(t.Context(), addr+"/x:latest", repotest.Linux("amd64"))
			if err == nil || !strings.HasPrefix(err.Error(), "resolve "+addr+"/x:latest: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			if n := tt.server.requests.Load(); n > tt.requests {
				t.Errorf("%d requests", n)
			}
			if d := time.Since(began); d > 10*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

// An index for 20,000 platforms makes no error that names them all.
func TestResolveNamesFewPlatforms(t *testing.T) {
	var entries []ocispec.Descriptor
	for i := range 20_000 {
		entries = append(entries, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(i)), Size: 1,
			Platform: &ocispec.Platform{OS: "linux", Architecture: fmt.Sprint("cpu", i)},
		})
	}
	desc, b := makeIndex(t, ocispec.MediaTypeImageIndex, entries...)
	h := &hostile{docs: map[string][]byte{"latest": b, desc.Digest.String(): b}}
	im := newImages(t)
	_, err := im.Resolve(t.Context(), serve(t, h)+"/x", repotest.Linux("amd64"))
	if err == nil || !strings.HasSuffix(err.Error(), " and others") || len(err.Error()) > 1000 {
		t.Errorf("got %v", err)
	}
}

// A mirror that spends the budget spends it for all.
func TestResolveBudgetIsOne(t *testing.T) {
	mirror, origin := fanOut(t, 300, 0), fanOut(t, 1, 0)
	im := newImages(t)
	host := serve(t, origin)
	im.Mirrors = map[string][]string{host: {serve(t, mirror)}}
	_, err := im.Resolve(t.Context(), host+"/x", repotest.Linux("amd64"))
	if err == nil || !strings.Contains(err.Error(), "read 64 documents") || origin.requests.Load() > 0 {
		t.Errorf("got %v, and %d requests of the registry", err, origin.requests.Load())
	}
}

// A cache whose documents do not come is a miss, with one warning, and costs less the second time.
func TestCacheDrips(t *testing.T) {
	t.Parallel()
	h := &hostile{docs: make(map[string][]byte), send: drip(20 * time.Millisecond)}
	var ids []keys.ID
	for i := range 10 {
		id := keys.ID(sha256.Sum256([]byte{byte(i)}))
		ids = append(ids, id)
		h.docs[id.String()+".rec"] = []byte(strings.Repeat(" ", 1000) + fmt.Sprint(i))
	}
	var warnings []string
	c := &registry.Cache{Repo: repotest.Open(t, serve(t, h)+"/x", repotest.Hurried(time.Second, time.Second, 30*time.Second)), Store: repotest.OpenStore(t), Warn: func(s string) { warnings = append(warnings, s) }}
	for i := range 4 {
		began := time.Now()
		r, err := c.Find(t.Context(), ids[i:])
		if r != nil || err != nil {
			t.Errorf("got %v, %v", r, err)
		}
		if d := time.Since(began); d > 5*time.Second || i > 0 && d > 1800*time.Millisecond {
			t.Errorf("look-up %d took %v", i+1, d)
		}
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "the bytes came too slowly") {
		t.Errorf("warnings: %q", warnings)
	}
}

// A token that does not come is not waited for.
func TestTokenDrips(t *testing.T) {
	t.Parallel()
	var self string
	mux := http.NewServeMux()
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		drip(20*time.Millisecond)(w, r, []byte(`{"token":"`+strings.Repeat("x", 1000)+`"}`))
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+self+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	self = serve(t, mux)
	im := newImages(t)
	im.Client = repotest.Hurried(time.Second, 300*time.Millisecond, time.Second)
	began := time.Now()
	_, err := im.Resolve(t.Context(), self+"/x", repotest.Linux("amd64"))
	if err == nil || !strings.Contains(err.Error(), "the bytes came too slowly") || time.Since(began) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
}

// The tags of a repository have an end, or listing them is an error: of whoever lists them.
func TestTagListsEnd(t *testing.T) {
	t.Parallel()
	page := func(w http.ResponseWriter, next string, tags ...string) {
		if next != "" {
			w.Header().Set("Link", fmt.Sprintf(`<%s>; rel="next"`, next))
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"tags": tags})
	}
	list := "/v2/x/tags/list?last="
	for name, tt := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, last string)
		want   string
	}{
		"pages without end": {func(w http.ResponseWriter, _ *http.Request, last string) {
			n, _ := strconv.Atoi(last)
			page(w, list+strconv.Itoa(n+1), "t"+last)
		}, "it has no end: 10000 pages with "},
		"a circle": {func(w http.ResponseWriter, _ *http.Request, last string) {
			page(w, list+map[string]string{"": "b", "b": "c", "c": "b"}[last], "t"+last)
		}, "goes round in a circle"},
		"the same page under other names": {func(w http.ResponseWriter, _ *http.Request, last string) {
			page(w, list+last+"x", "t")
		}, "goes round in a circle"},
		"a page that drips": {func(w http.ResponseWriter, r *http.Request, last string) {
			drip(20*time.Millisecond)(w, r, []byte(`{"tags":["`+strings.Repeat("x", 1000)+`"]}`))
		}, "the bytes came too slowly"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tt.answer(w, r, r.URL.Query().Get("last")) }))
			repo := repotest.Open(t, addr+"/x", repotest.Hurried(300*time.Millisecond, 300*time.Millisecond, 5*time.Second))
			c := &registry.Cache{Repo: repo, Store: repotest.OpenStore(t)}
			for what, do := range map[string]func() error{
				"list": func() error {
					for _, err := range repo.Tags(t.Context()) {
						if err != nil {
							return err
						}
					}
					return nil
				},
				"collect garbage": func() error {
					_, err := c.GC(t.Context(), registry.GCOptions{})
					return err
				},
				"verify": func() error {
					for _, err := range c.Verify(t.Context()) {
						if err != nil {
							return err
						}
					}
					return nil
				},
				"keys": func() error {
					_, err := c.Keys(t.Context())
					return err
				},
			} {
				if what != "list" && name == "pages without end" {
					continue // 10,000 requests once are enough
				}
				began := time.Now()
				if err := do(); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: %v", what, err)
				}
				if d := time.Since(began); d > 20*time.Second {
					t.Errorf("%s took %v", what, d)
				}
			}
		})
	}
}

// Whoever has enough gets nothing more, not even the error that the context has ended meanwhile.
func TestTagsAreEnough(t *testing.T) {
	t.Parallel()
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"tags": []string{"a", "b"}})
	}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for tag, err := range repotest.Open(t, addr+"/x").Tags(ctx) {
		if err != nil || tag != "a" {
			t.Errorf("got %q, %v", tag, err)
		}
		cancel()
		break
	}
}
