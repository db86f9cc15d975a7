package images_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

var _ keys.Resolver = (*images.Resolver)(nil)

// incompressible text of n bytes.
func noise(n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return string(b)
}

func TestPull(t *testing.T) {
	t.Parallel()
	imgs := map[string]*testImage{
		"oci": makeImage(t, false, repotest.Linux("amd64"),
			testLayer{file: "a", text: noise(1 << 18), compressed: "gzip"},
			testLayer{file: "b", text: "b", compressed: "zstd"},
			testLayer{file: "c", text: "c"},
			testLayer{file: "b", text: "b", compressed: "zstd"}), // again
		"docker": makeImage(t, true, repotest.Linux("amd64"), testLayer{file: "a", text: "docker", compressed: "gzip"}),
		"empty":  makeImage(t, false, repotest.Linux("amd64")),
	}
	eachRegistry(t, func(t *testing.T, addr string) {
		f := newFront(t, addr)
		for tag, want := range imgs {
			t.Run(tag, func(t *testing.T) {
				want.push(t, addr, "some/where", tag)
				im := newImages(t)
				ref := f.addr + "/some/where:" + tag
				base, err := im.Resolve(t.Context(), ref, repotest.Linux("amd64"))
				if err != nil {
					t.Fatal(err)
				}
				if base.Digest != want.desc.Digest || base.Ref != ref || base.Platform.Architecture != "amd64" {
					t.Errorf("got %v", base)
				}
				if got, want := f.seen(), []string{"HEAD /v2/some/where/manifests/" + tag}; !slices.Equal(got, want) {
					t.Errorf("resolving took %q", got)
				}
				var mu sync.Mutex
				bytes := make(map[digest.Digest]int64)
				got, err := im.Pull(t.Context(), base, false, func(blob digest.Digest, done, total int64) {
					mu.Lock()
					defer mu.Unlock()
					if done < bytes[blob] || done > total {
						t.Errorf("%s: %d of %d", blob, done, total)
					}
					bytes[blob] = done
				})
				if err != nil {
					t.Fatal(err)
				}
				wantPulled(t, im.Store, got, want)
				for _, l := range want.layers {
					if bytes[l.Digest] != l.Size {
						t.Errorf("progress of %s ended at %d", l.Digest, bytes[l.Digest])
					}
				}
				if got, want := len(f.seen()), 1+len(want.blobs); got != want {
					t.Errorf("%d requests, want %d", got, want)
				}

				again := &images.Resolver{Store: im.Store}
				if got, err = again.Pull(t.Context(), base, false, func(digest.Digest, int64, int64) { t.Error("progress") }); err != nil {
					t.Fatal(err)
				}
				wantPulled(t, im.Store, got, want)
				if got := f.seen(); len(got) > 0 {
					t.Errorf("pulling again took %q", got)
				}
			})
		}
	})
}

func TestPullUnpacks(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("requires root: layers have owners")
	}
	img := makeImage(t, false, repotest.Linux("amd64"),
		testLayer{file: "a", text: "of a", compressed: "gzip"}, testLayer{file: "b", text: "of b", compressed: "zstd"})
	im := newImages(t)
	ref := "oci:" + layoutDir(t, map[string]*testImage{"": img})
	got, err := pull(t.Context(), im, ref) // bytes only
	if err != nil {
		t.Fatal(err)
	}
	if got.Layers[0].Dir != "" {
		t.Errorf("unpacked unasked: %v", got.Layers[0])
	}
	base, err := im.Resolve(t.Context(), ref, repotest.Linux("amd64"))
	if err != nil {
		t.Fatal(err)
	}
	for _, im := range []*images.Resolver{im, newImages(t)} {
		got, err := im.Pull(t.Context(), base, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"a", "b"} {
			if !im.Store.HasLayer(got.Layers[i].Dir) || got.Layers[i].Size == 0 {
				t.Fatalf("layer %d: %v", i, got.Layers[i])
			}
			b, err := os.ReadFile(filepath.Join(im.Store.LayerPath(got.Layers[i].Dir), want))
			if err != nil || string(b) != "of "+want {
				t.Errorf("layer %d: %q, %v", i, b, err)
			}
		}
		again, err := im.Pull(t.Context(), base, true, nil)
		if err != nil || again.Layers[1].Dir != got.Layers[1].Dir || again.Layers[1].Size != got.Layers[1].Size {
			t.Errorf("again: %v, %v", again, err)
		}
	}
}

func TestScratch(t *testing.T) {
	t.Parallel()
	im := newImages(t)
	base, err := im.Resolve(t.Context(), "scratch", repotest.Linux("arm64"))
	if err != nil || base.Digest != "" || base.Ref != "scratch" {
		t.Fatalf("%v, %v", base, err)
	}
	img, err := im.Pull(t.Context(), base, true, nil)
	if err != nil || len(img.Layers) != 0 || img.Config.Architecture != "arm64" {
		t.Errorf("%v, %v", img, err)
	}
}

func TestIndex(t *testing.T) {
	t.Parallel()
	amd64 := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "amd64"})
	arm64 := makeImage(t, false, repotest.Linux("arm64"), testLayer{file: "a", text: "arm64"})
	server := ocispec.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.1"}
	windows := makeImage(t, false, server, testLayer{file: "a", text: "windows"})
	for _, mediaType := range []string{ocispec.MediaTypeImageIndex, dockerListType} {
		eachRegistry(t, func(t *testing.T, addr string) {
			for _, img := range []*testImage{amd64, arm64, windows} {
				img.push(t, addr, "x", "")
			}
			inner, b := makeIndex(t, mediaType, windows.on(server), arm64.on(repotest.Linux("arm64")))
			pushManifest(t, repository(addr, "x"), inner, b, inner.Digest.String())
			outer, b := makeIndex(t, mediaType, amd64.on(repotest.Linux("amd64")), inner)
			pushManifest(t, repository(addr, "x"), outer, b, "multi")
			f := newFront(t, addr)
			im := newImages(t)
			for p, want := range map[string]*testImage{"amd64": amd64, "arm64": arm64} {
				for _, ref := range []string{f.addr + "/x:multi", f.addr + "/x@" + outer.Digest.String()} {
					base, err := im.Resolve(t.Context(), ref, repotest.Linux(p))
					if err != nil {
						t.Fatal(err)
					}
					if base.Digest != want.desc.Digest || base.Platform.Architecture != p {
						t.Errorf("%s: got %v", p, base)
					}
				}
			}
			base, err := im.Resolve(t.Context(), f.addr+"/x:multi", ocispec.Platform{OS: "windows", Architecture: "amd64"})
			if err != nil || base.Digest != windows.desc.Digest || base.Platform.OSVersion != server.OSVersion {
				t.Errorf("windows: %v, %v", base, err)
			}
			_, err = im.Resolve(t.Context(), f.addr+"/x:multi", repotest.Linux("riscv64"))
			const want = "there is no image for linux/riscv64, only for linux/amd64, linux/arm64, windows/amd64 (10.0.20348.1)"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v", err)
			}
			// The same bytes by two names: a HEAD each, no more.
			f.seen()
			if _, err := (&images.Resolver{Store: im.Store}).Resolve(t.Context(), f.addr+"/x:multi", repotest.Linux("amd64")); err != nil {
				t.Error(err)
			}
			if got := f.seen(); len(got) != 1 {
				t.Errorf("%q", got)
			}
			// A digest never means anything else.
			if _, err := (&images.Resolver{Store: im.Store}).Resolve(t.Context(), f.addr+"/x@"+outer.Digest.String(), repotest.Linux("amd64")); err != nil {
				t.Error(err)
			}
			if got := f.seen(); len(got) != 0 {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestSingleWindowsManifest(t *testing.T) {
	t.Parallel()
	server := ocispec.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.1"}
	img := makeImage(t, false, server, testLayer{file: "a", text: "windows"})
	im := newImages(t)
	base, err := im.Resolve(t.Context(), "oci:"+layoutDir(t, map[string]*testImage{"": img}), ocispec.Platform{OS: "windows", Architecture: "amd64"})
	if err != nil || base.Platform.OSVersion != server.OSVersion {
		t.Errorf("%v, %v", base, err)
	}
}

func TestWrongPlatform(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("arm64"), testLayer{file: "a", text: "arm64"})
	_, err := pull(t.Context(), newImages(t), "oci:"+layoutDir(t, map[string]*testImage{"": img}))
	if err == nil || !strings.Contains(err.Error(), "it is for linux/arm64, not for linux/amd64") {
		t.Error(err)
	}
}

func TestResolveOnce(t *testing.T) {
	t.Parallel()
	addr := conformance.StartRegistry(t)
	makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "first"}).push(t, addr, "x", "latest")
	f := newFront(t, addr)
	im := newImages(t)
	var wg sync.WaitGroup
	digests := make([]digest.Digest, 20)
	for i := range digests {
		wg.Go(func() {
			base, err := im.Resolve(t.Context(), f.addr+"/x", repotest.Linux("amd64"))
			if err != nil {
				t.Error(err)
			}
			digests[i] = base.Digest
		})
	}
	wg.Wait()
	makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "second"}).push(t, addr, "x", "latest")
	base, err := im.Resolve(t.Context(), f.addr+"/x", repotest.Linux("amd64"))
	if err != nil {
		t.Fatal(err)
	}
	if digests = slices.Compact(append(digests, base.Digest)); len(digests) != 1 {
		t.Errorf("got several answers: %q", digests)
	}
	if got := f.seen(); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestResolveSurvivesAnothersCancel(t *testing.T) {
	t.Parallel()
	addr := conformance.StartRegistry(t)
	makeImage(t, false, repotest.Linux("amd64")).push(t, addr, "x", "latest")
	f := newFront(t, addr)
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{})
	var once sync.Once
	f.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
		once.Do(func() { close(entered); <-r.Context().Done() })
		return false
	})
	im := newImages(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := im.Resolve(ctx, f.addr+"/x", repotest.Linux("amd64")); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-entered
	wg.Go(func() {
		if _, err := im.Resolve(t.Context(), f.addr+"/x", repotest.Linux("amd64")); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(20 * time.Millisecond)
	cancel()
	wg.Wait()
}

func TestBasesMirrorsLockOffline(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "x", compressed: "gzip"})
	addr := conformance.StartRegistry(t)
	img.push(t, addr, "library/busybox", "latest")
	img.push(t, addr, "proxy/hub/library/busybox", "latest")
	const busybox = "docker.io/library/busybox:latest"

	t.Run("base", func(t *testing.T) {
		im := newImages(t)
		im.Bases = map[string]string{"busybox": addr + "/library/busybox"}
		base, err := im.Resolve(ctx, "busybox:latest", repotest.Linux("amd64"))
		if err != nil || base.Ref != busybox || base.Digest != img.desc.Digest {
			t.Fatalf("%v, %v", base, err)
		}
		got, err := im.Pull(ctx, base, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantPulled(t, im.Store, got, img)

		im = newImages(t)
		im.Bases = map[string]string{"busybox": "oci:" + t.TempDir()}
		_, err = im.Resolve(ctx, "busybox", repotest.Linux("amd64"))
		if err == nil || !strings.Contains(err.Error(), busybox) || !strings.Contains(err.Error(), "which is oci:/") {
			t.Error(err)
		}
	})

	t.Run("mirror", func(t *testing.T) {
		f := newFront(t, addr)
		down := newFront(t, addr)
		down.setFault(func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		})
		im := newImages(t)
		im.Mirrors = map[string][]string{"docker.io": {down.addr, f.addr + "/proxy/hub"}}
		got, err := pull(ctx, im, "busybox")
		if err != nil {
			t.Fatal(err)
		}
		wantPulled(t, im.Store, got, img)
		if got := down.seen(); len(got) == 0 || !strings.Contains(got[0], "/v2/library/busybox/") {
			t.Errorf("%q", got)
		}

		im = newImages(t)
		im.Mirrors = map[string][]string{addr: {down.addr}}
		if _, err := pull(ctx, im, addr+"/library/busybox"); err != nil {
			t.Error(err)
		}
		_, err = im.Resolve(ctx, addr+"/library/other", repotest.Linux("amd64"))
		if err == nil || !strings.Contains(err.Error(), addr+"/library/other: not found") || !strings.Contains(err.Error(), down.addr+": access") {
			t.Error(err)
		}
	})

	t.Run("offline", func(t *testing.T) {
		ref := addr + "/library/busybox"
		im := newImages(t)
		off := &images.Resolver{Store: im.Store, Offline: true}
		if _, err := off.Resolve(ctx, ref, repotest.Linux("amd64")); err == nil || !strings.Contains(err.Error(), "without --offline") {
			t.Error(err)
		}
		base, err := im.Resolve(ctx, ref, repotest.Linux("amd64"))
		if err != nil {
			t.Fatal(err)
		}
		off = &images.Resolver{Store: im.Store, Offline: true}
		if got, err := off.Resolve(ctx, ref, repotest.Linux("amd64")); err != nil || got.Digest != base.Digest {
			t.Errorf("%v, %v", got, err)
		}
		if _, err := off.Pull(ctx, base, false, nil); err == nil || !strings.Contains(err.Error(), "--offline") {
			t.Error(err)
		}
		if _, err := im.Pull(ctx, base, false, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := off.Pull(ctx, base, false, nil); err != nil {
			t.Error(err)
		}
		if _, err := off.Resolve(ctx, ref, repotest.Linux("arm64")); err == nil {
			t.Error("resolved for another platform")
		}
	})

	t.Run("lock", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "lock")
		lock, err := images.OpenLockfile(path)
		if err != nil {
			t.Fatal(err)
		}
		img.push(t, addr, "moving", "latest")
		im := newImages(t)
		im.Lock = lock
		base, err := im.Resolve(ctx, addr+"/moving", repotest.Linux("amd64"))
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.Save(); err != nil {
			t.Fatal(err)
		}
		makeImage(t, false, repotest.Linux("amd64")).push(t, addr, "moving", "latest")
		if lock, err = images.OpenLockfile(path); err != nil {
			t.Fatal(err)
		}
		f := newFront(t, addr)
		im = newImages(t)
		im.Lock = lock
		got, err := im.Resolve(ctx, addr+"/moving", repotest.Linux("amd64"))
		if err != nil || got.Digest != base.Digest {
			t.Fatalf("%v, %v", got, err)
		}
		if reqs := f.seen(); len(reqs) > 0 {
			t.Errorf("%q", reqs)
		}
		if _, err := im.Pull(ctx, got, false, nil); err != nil {
			t.Error(err)
		}
	})
}

func TestLayout(t *testing.T) {
	t.Parallel()
	a := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "a", compressed: "zstd"})
	b := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "b", text: "b", compressed: "gzip"})
	arm := makeImage(t, false, repotest.Linux("arm64"), testLayer{file: "b", text: "arm"})
	two := layoutDir(t, map[string]*testImage{"a": a, "docker.io/library/b:b": b})
	one := layoutDir(t, map[string]*testImage{"": a})

	multi := t.TempDir()
	for _, img := range []*testImage{a, arm} {
		img.writeBlobs(t, multi)
	}
	index, bytes := makeIndex(t, ocispec.MediaTypeImageIndex, arm.desc, a.desc) // without platforms
	repotest.WriteFile(t, filepath.Join(multi, "blobs/sha256", index.Digest.Encoded()), bytes)
	index.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	writeIndex(t, multi, index)

	// An index that has another one 300 times, which has an image of unknown platform twice.
	bomb := t.TempDir()
	arm.writeBlobs(t, bomb)
	inner, bytes := makeIndex(t, ocispec.MediaTypeImageIndex, arm.desc, arm.desc)
	repotest.WriteFile(t, filepath.Join(bomb, "blobs/sha256", inner.Digest.Encoded()), bytes)
	outer, bytes := makeIndex(t, ocispec.MediaTypeImageIndex, slices.Repeat([]ocispec.Descriptor{inner}, 300)...)
	repotest.WriteFile(t, filepath.Join(bomb, "blobs/sha256", outer.Digest.Encoded()), bytes)
	outer.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	writeIndex(t, bomb, outer)

	broken := layoutDir(t, map[string]*testImage{"": b})
	repotest.WriteFile(t, filepath.Join(broken, "blobs/sha256", b.layers[0].Digest.Encoded()), make([]byte, b.layers[0].Size))

	none := filepath.Join(t.TempDir(), "none")
	tests := []struct {
		name, ref string
		want      *testImage
		err       string
	}{
		{"tag", two + ":a", a, ""},
		{"tag of a whole name", two + ":b", b, ""},
		{"only one", one, a, ""},
		{"digest", two + "@" + b.desc.Digest.String(), b, ""},
		{"nested index without platforms", multi + ":latest", a, ""},
		{"digest of an index", multi + "@" + index.Digest.String(), a, ""},
		{"too many documents", bomb + ":latest", nil, "read 64 documents of "},
		{"no such tag", two + ":c", nil, `no tag "c": not found: it has a, docker.io/library/b:b`},
		{"which?", two, nil, "holds 2 images, name one by its tag: a, docker.io/library/b:b"},
		{"no such digest", two + "@" + arm.desc.Digest.String(), nil, "not found"},
		{"no layout", t.TempDir(), nil, "is no OCI layout: it has no file oci-layout"},
		{"no directory", none, nil, "open " + none},
		{"no archive", filepath.Join(t.TempDir(), "none.tar"), nil, "none.tar: file does not exist"},
		{"wrong bytes", broken, nil, "layer 1 of 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			im := newImages(t)
			im.Offline = true // no matter
			got, err := pull(t.Context(), im, "oci:"+tt.ref)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantPulled(t, im.Store, got, tt.want)
		})
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	const part = 1 << 17
	img := makeImage(t, false, repotest.Linux("amd64"),
		testLayer{file: "a", text: noise(3 * part), compressed: "gzip"}, testLayer{file: "b", text: noise(100), compressed: "zstd"})
	big := img.layers[0]
	bytes := img.blobs[big.Digest]
	addr := conformance.StartRegistry(t)
	img.push(t, addr, "x", "latest")

	// times lets a fault happen n times.
	times := func(n int32, match func(*http.Request) bool, fault func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		var did atomic.Int32
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !match(r) || did.Add(1) > n {
				return false
			}
			fault(w, r)
			return true
		}
	}
	isBig := func(r *http.Request) bool { return isBlob(r, big.Digest) }
	all := func(*http.Request) bool { return true }
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	const always = 1 << 30
	tests := []struct {
		name  string
		fault func(http.ResponseWriter, *http.Request) bool
		err   string // "": the pull works
		big   string // requests for the big layer
	}{
		{"none", nil, "", "[]"},
		{"busy", times(4, all, status(503)), "", "[]"},
		{"throttled", times(2, all, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(429)
		}), "", "[]"},
		{"throttled for long", times(always, isBig, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}), "too many requests: wait, log in with `obx login ", ""},
		{"connections reset", times(2, all, func(w http.ResponseWriter, _ *http.Request) { abort(w) }), "", ""},
		{"reset in a blob", times(2, isBig, func(w http.ResponseWriter, r *http.Request) {
			sendPart(w, r, bytes, part)
			abort(w)
		}), "", ""},
		{"truncated blob", times(1, isBig, func(w http.ResponseWriter, r *http.Request) { sendPart(w, r, bytes, part) }), "",
			fmt.Sprintf("[ bytes=%d-%d]", part, len(bytes)-1)},
		{"ranges unknown", times(2, isBig, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				sendPart(w, r, bytes, part)
				abort(w)
				return
			}
			_, _ = w.Write(bytes)
		}), "", ""},
		{"always broken", times(always, isBig, func(w http.ResponseWriter, r *http.Request) {
			sendPart(w, r, bytes, 10)
			abort(w)
		}), "the transfer broke 7 times, at last at byte 70 of", ""},
		{"stalled blob", times(1, isBig, func(w http.ResponseWriter, r *http.Request) {
			sendPart(w, r, bytes, 1000)
			<-r.Context().Done()
		}), "", fmt.Sprintf("[ bytes=%d-%d]", 1000, len(bytes)-1)},
		{"hang", times(1, all, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), "", "[]"},
		{"wrong bytes", times(always, isBig, func(w http.ResponseWriter, r *http.Request) {
			wrong := slices.Clone(bytes)
			wrong[len(wrong)/2] ^= 1
			sendPart(w, r, wrong, len(wrong))
		}), "layer 1 of 2", ""},
		{"wrong size", times(always, isBig, func(w http.ResponseWriter, r *http.Request) { sendPart(w, r, bytes[1:], len(bytes)) }), "but the manifest says", ""},
		{"missing blob", times(always, isBig, status(404)), "not found", ""},
		{"server error", times(always, isBig, status(500)), "500", ""},
		{"wrong range", times(always, isBig, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				sendPart(w, r, bytes, 1000)
				abort(w)
				return
			}
			r.Header.Set("Range", "bytes=0-")
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%[1]d", len(bytes)))
			w.WriteHeader(206)
			_, _ = w.Write(bytes)
		}), "other bytes than asked for", ""},
		{"wrong manifest", times(always, func(r *http.Request) bool { return r.Method == "GET" && strings.Contains(r.URL.Path, "/manifests/") },
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				w.Header().Set("Docker-Content-Digest", img.desc.Digest.String())
				_, _ = w.Write(append([]byte(" "), img.manifest[:len(img.manifest)-1]...))
			}), "pull", ""},
		{"endless manifest", times(always, func(r *http.Request) bool { return r.Method == "GET" && strings.Contains(r.URL.Path, "/manifests/") },
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				w.Header().Set("Docker-Content-Digest", img.desc.Digest.String())
				w.Header().Set("Content-Length", fmt.Sprint(100<<20))
				_, _ = w.Write(make([]byte, 5<<20))
			}), "too large", ""},
		{"schema 1", times(always, all, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
			w.Header().Set("Docker-Content-Digest", img.desc.Digest.String())
			w.Header().Set("Content-Length", "100")
		}), "Docker's first image format (schema 1)", ""},
		{"HEAD without digest", times(1, func(r *http.Request) bool { return r.Method == "HEAD" }, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		}), "", "[]"},
		{"no HEAD", times(always, func(r *http.Request) bool { return r.Method == "HEAD" }, status(405)), "", "[]"},
		{"a bad HEAD", times(always, func(r *http.Request) bool { return r.Method == "HEAD" }, status(400)), "", "[]"},
		{"denied", times(always, all, status(403)), "access to x is refused, or there is no such repository: check the name, and log in with `obx login ", ""},
		{"none there", times(always, all, status(404)), "not found: check the name and the tag, or say what it means with --base NAME=REF", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFront(t, addr)
			f.setFault(tt.fault)
			im := newImages(t)
			im.Client = repotest.Hurried(3*time.Second, 3*time.Second, 30*time.Second)
			got, err := pull(t.Context(), im, f.addr+"/x")
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got error: %v", err)
				}
				if n, ok := im.Store.HasBlob(big.Digest); ok {
					t.Errorf("%d bytes are in the store", n)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantPulled(t, im.Store, got, img)
			var ranges []string
			for _, line := range f.seen() {
				if _, after, ok := strings.Cut(line, "/blobs/"+big.Digest.String()); ok {
					ranges = append(ranges, strings.TrimSpace(after))
				}
			}
			if tt.big != "" && fmt.Sprint(ranges) != tt.big {
				t.Errorf("ranges of the big layer: %q, want %s", ranges, tt.big)
			}
		})
	}
}

func TestCancelledPull(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: noise(1 << 20)})
	addr := conformance.StartRegistry(t)
	img.push(t, addr, "x", "latest")
	f := newFront(t, addr)
	f.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r, img.layers[0].Digest) {
			return false
		}
		sendPart(w, r, img.blobs[img.layers[0].Digest], 1000)
		<-r.Context().Done()
		return true
	})
	ctx, cancel := context.WithCancel(t.Context())
	im := newImages(t)
	base, err := im.Resolve(ctx, f.addr+"/x", repotest.Linux("amd64"))
	if err != nil {
		t.Fatal(err)
	}
	var at time.Time
	_, err = im.Pull(ctx, base, false, func(digest.Digest, int64, int64) { at = time.Now(); cancel() })
	if !errors.Is(err, context.Canceled) || time.Since(at) > time.Second {
		t.Errorf("%v after %v", err, time.Since(at))
	}
}

func TestCredentials(t *testing.T) {
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "secret"})
	addr := conformance.StartRegistry(t)
	img.push(t, addr, "private/x", "latest")

	// Blobs are on another host, behind a signed URL.
	var mu sync.Mutex
	var leaked []string
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if v := r.Header.Get("Authorization"); v != "" {
			leaked = append(leaked, v)
		}
		d := digest.Digest(strings.TrimPrefix(r.URL.Path, "/"))
		if r.URL.Query().Get("signature") != "s1gned" || img.blobs[d] == nil {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write(img.blobs[d])
	}))
	defer storage.Close()
	// Both are others: one by its port alone.
	hosts := map[string]string{"auths": storage.URL, "credHelpers": strings.Replace(storage.URL, "127.0.0.1", "localhost", 1)}
	storageURL := hosts["auths"]

	f := newFront(t, addr)
	signature := "s1gned"
	token := "t0ken"
	var logins []string
	f.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			user, password, _ := r.BasicAuth()
			logins = append(logins, user+":"+password)
			if user != "me" || password != "passw0rd" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			fmt.Fprintf(w, `{"token":%q}`, token)
			return true
		}
		if r.Header.Get("Authorization") != "Bearer "+token {
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x",scope="repository:private/x:pull"`, f.url))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if d := strings.TrimPrefix(r.URL.Path, "/v2/private/x/blobs/"); d != r.URL.Path {
			http.Redirect(w, r, storageURL+"/"+d+"?signature="+signature, http.StatusTemporaryRedirect)
			return true
		}
		return false
	})

	configs := map[string]string{
		"auths":       fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, f.addr, base64.StdEncoding.EncodeToString([]byte("me:passw0rd"))),
		"credHelpers": fmt.Sprintf(`{"credHelpers":{%q:"obxtest"}}`, f.addr),
		"credsStore":  `{"credsStore":"obxtest"}`,
	}
	helper := filepath.Join(t.TempDir(), "docker-credential-obxtest")
	script := fmt.Sprintf(`#!/bin/sh
read -r host
[ "$host" = %s ] && echo '{"ServerURL":"%[1]s","Username":"me","Secret":"passw0rd"}' || { echo 'credentials not found in native keychain'; exit 1; }
`, f.addr)
	if err := os.WriteFile(helper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(helper)+":"+os.Getenv("PATH"))
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			repotest.WriteFile(t, filepath.Join(dir, "config.json"), []byte(config))
			t.Setenv("DOCKER_CONFIG", dir)
			mu.Lock()
			storageURL = cmp.Or(hosts[name], storageURL)
			mu.Unlock()
			im := newImages(t)
			got, err := pull(t.Context(), im, f.addr+"/private/x")
			if err != nil {
				t.Fatal(err)
			}
			wantPulled(t, im.Store, got, img)
			if len(logins) != 1 {
				t.Errorf("asked for a token %d times", len(logins))
			}
			logins = nil
		})
	}
	if len(leaked) > 0 {
		t.Errorf("the storage's host got %q", leaked)
	}

	t.Run("expired token", func(t *testing.T) {
		dir := t.TempDir()
		repotest.WriteFile(t, filepath.Join(dir, "config.json"), []byte(configs["auths"]))
		t.Setenv("DOCKER_CONFIG", dir)
		im := newImages(t)
		base, err := im.Resolve(t.Context(), f.addr+"/private/x", repotest.Linux("amd64"))
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		token = "an0ther"
		mu.Unlock()
		if _, err := im.Pull(t.Context(), base, false, nil); err != nil {
			t.Error(err)
		}
	})

	secrets := []string{"passw0rd", "t0ken", "an0ther", "s1gned", "wr0ng", base64.StdEncoding.EncodeToString([]byte("me:wr0ng"))}
	noSecrets := func(t *testing.T, err error) {
		t.Helper()
		for _, s := range secrets {
			if strings.Contains(err.Error(), s) {
				t.Errorf("the error holds %q: %v", s, err)
			}
		}
	}
	refused := map[string]struct{ config, want string }{
		"none": {`{}`, "access to private/x is refused, or there is no such repository: check the name, and log in with `obx login " + f.addr + "`"},
		"wrong password": {fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, f.addr, base64.StdEncoding.EncodeToString([]byte("me:wr0ng"))),
			"is refused with the login that "},
		"no helper":  {`{"credsStore":"nowhere"}`, "docker-credential-nowhere"},
		"bad config": {`{`, "config.json is not in Docker's format"},
	}
	for name, tt := range refused {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			repotest.WriteFile(t, filepath.Join(dir, "config.json"), []byte(tt.config))
			t.Setenv("DOCKER_CONFIG", dir)
			_, err := pull(t.Context(), newImages(t), f.addr+"/private/x")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v", err)
			}
			noSecrets(t, err)
		})
	}
	t.Run("storage refuses", func(t *testing.T) {
		dir := t.TempDir()
		repotest.WriteFile(t, filepath.Join(dir, "config.json"), []byte(configs["auths"]))
		t.Setenv("DOCKER_CONFIG", dir)
		for _, url := range []string{storageURL, "http://localhost:1"} {
			mu.Lock()
			signature, storageURL = "s1gned-not", url
			mu.Unlock()
			im := newImages(t)
			im.Client = repotest.Hurried(time.Second, time.Second, time.Second)
			_, err := pull(t.Context(), im, f.addr+"/private/x")
			if err == nil {
				t.Fatal("no error")
			}
			noSecrets(t, err)
		}
	})
}

// TestTLS has a registry with a certificate of nobody, that wants one of the client.
func TestTLS(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "x"})
	addr := conformance.StartRegistry(t)
	img.push(t, addr, "x", "latest")
	var f front
	srv := httptest.NewUnstartedServer(f.handler(addr))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	host := srv.Listener.Addr().String()

	im := newImages(t)
	certs := t.TempDir()
	im.Client = &repo.Client{Certs: certs}
	_, err := pull(t.Context(), im, host+"/x")
	if err == nil || !strings.Contains(err.Error(), "put the authority's into "+filepath.Join(certs, host, "ca.crt")) {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	repotest.WriteFile(t, filepath.Join(certs, host, "ca.crt"), cert)
	im = newImages(t)
	im.Client = &repo.Client{Certs: certs}
	if _, err := pull(t.Context(), im, host+"/x"); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Error(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(srv.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	repotest.WriteFile(t, filepath.Join(certs, host, "client.cert"), cert)
	repotest.WriteFile(t, filepath.Join(certs, host, "client.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	im = newImages(t)
	im.Client = &repo.Client{Certs: certs}
	got, err := pull(t.Context(), im, host+"/x")
	if err != nil {
		t.Fatal(err)
	}
	wantPulled(t, im.Store, got, img)

	repotest.WriteFile(t, filepath.Join(certs, host, "ca.crt"), []byte("nothing"))
	im = newImages(t)
	im.Client = &repo.Client{Certs: certs}
	if _, err := pull(t.Context(), im, host+"/x"); err == nil || !strings.Contains(err.Error(), "ca.crt holds none") {
		t.Error(err)
	}
}

// TestProxy runs itself in a process whose environment names a proxy: net/http reads it once.
func TestProxy(t *testing.T) {
	if ref := os.Getenv("OBX_TEST_PROXY_REF"); ref != "" {
		im := newImages(t)
		im.Client = &repo.Client{PlainHTTP: []string{"registry.test"}}
		if _, err := pull(t.Context(), im, ref); err != nil {
			t.Fatal(err)
		}
		return
	}
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "x"})
	addr := conformance.StartRegistry(t)
	img.push(t, addr, "x", "latest")
	var hosts sync.Map
	f := newFront(t, addr)
	f.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
		hosts.Store(r.Host, true)
		return false
	})
	cmd := exec.Command(os.Args[0], "-test.run=^TestProxy$")
	cmd.Env = append(os.Environ(), "OBX_TEST_PROXY_REF=registry.test/x", "HTTP_PROXY="+f.url, "http_proxy=", "NO_PROXY=", "no_proxy=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, ok := hosts.Load("registry.test"); !ok {
		t.Error("nothing came through the proxy")
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	for ref, want := range map[string]string{
		"127.0.0.1:1/x":          "connection refused",
		"registry.invalid/x:tag": "there is no host registry.invalid: check the name",
	} {
		im := newImages(t)
		im.Client = repotest.Hurried(time.Second, time.Second, time.Second)
		if _, err := im.Resolve(t.Context(), ref, repotest.Linux("amd64")); err == nil || !strings.Contains(strings.ToLower(err.Error()), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestProcessesShareAPull(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: noise(1 << 20), compressed: "gzip"})
	addr := conformance.StartRegistry(t)
	img.push(t, addr, "x", "latest")
	f := newFront(t, addr)
	st := repotest.OpenStore(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			im := &images.Resolver{Store: st} // as another process would be
			if _, err := pull(t.Context(), im, f.addr+"/x"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	for _, line := range f.seen() {
		if strings.Contains(line, img.layers[0].Digest.String()) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

func TestForeignLayer(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "x"})
	img.layers[0].URLs = []string{"https://example.com/layer"}
	img.seal(t, false)
	_, err := pull(t.Context(), newImages(t), "oci:"+layoutDir(t, map[string]*testImage{"": img}))
	if err == nil || !strings.Contains(err.Error(), "foreign layer") {
		t.Error(err)
	}
}

// Images as old registries and other builders have left them: what they do not say is as wanted.
func TestOddConfigs(t *testing.T) {
	t.Parallel()
	odd := func(configType string, docker bool, p ocispec.Platform) *testImage {
		img := makeImage(t, docker, p, testLayer{file: "a", text: "a", compressed: "gzip"})
		img.retype(t, configType)
		return img
	}
	for name, img := range map[string]*testImage{
		"octets":            odd("application/octet-stream", true, repotest.Linux("amd64")),
		"html":              odd("text/html", true, repotest.Linux("amd64")),
		"json":              odd("application/json", true, repotest.Linux("amd64")),
		"no type":           odd("", true, repotest.Linux("amd64")),
		"no platform":       odd(ocispec.MediaTypeImageConfig, false, ocispec.Platform{}),
		"no system":         odd(ocispec.MediaTypeImageConfig, false, ocispec.Platform{Architecture: "amd64"}),
		"no architecture":   odd(ocispec.MediaTypeImageConfig, false, ocispec.Platform{OS: "linux"}),
		"nothing said here": odd("application/octet-stream", true, ocispec.Platform{}),
	} {
		im := newImages(t)
		got, err := pull(t.Context(), im, "oci:"+layoutDir(t, map[string]*testImage{"": img}))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantPulled(t, im.Store, got, img)

		// The same behind an index that says what it is for, and one that does not, beside others.
		attestation := makeImage(t, false, ocispec.Platform{OS: "unknown", Architecture: "unknown"},
			testLayer{file: "sbom", text: "{}", mediaType: "application/vnd.in-toto+json"})
		arm := makeImage(t, false, repotest.Linux("arm64"), testLayer{file: "a", text: "arm"})
		for _, entry := range []ocispec.Descriptor{img.on(repotest.Linux("amd64")), img.desc, img.on(ocispec.Platform{})} {
			dir := t.TempDir()
			for _, i := range []*testImage{img, attestation, arm} {
				i.writeBlobs(t, dir)
			}
			inner, b := makeIndex(t, ocispec.MediaTypeImageIndex, attestation.desc, arm.on(repotest.Linux("arm64")), entry)
			repotest.WriteFile(t, filepath.Join(dir, "blobs/sha256", inner.Digest.Encoded()), b)
			writeIndex(t, dir, inner)
			im := newImages(t)
			got, err := pull(t.Context(), im, "oci:"+dir)
			if err != nil {
				t.Errorf("%s, in an index: %v", name, err)
				continue
			}
			wantPulled(t, im.Store, got, img)
		}
	}
}

// What cannot be taken is told of the image.
func TestZeroByteInEnv(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "a"})
	img.config.Config.Env = []string{"A=x\x00y"}
	img.seal(t, false)
	_, err := pull(t.Context(), newImages(t), "oci:"+layoutDir(t, map[string]*testImage{"": img}))
	if err == nil || !strings.Contains(err.Error(), `variable "A=x\x00y" has a zero byte`) {
		t.Error(err)
	}
}

// TestImageLimits is about an image that a spec names: it has limits, and what the user has named has none.
func TestImageLimits(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: strings.Repeat("a", 3<<20)}, testLayer{file: "b", text: strings.Repeat("b", 3<<20)})
	ref := "oci:" + layoutDir(t, map[string]*testImage{"": img})
	for _, tt := range []struct {
		limits images.Limits
		want   string // of the error
	}{
		{images.Limits{}, ""},
		{images.Limits{Bytes: 7 << 20, Files: 1, Time: time.Hour}, ""},
		{images.Limits{Bytes: 2 << 20}, "more than 2097152 bytes"},
		{images.Limits{Bytes: 4 << 20}, "bytes"}, // of both
		{images.Limits{Time: 1}, "it did not come within 1ns"},
	} {
		im := newImages(t)
		im.Limits = tt.limits
		_, err := pull(t.Context(), im, ref)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v", tt.limits, err)
		}
		im = newImages(t)
		im.Limits, im.Bases = tt.limits, map[string]string{"busybox": ref}
		if _, err := pull(t.Context(), im, "busybox"); err != nil {
			t.Errorf("%+v, with --base: %v", tt.limits, err)
		}
	}
}

// TestIndexWithArtifacts is about a list with more things that do not say what they are than one name may cost.
func TestIndexWithArtifacts(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "x"})
	dir := layoutDir(t, map[string]*testImage{"": img})
	entries := []ocispec.Descriptor{img.on(repotest.Linux("amd64"))}
	for i := range 100 {
		const manifest = `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[],"annotations":{"n":"%d"}}`
		b := fmt.Appendf(nil, manifest, digest.FromString("{}"), i)
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(b), Size: int64(len(b))}
		repotest.WriteFile(t, filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded()), b)
		entries = append(entries, d)
	}
	index, b := makeIndex(t, ocispec.MediaTypeImageIndex, entries...)
	repotest.WriteFile(t, filepath.Join(dir, "blobs", "sha256", index.Digest.Encoded()), b)
	writeIndex(t, dir, index)
	base, err := newImages(t).Resolve(t.Context(), "oci:"+dir, repotest.Linux("amd64"))
	if err != nil || base.Digest != img.desc.Digest {
		t.Errorf("got %v, %v", base, err)
	}
}
