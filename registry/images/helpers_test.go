package images_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
)

const (
	dockerManifestType  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerListType      = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfigType    = "application/vnd.docker.container.image.v1+json"
	dockerLayerGzipType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// A testImage is an image in memory.
type testImage struct {
	desc     ocispec.Descriptor
	config   ocispec.Image
	layers   []ocispec.Descriptor
	manifest []byte
	blobs    map[digest.Digest][]byte // config and layers
}

// A testLayer is one layer of a test image: one file.
type testLayer struct {
	file, text string
	compressed string // "", gzip, zstd
	mediaType  string // "": OCI's
}

func tarOf(t testing.TB, file, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: file, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compressed(t testing.TB, how string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "":
		return b
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		var err error
		if w, err = zstd.NewWriter(&out); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func makeImage(t testing.TB, docker bool, p ocispec.Platform, ls ...testLayer) *testImage {
	t.Helper()
	img := &testImage{blobs: make(map[digest.Digest][]byte), layers: []ocispec.Descriptor{}}
	img.config = ocispec.Image{Platform: p, Config: ocispec.ImageConfig{Env: []string{"A=b"}}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range ls {
		plain := tarOf(t, l.file, l.text)
		b := compressed(t, l.compressed, plain)
		mediaType := ocispec.MediaTypeImageLayer
		if l.compressed != "" {
			mediaType += "+" + l.compressed
		}
		if docker {
			mediaType = dockerLayerGzipType
		}
		if l.mediaType != "" {
			mediaType = l.mediaType
		}
		d := digest.FromBytes(b)
		img.blobs[d] = b
		img.layers = append(img.layers, ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))})
		img.config.RootFS.DiffIDs = append(img.config.RootFS.DiffIDs, digest.FromBytes(plain))
	}
	img.seal(t, docker)
	return img
}

// seal makes the manifest.
func (img *testImage) seal(t testing.TB, docker bool) {
	t.Helper()
	conf, err := json.Marshal(img.config)
	if err != nil {
		t.Fatal(err)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(conf), Size: int64(len(conf))},
		Layers:    img.layers,
	}
	if docker {
		m.MediaType, m.Config.MediaType = dockerManifestType, dockerConfigType
	}
	img.blobs[m.Config.Digest] = conf
	if img.manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	img.desc = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(img.manifest), Size: int64(len(img.manifest))}
}

// retype makes the config one of another media type.
func (img *testImage) retype(t testing.TB, mediaType string) {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(img.manifest, &m); err != nil {
		t.Fatal(err)
	}
	m.Config.MediaType = mediaType
	var err error
	if img.manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	img.desc.Digest, img.desc.Size = digest.FromBytes(img.manifest), int64(len(img.manifest))
}

func makeIndex(t testing.TB, mediaType string, entries ...ocispec.Descriptor) (ocispec.Descriptor, []byte) {
	t.Helper()
	b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Manifests: entries})
	if err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, b
}

func (img *testImage) on(p ocispec.Platform) ocispec.Descriptor {
	d := img.desc
	d.Platform = &p
	return d
}

func repository(addr, path string) *remote.Repository {
	return &remote.Repository{Reference: orasregistry.Reference{Registry: addr, Repository: path}, PlainHTTP: true}
}

// push puts an image into a registry; tag may be "".
func (img *testImage) push(t testing.TB, addr, path, tag string) {
	t.Helper()
	repo := repository(addr, path)
	for d, b := range img.blobs {
		if err := repo.Blobs().Push(t.Context(), ocispec.Descriptor{Digest: d, Size: int64(len(b))}, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	if tag == "" {
		tag = img.desc.Digest.String()
	}
	pushManifest(t, repo, img.desc, img.manifest, tag)
}

func pushManifest(t testing.TB, repo *remote.Repository, desc ocispec.Descriptor, b []byte, ref string) {
	t.Helper()
	if err := repo.Manifests().PushReference(t.Context(), desc, bytes.NewReader(b), ref); err != nil {
		t.Fatal(err)
	}
}

// layoutDir writes images into an OCI layout, by tag.
func layoutDir(t testing.TB, images map[string]*testImage) string {
	t.Helper()
	dir := t.TempDir()
	var entries []ocispec.Descriptor
	for tag, img := range images {
		img.writeBlobs(t, dir)
		d := img.desc
		if tag != "" {
			d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		}
		entries = append(entries, d)
	}
	writeIndex(t, dir, entries...)
	return dir
}

func (img *testImage) writeBlobs(t testing.TB, dir string) {
	t.Helper()
	for d, b := range img.blobs {
		repotest.WriteFile(t, filepath.Join(dir, "blobs/sha256", d.Encoded()), b)
	}
	repotest.WriteFile(t, filepath.Join(dir, "blobs/sha256", img.desc.Digest.Encoded()), img.manifest)
}

func writeIndex(t testing.TB, dir string, entries ...ocispec.Descriptor) {
	t.Helper()
	_, b := makeIndex(t, ocispec.MediaTypeImageIndex, entries...)
	repotest.WriteFile(t, filepath.Join(dir, "index.json"), b)
	repotest.WriteFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

func newImages(t testing.TB) *images.Resolver {
	t.Helper()
	im := &images.Resolver{Store: repotest.OpenStore(t)}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// pull resolves and pulls, without unpacking.
func pull(ctx context.Context, im *images.Resolver, ref string) (*images.Image, error) {
	base, err := im.Resolve(ctx, ref, repotest.Linux("amd64"))
	if err != nil {
		return nil, err
	}
	return im.Pull(ctx, base, false, nil)
}

// wantPulled checks that all of an image is in the store.
func wantPulled(t testing.TB, st *cas.Store, got *images.Image, want *testImage) {
	t.Helper()
	if len(got.Layers) != len(want.layers) || !slices.Equal(got.Config.Config.Env, want.config.Config.Env) {
		t.Fatalf("got %d layers, env %q", len(got.Layers), got.Config.Config.Env)
	}
	for i, l := range got.Layers {
		if l.Blob.Digest != want.layers[i].Digest || l.DiffID != want.config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d is %v", i, l)
		}
		f, err := st.Blob(l.Blob.Digest)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil || !bytes.Equal(b, want.blobs[l.Blob.Digest]) {
			t.Errorf("layer %d: wrong bytes in the store, %v", i, err)
		}
	}
}

// eachRegistry runs a test against each kind of registry.
func eachRegistry(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("debian", func(t *testing.T) { test(t, conformance.NewDebian(t).Addr) })
	t.Run("distribution", func(t *testing.T) { test(t, conformance.NewDistribution(t).Addr) })
}

// A front stands before a registry, counts requests and injects faults.
type front struct {
	addr string
	url  string

	mu       sync.Mutex
	requests []string // "GET /v2/...", with the range if there is one
	fault    func(w http.ResponseWriter, r *http.Request) bool
}

// newFront starts one before the registry at addr.
func newFront(t testing.TB, addr string) *front {
	t.Helper()
	f := &front{}
	srv := httptest.NewUnstartedServer(f.handler(addr))
	srv.Start()
	t.Cleanup(srv.Close)
	f.url, f.addr = srv.URL, srv.Listener.Addr().String()
	return f
}

func (f *front) handler(addr string) http.Handler {
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	proxy.ErrorLog = log.New(io.Discard, "", 0) // clients that go away are part of the tests
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := r.Method + " " + r.URL.Path
		if v := r.Header.Get("Range"); v != "" {
			line += " " + v
		}
		f.mu.Lock()
		f.requests = append(f.requests, line)
		fault := f.fault
		f.mu.Unlock()
		if fault != nil && fault(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

func (f *front) setFault(fault func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// seen gives the requests so far, and forgets them.
func (f *front) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.requests = nil }()
	return f.requests
}

// isBlob matches the GET of a blob.
func isBlob(r *http.Request, d digest.Digest) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+d.String())
}

// abort breaks the connection.
func abort(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // a reset, not an end
	}
	conn.Close()
}

// sendPart answers with the range that was asked for, but only n bytes of it.
func sendPart(w http.ResponseWriter, r *http.Request, b []byte, n int) {
	from := 0
	if v := r.Header.Get("Range"); v != "" {
		if _, err := fmt.Sscanf(v, "bytes=%d-", &from); err != nil {
			panic(err)
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(b)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(b[from:min(from+n, len(b))])
	_ = http.NewResponseController(w).Flush()
}
