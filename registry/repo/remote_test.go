package repo_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

// hurriedClient is for tests that wait for what never comes.
func hurriedClient() *repo.Client {
	return repotest.Hurried(300*time.Millisecond, 300*time.Millisecond, 5*time.Second)
}

func manifestWith(t testing.TB, config ocispec.Descriptor) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": config, "layers": []any{}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readAll reads a blob to its end.
func readAll(ctx context.Context, r repo.Repo, desc ocispec.Descriptor) ([]byte, error) {
	rc, err := r.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// An operation is one call of a Repo with what it needs in the repository.
type operation struct {
	name string
	call func(ctx context.Context) error
	want map[string]int // requests by kind
}

// operations are all methods, each of which finds what it wants.
func operations(t testing.TB, p *conformance.Proxy, c *repo.Client) []operation {
	t.Helper()
	name := fmt.Sprintf("%s/x%s", repoName(t), p.Addr[strings.LastIndex(p.Addr, ":")+1:])
	direct := repotest.Open(t, p.Addr+"/"+name)
	r := repotest.Open(t, p.Addr+"/"+name, c)
	desc, blob := conformance.RandomBlob(300_000)
	conformance.PutBytes(t, direct, "", blob)
	image, m := conformance.PutImage(t, direct, "x")
	wantManifest := func(desc ocispec.Descriptor, err error) error {
		if err == nil && desc.Digest != image.Digest {
			return fmt.Errorf("got %v", desc)
		}
		return err
	}
	return []operation{
		{"head", func(ctx context.Context) error {
			return wantManifest(r.Head(ctx, "x"))
		}, map[string]int{"HEAD manifest": 1}},
		{"head of a digest", func(ctx context.Context) error {
			return wantManifest(r.Head(ctx, image.Digest.String()))
		}, map[string]int{"HEAD manifest": 1}},
		{"manifest", func(ctx context.Context) error {
			desc, _, err := r.Manifest(ctx, "x")
			return wantManifest(desc, err)
		}, map[string]int{"GET manifest": 1}},
		{"manifest of a digest", func(ctx context.Context) error {
			desc, _, err := r.Manifest(ctx, image.Digest.String())
			return wantManifest(desc, err)
		}, map[string]int{"GET manifest": 1}},
		{"blob", func(ctx context.Context) error {
			b, err := readAll(ctx, r, desc)
			if err == nil && !bytes.Equal(b, blob) {
				return errors.New("it comes back otherwise")
			}
			return err
		}, map[string]int{"GET blob": 1}},
		{"has blob", func(ctx context.Context) error {
			has, err := r.HasBlob(ctx, desc)
			if err == nil && !has {
				return errors.New("it is not there")
			}
			return err
		}, map[string]int{"HEAD blob": 1}},
		{"put blob", func(ctx context.Context) error {
			desc, b := conformance.RandomBlob(300_000)
			return r.PutBlob(ctx, desc, "", conformance.OpenBytes(b))
		}, map[string]int{"POST upload": 1, "PUT upload": 1}},
		{"put manifest", func(ctx context.Context) error {
			_, err := r.PutManifest(ctx, "y", ocispec.MediaTypeImageManifest, m)
			return err
		}, map[string]int{"PUT manifest": 1}},
		{"tags", func(ctx context.Context) error {
			n := 0
			for _, err := range r.Tags(ctx) {
				if err != nil {
					return err
				}
				n++
			}
			if n == 0 {
				return errors.New("there are none")
			}
			return nil
		}, map[string]int{"GET tags": 1}},
		{"delete", func(ctx context.Context) error {
			return r.Delete(ctx, digest.FromString("nothing").String())
		}, map[string]int{"DELETE manifest": 1}},
	}
}

func TestRepoRequests(t *testing.T) {
	t.Parallel()
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	for _, op := range operations(t, p, new(repo.Client)) {
		p.Counts()
		if err := op.call(t.Context()); err != nil {
			t.Errorf("%s: %v", op.name, err)
		}
		requests := p.Requests()
		got := make(map[string]int)
		for kind, c := range p.Counts() {
			got[kind] = c.Requests
		}
		if fmt.Sprint(got) != fmt.Sprint(op.want) {
			t.Errorf("%s: %q, want %v", op.name, requests, op.want)
		}
	}
}

// TestRepoPassingFaults has one bad thing happen to each kind of request of each method: all of them succeed.
func TestRepoPassingFaults(t *testing.T) {
	t.Parallel()
	addr := conformance.NewDebian(t).Addr
	tests := []struct {
		name  string
		fault conformance.Fault
		only  string // kind of request
	}{
		{"status 500", conformance.Fault{Status: 500, Body: "oh"}, ""},
		{"status 502", conformance.Fault{Status: 502}, ""},
		{"status 503", conformance.Fault{Status: 503}, ""},
		{"status 504", conformance.Fault{Status: 504}, ""},
		{"status 408", conformance.Fault{Status: 408}, ""},
		{"status 429", conformance.Fault{Status: 429}, ""},
		{"dropped", conformance.Fault{Drop: true}, ""},
		{"hangs", conformance.Fault{Hang: true}, ""},
		{"deaf", conformance.Fault{Deaf: true}, ""},
		{"answer lost", conformance.Fault{Lose: true}, ""},
		{"reset early", conformance.Fault{Reset: true}, ""},
		{"reset late", conformance.Fault{Reset: true, After: 100_000}, ""},
		{"stalls", conformance.Fault{Stall: true, After: 10}, ""},
		{"slow", conformance.Fault{Delay: 100 * time.Millisecond}, ""},
		{"cut upload", conformance.Fault{Cut: 100_000}, "PUT upload"},
		{"lost session", conformance.Fault{Status: 404, Body: `{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}`}, "PUT upload"},
		{"bad session", conformance.Fault{Status: 416, Body: `{"errors":[{"code":"BLOB_UPLOAD_INVALID"}]}`}, "PUT upload"},
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, tt := range tests {
		p := conformance.StartProxy(t, addr)
		ops := operations(t, p, repotest.Hurried(time.Second, time.Second, 10*time.Second)) // a busy machine answers late
		wg.Go(func() {
			for _, op := range ops {
				for kind := range op.want {
					if tt.only != "" && tt.only != kind {
						continue
					}
					var done atomic.Bool
					p.Break(func(r *http.Request) conformance.Fault {
						if conformance.KindOf(r) == kind && !done.Swap(true) {
							return tt.fault
						}
						return conformance.Fault{}
					})
					begin := time.Now()
					if err := op.call(t.Context()); err != nil {
						t.Errorf("%s, %s, %s: %v", tt.name, op.name, kind, err)
					}
					if d := time.Since(begin); d > 5*time.Second || !done.Load() {
						t.Errorf("%s, %s, %s: it took %v; broken: %v", tt.name, op.name, kind, d, done.Load())
					}
				}
			}
		})
	}
}

// TestRepoLastingFaults has a registry that has no good moment: each method ends in an error soon, a second call sooner, and all is well in the next run.
func TestRepoLastingFaults(t *testing.T) {
	t.Parallel()
	addr := conformance.NewDebian(t).Addr
	tests := []struct {
		name  string
		fault func(*http.Request) conformance.Fault // nil: it is dead
	}{
		{"dead", nil},
		{"hangs", func(*http.Request) conformance.Fault { return conformance.Fault{Hang: true} }},
		{"deaf", func(*http.Request) conformance.Fault { return conformance.Fault{Deaf: true} }},
		{"drops", func(*http.Request) conformance.Fault { return conformance.Fault{Drop: true} }},
		{"status 500", func(*http.Request) conformance.Fault { return conformance.Fault{Status: 500, Body: "<html>"} }},
		{"status 503", func(*http.Request) conformance.Fault { return conformance.Fault{Status: 503} }},
		{"status 429", func(*http.Request) conformance.Fault { return conformance.Fault{Status: 429} }},
		{"paused", func(*http.Request) conformance.Fault {
			return conformance.Fault{Status: 503, Header: http.Header{"Retry-After": {"5"}}}
		}},
		{"login page", func(*http.Request) conformance.Fault { return conformance.Fault{Status: 401, Body: "<html>"} }},
		{"status 200", func(*http.Request) conformance.Fault { return conformance.Fault{Status: 200, Body: "<html>Welcome"} }},
		{"status 418", func(*http.Request) conformance.Fault { return conformance.Fault{Status: 418} }},
		{"redirect to itself", func(r *http.Request) conformance.Fault { return conformance.Fault{Redirect: r.URL.Path} }},
		{"redirect to nowhere", func(*http.Request) conformance.Fault {
			return conformance.Fault{Redirect: "http://127.0.0.1:1/?s3cret"}
		}},
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, tt := range tests {
		p := conformance.StartProxy(t, addr)
		ops := operations(t, p, repotest.Hurried(300*time.Millisecond, 300*time.Millisecond, time.Second))
		afterwards := operations(t, p, new(repo.Client))
		wg.Go(func() {
			p.Break(tt.fault)
			if tt.fault == nil {
				p.Kill()
			}
			for _, op := range ops {
				begin := time.Now()
				err := op.call(t.Context())
				if tt.name == "status 200" && (op.name == "delete" || op.name == "put manifest") {
					continue // that is what it says
				}
				if err == nil {
					t.Errorf("%s: %s: no error", tt.name, op.name)
				} else if strings.Contains(err.Error(), "s3cret") || errors.Is(err, repo.ErrNotFound) && tt.name != "status 200" {
					t.Errorf("%s: %s: %v", tt.name, op.name, err)
				}
				if d := time.Since(begin); d > 3*time.Second {
					t.Errorf("%s: %s: it took %v", tt.name, op.name, d)
				}
			}
			if !strings.HasPrefix(tt.name, "redirect") && tt.name != "login page" && tt.name != "status 200" {
				for _, op := range ops { // all patience is spent
					p.Counts()
					if err := op.call(t.Context()); err == nil {
						t.Errorf("%s: %s: no error", tt.name, op.name)
					}
					if n := conformance.Total(p.Counts()).Requests; n > 1 {
						t.Errorf("%s: %s, again: %d requests", tt.name, op.name, n)
					}
				}
			}
			p.Break(nil)
			if tt.fault == nil {
				p.Revive(t)
			}
			for _, op := range afterwards {
				if err := op.call(t.Context()); err != nil {
					t.Errorf("after %s: %s: %v", tt.name, op.name, err)
				}
			}
		})
	}
}

// TestRepoCancelledWhileWaiting cancels calls that wait for a registry, for the end of its pause, or for the next try.
func TestRepoCancelledWhileWaiting(t *testing.T) {
	t.Parallel()
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	for name, fault := range map[string]conformance.Fault{
		"hangs":  {Hang: true},
		"deaf":   {Deaf: true},
		"busy":   {Status: 503, Header: http.Header{"Retry-After": {"20"}}},
		"errors": {Status: 500},
		"stalls": {Stall: true, After: 10},
	} {
		p.Break(nil)
		for _, op := range operations(t, p, new(repo.Client)) {
			if (op.name == "delete" || strings.HasPrefix(op.name, "head") || strings.HasPrefix(op.name, "has")) && name == "stalls" {
				continue // there are no bytes to wait for
			}
			p.Break(func(*http.Request) conformance.Fault { return fault })
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			begin := time.Now()
			err := op.call(ctx)
			cancel()
			if d := time.Since(begin); d > time.Second || !errors.Is(err, context.DeadlineExceeded) && !(name == "stalls" && err == nil) {
				t.Errorf("%s, %s: %v after %v", name, op.name, err, d)
			}
		}
	}
}

func TestRepoPausesHost(t *testing.T) {
	t.Parallel()
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	conformance.PutImage(t, repotest.Open(t, p.Addr+"/x"), "x")
	p.Counts()
	p.SetRate(20)
	r := repotest.Open(t, p.Addr+"/x")
	begin := time.Now()
	var wg sync.WaitGroup
	const n = 60
	for range n {
		wg.Go(func() {
			if _, err := r.Head(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if d := time.Since(begin); d < time.Second || d > 8*time.Second {
		t.Errorf("it took %v", d)
	}
	if sent := conformance.Total(p.Counts()).Requests; sent > 3*n {
		t.Errorf("%d requests for %d answers", sent, n)
	}
	t.Logf("%d requests at 20/s took %v", n, time.Since(begin))
}

// TestRepoPausedUpload has the PUT refused, which is not sent again but begun anew.
func TestRepoPausedUpload(t *testing.T) {
	t.Parallel()
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	r := repotest.Open(t, p.Addr+"/x")
	var refused atomic.Int32
	p.Break(func(r *http.Request) conformance.Fault {
		if r.Method == http.MethodPut && refused.Add(1) == 1 {
			return conformance.Fault{Status: 429, Header: http.Header{"Retry-After": {"1"}}}
		}
		return conformance.Fault{}
	})
	begin := time.Now()
	_, b := conformance.RandomBlob(1000)
	conformance.PutBytes(t, r, "", b)
	if d := time.Since(begin); d < time.Second || d > 4*time.Second {
		t.Errorf("it took %v", d)
	}
}

// TestRepoUploadNeverTaken lets uploads begin, and has the blob wait for ever.
func TestRepoUploadNeverTaken(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			w.Header().Set("Location", "/v2/x/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	defer srv.Close()
	r := repotest.Open(t, srv.Listener.Addr().String()+"/x", repotest.Hurried(time.Second, time.Second, 300*time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	desc, b := conformance.RandomBlob(1000)
	err := r.PutBlob(ctx, desc, "", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err == nil || ctx.Err() != nil {
		t.Errorf("got %v", err)
	}
}

func TestRepoInFlight(t *testing.T) {
	t.Parallel()
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	r := repotest.Open(t, p.Addr+"/x")
	// No request is answered before the 32nd has arrived and a 33rd had time to.
	full := make(chan struct{})
	var arrived atomic.Int32
	p.Break(func(r *http.Request) conformance.Fault {
		if arrived.Add(1) == 32 {
			time.Sleep(200 * time.Millisecond)
			close(full)
		}
		select {
		case <-full:
		case <-time.After(20 * time.Second):
		}
		return conformance.Fault{}
	})
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := r.Head(t.Context(), "x"); !errors.Is(err, repo.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := p.Peak(); n != 32 {
		t.Errorf("%d requests at a time", n)
	}
}

// TestRepoHTTP2 has a registry behind TLS: parallel requests share a connection.
func TestRepoHTTP2(t *testing.T) {
	t.Parallel()
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	var mu sync.Mutex
	protocols := make(map[string]int)
	remotes := make(map[string]int)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		protocols[r.Proto]++
		remotes[r.RemoteAddr]++
		mu.Unlock()
		p.ServeHTTP(w, r)
	}))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // it is asked first whether it speaks TLS
	srv.StartTLS()
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	certs := t.TempDir()
	repotest.WriteFile(t, filepath.Join(certs, addr, "ca.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	r := repotest.Open(t, addr+"/x", &repo.Client{Certs: certs})
	image, _ := conformance.PutImage(t, r, "x")
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if _, err := r.Head(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	desc, big := conformance.RandomBlob(3 << 20)
	conformance.PutBytes(t, r, "", big)
	if b, err := readAll(t.Context(), r, desc); err != nil || !bytes.Equal(b, big) {
		t.Errorf("the blob comes back otherwise: %v", err)
	}
	if _, _, err := r.Manifest(t.Context(), image.Digest.String()); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(protocols) != 1 || protocols["HTTP/2.0"] == 0 || len(remotes) > 2 {
		t.Errorf("%v over %d connections", protocols, len(remotes))
	}
}

func TestRepoMount(t *testing.T) {
	t.Parallel()
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	base := repotest.Open(t, p.Addr+"/library/base")
	r := repotest.Open(t, p.Addr+"/cache")
	_, b := conformance.RandomBlob(1000)
	here := conformance.PutBytes(t, base, "", b)
	sent := errors.New("it was sent")
	never := func() (io.ReadCloser, error) { return nil, sent }
	for _, name := range []string{p.Addr + "/library/base", p.Addr + "/library/base:x", p.Addr + "/library/base@" + here.Digest.String()} {
		p.Counts()
		if err := r.PutBlob(t.Context(), here, name, never); err != nil {
			t.Errorf("from %s: %v", name, err)
		}
		if got := p.Requests(); len(got) != 1 || !strings.HasPrefix(got[0], "POST /v2/cache/blobs/uploads/?mount=sha256:") {
			t.Errorf("from %s: %q", name, got)
		}
	}
	if b2, err := readAll(t.Context(), r, here); err != nil || !bytes.Equal(b2, b) {
		t.Errorf("the mounted blob: %v", err)
	}

	// What is not there is sent within the same call, by the upload that the registry has begun.
	elsewhere, b := conformance.RandomBlob(1000)
	p.Counts()
	if err := r.PutBlob(t.Context(), elsewhere, p.Addr+"/library/base", conformance.OpenBytes(b)); err != nil {
		t.Error(err)
	}
	if got := p.Requests(); len(got) != 2 {
		t.Errorf("%q", got)
	}

	// Some registries refuse it instead.
	p.Break(func(r *http.Request) conformance.Fault {
		if r.URL.Query().Has("mount") {
			return conformance.Fault{Status: 400}
		}
		return conformance.Fault{}
	})
	elsewhere, b = conformance.RandomBlob(1000)
	if err := r.PutBlob(t.Context(), elsewhere, p.Addr+"/library/base", conformance.OpenBytes(b)); err != nil {
		t.Error(err)
	}
	// Of other registries nothing is asked.
	p.Counts()
	elsewhere, b = conformance.RandomBlob(1000)
	if err := r.PutBlob(t.Context(), elsewhere, "docker.io/library/base", conformance.OpenBytes(b)); err != nil {
		t.Error(err)
	}
	for _, line := range p.Requests() {
		if strings.Contains(line, "mount") {
			t.Error(line)
		}
	}
}

func TestRepoReadOnly(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *conformance.Registry{"debian": conformance.NewDebian, "distribution": conformance.NewDistribution} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := start(t)
			r := repotest.Open(t, reg.Addr+"/x")
			image, m := conformance.PutImage(t, r, "x")
			reg.SetReadOnly(t, true)
			desc, b := conformance.RandomBlob(10)
			if err := r.PutBlob(t.Context(), desc, "", conformance.OpenBytes(b)); !errors.Is(err, repo.ErrReadOnly) {
				t.Errorf("put blob: %v", err)
			}
			if _, err := r.PutManifest(t.Context(), "y", ocispec.MediaTypeImageManifest, m); !errors.Is(err, repo.ErrReadOnly) {
				t.Errorf("put manifest: %v", err)
			}
			if err := r.Delete(t.Context(), image.Digest.String()); !errors.Is(err, repo.ErrReadOnly) || !strings.Contains(err.Error(), "DELETE_ENABLED") {
				t.Errorf("delete: %v", err)
			}
			if got, err := r.Head(t.Context(), "x"); err != nil || got.Digest != image.Digest {
				t.Errorf("head: %v, %v", got, err)
			}
			reg.SetReadOnly(t, false)
			if err := r.PutBlob(t.Context(), desc, "", conformance.OpenBytes(b)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRepoGarbageCollected(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *conformance.Registry{"debian": conformance.NewDebian, "distribution": conformance.NewDistribution} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := start(t)
			r := repotest.Open(t, reg.Addr+"/x")
			first, m := conformance.PutImage(t, r, "x")
			conformance.PutImage(t, r, "x")
			loose := conformance.PutBytes(t, r, "", []byte("loose"))
			reg.GarbageCollect(t)
			if _, err := r.Head(t.Context(), first.Digest.String()); !errors.Is(err, repo.ErrNotFound) {
				t.Errorf("the untagged image: %v", err)
			}
			if _, err := r.Blob(t.Context(), loose); !errors.Is(err, repo.ErrNotFound) {
				t.Errorf("the loose blob: %v", err)
			}
			if _, err := r.Head(t.Context(), "x"); err != nil {
				t.Error(err)
			}
			if _, err := r.PutManifest(t.Context(), "y", ocispec.MediaTypeImageManifest, m); !errors.Is(err, repo.ErrBlobUnknown) {
				t.Errorf("put the image without its blobs: %v", err)
			}
			conformance.PutBytes(t, r, "", []byte("loose"))
			if b, err := readAll(t.Context(), r, loose); err != nil || string(b) != "loose" {
				t.Errorf("the blob, put again: %q, %v", b, err)
			}
		})
	}
}

// TestRepoBroken breaks what the registry has on its disk.
func TestRepoBroken(t *testing.T) {
	t.Parallel()
	reg := conformance.NewDebian(t)
	r := repotest.Open(t, reg.Addr+"/x")
	for _, size := range []int{999, 1001} {
		desc, b := conformance.RandomBlob(1000)
		conformance.PutBytes(t, r, "", b)
		repotest.WriteFile(t, reg.BlobPath(desc.Digest.Encoded()), make([]byte, size))
		if _, err := r.Blob(t.Context(), desc); !errors.Is(err, repo.ErrNotFound) {
			t.Errorf("a blob of %d bytes: %v", size, err)
		}
		if has, err := r.HasBlob(t.Context(), desc); has || err != nil {
			t.Errorf("has a blob of %d bytes: %v, %v", size, has, err)
		}
	}
	p := conformance.StartProxy(t, reg.Addr)
	r = repotest.Open(t, p.Addr+"/x")
	conformance.PutImage(t, r, "x")
	p.Break(func(*http.Request) conformance.Fault { return conformance.Fault{Append: 5 << 20} })
	if _, _, err := r.Manifest(t.Context(), "x"); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("a manifest of 5 MiB: %v", err)
	}
}

func TestRepoRefusedManifest(t *testing.T) {
	t.Parallel()
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	r := repotest.Open(t, p.Addr+"/x")
	_, m := conformance.PutImage(t, r, "x")
	tests := []struct {
		status int
		body   string
		want   error
	}{
		{400, `{"errors":[{"code":"MANIFEST_INVALID","message":"unknown media type"}]}`, repo.ErrRefused},
		{400, ``, repo.ErrRefused},
		{415, `{"errors":[{"code":"UNSUPPORTED"}]}`, repo.ErrRefused},
		{400, `{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}`, repo.ErrBlobUnknown},
		{404, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`, repo.ErrBlobUnknown},
		{404, `{"errors":[{"code":"NAME_UNKNOWN","message":"create it first"}]}`, repo.ErrNotFound},
		{403, `{"errors":[{"code":"DENIED","message":"\u001b[31mno\u0007"}]}`, repo.ErrReadOnly},
		{405, `{"errors":[{"code":"UNSUPPORTED"}]}`, repo.ErrReadOnly},
	}
	for _, tt := range tests {
		p.Break(func(r *http.Request) conformance.Fault { return conformance.Fault{Status: tt.status, Body: tt.body} })
		_, err := r.PutManifest(t.Context(), "y", ocispec.MediaTypeImageManifest, m)
		if !errors.Is(err, tt.want) {
			t.Errorf("%d %s: got %v", tt.status, tt.body, err)
		}
		for _, other := range []error{repo.ErrRefused, repo.ErrBlobUnknown, repo.ErrNotFound, repo.ErrReadOnly} {
			if other != tt.want && errors.Is(err, other) {
				t.Errorf("%d %s: got %v, too", tt.status, tt.body, other)
			}
		}
		if strings.ContainsAny(err.Error(), "\x1b\x07") {
			t.Errorf("it would change the terminal: %q", err)
		}
	}
}

// TestRepoTagPages has the ways in which registries hand out lists in parts.
func TestRepoTagPages(t *testing.T) {
	t.Parallel()
	var self string
	pages := map[string]struct {
		body string
		next func() string
	}{
		"":  {`{"name":"x","tags":["a","b"]}`, func() string { return `</v2/x/tags/list?last=b&n=2>; rel="next"` }},
		"b": {`{"tags":["c"]}`, func() string { return "<" + self + `/v2/x/tags/list?last=c&n=2>; rel=next` }},
		"c": {`{"tags":["d"]}`, func() string { return `<https://wrong.example/v2/x/tags/list?last=d>; rel="next"` }},
		"d": {`{"tags":["e"]}`, func() string { return `<list?last=c&n=2>; rel="first"` }},
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/x/tags/list" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		page := pages[r.URL.Query().Get("last")]
		w.Header().Set("Link", page.next())
		_, _ = io.WriteString(w, page.body)
	}))
	defer srv.Close()
	self = srv.URL
	addr := srv.Listener.Addr().String()
	var got []string
	for tag, err := range repotest.Open(t, addr+"/x").Tags(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, tag)
	}
	if !slices.Equal(got, []string{"a", "b", "c", "d", "e"}) {
		t.Errorf("got %q", got)
	}
	gc := &registry.Cache{Repo: repotest.Open(t, addr+"/x")}
	if report, err := gc.GC(t.Context(), registry.GCOptions{OlderThan: time.Hour}); err != nil || report.Requests != len(pages) {
		t.Errorf("garbage collection made %d requests, %v", report.Requests, err)
	}
}

// TestRepoUploadElsewhere has registries that want blobs sent to other places.
func TestRepoUploadElsewhere(t *testing.T) {
	desc, blob := conformance.RandomBlob(1000)
	var mu sync.Mutex
	var got []string
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprint(r.Method, " ", r.URL.RequestURI(), " ", len(b), " ", r.Header.Get("Authorization")))
		w.WriteHeader(http.StatusCreated)
	}))
	defer storage.Close()
	var location string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("Www-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodPost {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusAccepted)
			return
		}
		storage.Config.Handler.ServeHTTP(w, r)
	}))
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	dir := t.TempDir()
	login := base64.StdEncoding.EncodeToString([]byte("me:passw0rd"))
	repotest.WriteFile(t, filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, addr, login))
	t.Setenv("DOCKER_CONFIG", dir)
	query := "digest=" + strings.Replace(desc.Digest.String(), ":", "%3A", 1)
	for _, tt := range []struct{ location, want string }{
		{"/v2/x/blobs/uploads/1", "PUT /v2/x/blobs/uploads/1?" + query + " 1000 Basic " + login},
		{"2?state=b%2Fa&a=1", "PUT /v2/x/blobs/uploads/2?state=b%2Fa&a=1&" + query + " 1000 Basic " + login},
		{srv.URL + "/elsewhere", "PUT /elsewhere?" + query + " 1000 Basic " + login},
		{storage.URL + "/bucket?sig=z&b=1", "PUT /bucket?sig=z&b=1&" + query + " 1000 "},
	} {
		location, got = tt.location, nil
		err := repotest.Open(t, addr+"/x").PutBlob(t.Context(), desc, "", conformance.OpenBytes(blob))
		if err != nil || len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s: %q, %v", tt.location, got, err)
		}
	}
}

// TestRepoUploadRedirected has a registry whose uploads are redirected to storage that refuses them: that is an answer, which alone does not make the
// registry one that is down.
func TestRepoUploadRedirected(t *testing.T) {
	desc, blob := conformance.RandomBlob(1000)
	for status, tries := range map[int]int32{http.StatusForbidden: 1, http.StatusInternalServerError: 5} {
		var n atomic.Int32
		storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.Add(1)
			w.WriteHeader(status)
		}))
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.Method {
			case http.MethodPost:
				w.Header().Set("Location", "/v2/x/blobs/uploads/1")
				w.WriteHeader(http.StatusAccepted)
			case http.MethodPut:
				http.Redirect(w, r, storage.URL, http.StatusTemporaryRedirect)
			}
		}))
		r := repotest.Open(t, srv.Listener.Addr().String()+"/x", repotest.Hurried(5*time.Second, 5*time.Second, 20*time.Second))
		err := r.PutBlob(t.Context(), desc, "", conformance.OpenBytes(blob))
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("which answers %d %s", status, http.StatusText(status))) || n.Load() != tries {
			t.Errorf("status %d: %d tries: %v", status, n.Load(), err)
		}
		if _, err := r.HasBlob(t.Context(), desc); err != nil {
			t.Errorf("after status %d: %v", status, err)
		}
		srv.Close()
		storage.Close()
	}
}

// TestRepoSays has registries and token servers that refuse: what was to be done, where, and the answer are told once each, and no status is taken
// for another's.
func TestRepoSays(t *testing.T) {
	t.Parallel()
	var front *httptest.Server
	front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/token/"):
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/nowhere",service="x"`, front.URL))
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/nowhere":
			w.WriteHeader(http.StatusNotFound)
		case r.Method == http.MethodPost:
			w.Header().Set("Location", "/v2/x/blobs/uploads/1?s3cret")
			w.WriteHeader(http.StatusAccepted)
		case strings.HasPrefix(r.URL.Path, "/v2/x/blobs/uploads/"):
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		default:
			w.WriteHeader(http.StatusInsufficientStorage)
			_, _ = io.WriteString(w, `{"errors":[{"code":"FULL","message":"no room"}]}`)
		}
	}))
	defer front.Close()
	addr := front.Listener.Addr().String()
	desc, b := conformance.RandomBlob(10)
	put := func(name string) error {
		return repotest.Open(t, addr+name, hurriedClient()).PutBlob(t.Context(), desc, "", conformance.OpenBytes(b))
	}
	_, full := repotest.Open(t, addr+"/x", hurriedClient()).PutManifest(t.Context(), "y", ocispec.MediaTypeImageManifest, manifestWith(t, desc))
	_, _, read := repotest.Open(t, addr+"/token", hurriedClient()).Manifest(t.Context(), "y")
	for _, tt := range []struct {
		err  error
		want string
	}{
		{put("/x"), "upload to ADDR/x: ADDR: it answers 413 Request Entity Too Large to PUT (a proxy before the registry may limit the size of requests)"},
		{full, "put manifest y into ADDR/x: ADDR: it answers 507 Insufficient Storage to PUT: full: no room"},
		{put("/token"), `upload to ADDR/token: ADDR: get a token: POST "http://ADDR/v2/token/blobs/uploads/": GET "http://ADDR/nowhere": response status code 404: Not Found`},
		{read, `read manifest y of ADDR/token: ADDR: get a token: GET "http://ADDR/v2/token/manifests/y": GET "http://ADDR/nowhere": response status code 404: Not Found`},
	} {
		if tt.err == nil || strings.ReplaceAll(tt.err.Error(), addr, "ADDR") != tt.want || errors.Is(tt.err, repo.ErrNotFound) {
			t.Errorf("got %v, want %s", tt.err, tt.want)
		}
	}
}

// TestRepoLogin has a token server whose tokens end in the middle of an upload, and who gives some people less than others.
func TestRepoLogin(t *testing.T) {
	p := conformance.StartProxy(t, conformance.NewDebian(t).Addr)
	var mu sync.Mutex
	token, uploads := 1, 0
	expire := false
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		user, password, _ := r.BasicAuth()
		if r.URL.Path == "/token" {
			defer mu.Unlock()
			scopes := strings.Join(r.URL.Query()["scope"], " ")
			if password != "passw0rd" || user == "nobody" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if user == "reader" {
				scopes = strings.ReplaceAll(scopes, "push", "")
			}
			fmt.Fprintf(w, `{"token":"%d %s"}`, token, scopes)
			return
		}
		if r.Method == http.MethodPut && expire {
			if uploads++; uploads == 1 {
				token++
			}
		}
		need := "pull"
		if r.Method == http.MethodPut || r.Method == http.MethodPost {
			need = "push"
		}
		have := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		ok := strings.HasPrefix(have, fmt.Sprint(token, " ")) && strings.Contains(have, need)
		mu.Unlock()
		if !ok {
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x",scope="repository:x:pull,push"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		p.ServeHTTP(w, r)
	}))
	defer front.Close()
	addr := front.Listener.Addr().String()
	login := func(t *testing.T, user, password string) repo.Repo {
		dir := t.TempDir()
		repotest.WriteFile(t, filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, addr, base64.StdEncoding.EncodeToString([]byte(user+":"+password))))
		t.Setenv("DOCKER_CONFIG", dir)
		return repotest.Open(t, addr+"/x")
	}
	t.Run("writer", func(t *testing.T) {
		r := login(t, "me", "passw0rd")
		image, m := conformance.PutImage(t, r, "x")
		mu.Lock()
		expire = true
		mu.Unlock()
		_, b := conformance.RandomBlob(1 << 20)
		conformance.PutBytes(t, r, "", b)
		if uploads != 2 {
			t.Errorf("%d uploads", uploads)
		}
		if desc, got, err := r.Manifest(t.Context(), "x"); err != nil || desc.Digest != image.Digest || !bytes.Equal(got, m) {
			t.Error(err)
		}
	})
	desc, b := conformance.RandomBlob(1000)
	for _, user := range []string{"reader", "nobody"} {
		t.Run(user, func(t *testing.T) {
			r := login(t, user, "passw0rd")
			err := r.PutBlob(t.Context(), desc, "", conformance.OpenBytes(b))
			if !errors.Is(err, repo.ErrReadOnly) || !strings.Contains(err.Error(), "obx login") {
				t.Errorf("put blob: %v", err)
			}
			_, err = r.PutManifest(t.Context(), "y", ocispec.MediaTypeImageManifest, manifestWith(t, desc))
			if !errors.Is(err, repo.ErrReadOnly) || strings.Contains(err.Error(), "passw0rd") {
				t.Errorf("put manifest: %v", err)
			}
			_, err = r.Head(t.Context(), "x")
			if user == "reader" && err != nil || user == "nobody" && (err == nil || errors.Is(err, repo.ErrNotFound)) {
				t.Errorf("head: %v", err)
			}
		})
	}
}

// TestRepoMemoryUse sends and reads a blob that is much larger than what may be held of it.
func TestRepoMemoryUse(t *testing.T) {
	const size, most = 96 << 20, 24 << 20
	desc, b := conformance.RandomBlob(1 << 20)
	desc = ocispec.Descriptor{Size: size}
	whole := func() io.Reader {
		rs := make([]io.Reader, size/len(b))
		for i := range rs {
			rs[i] = bytes.NewReader(b)
		}
		return io.MultiReader(rs...)
	}
	var err error
	if desc.Digest, err = digest.FromReader(whole()); err != nil {
		t.Fatal(err)
	}
	r := repotest.Open(t, conformance.NewDebian(t).Addr+"/x")
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	if err := r.PutBlob(t.Context(), desc, "", func() (io.ReadCloser, error) { return io.NopCloser(whole()), nil }); err != nil {
		t.Fatal(err)
	}
	rc, err := r.Blob(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if n, err := io.Copy(io.Discard, rc); n != size || err != nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
	runtime.ReadMemStats(&during)
	if n := during.TotalAlloc - before.TotalAlloc; n > most {
		t.Errorf("%d MiB are allocated", n>>20)
	}
}
