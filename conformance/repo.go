package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/repo"
)

// Repo checks an implementation of repo.Repo. fresh makes an empty repository for each test; it closes what it makes.
func Repo(t *testing.T, fresh func(t *testing.T) repo.Repo) {
	tests := []struct {
		name string
		test func(t *testing.T, r repo.Repo)
	}{
		{"empty", repoEmpty},
		{"blobs", repoBlobs},
		{"blob is replaced", repoBlobAgain},
		{"blob of another size is not there", repoBlobSize},
		{"wrong bytes are refused", repoWrongBytes},
		{"broken source", repoBrokenSource},
		{"a source to mount from is a hint", repoMountHint},
		{"manifests", repoManifests},
		{"tag is replaced", repoTagReplaced},
		{"artifact", repoArtifact},
		{"index", repoIndex},
		{"manifest without its blobs", repoUnknownBlob},
		{"manifest too large", repoLargeManifest},
		{"references that are none", repoBadRefs},
		{"tags", repoTags},
		{"delete a tag", repoDeleteTag},
		{"delete a manifest", repoDeleteManifest},
		{"cancelled", repoCancelled},
		{"many at once", repoConcurrent},
		{"collect garbage", repoCollect},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, fresh(t)) })
	}
}

// RandomBlob makes bytes that are in no repository yet.
func RandomBlob(n int) (ocispec.Descriptor, []byte) {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(n)}, b
}

// OpenBytes is what PutBlob takes for bytes in memory.
func OpenBytes(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// PutBytes stores bytes as a blob.
func PutBytes(t testing.TB, r repo.Repo, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := r.PutBlob(t.Context(), desc, "", OpenBytes(b)); err != nil {
		t.Fatal(err)
	}
	return desc
}

// PutImage stores a manifest with a config and one layer of random bytes.
func PutImage(t testing.TB, r repo.Repo, tag string) (ocispec.Descriptor, []byte) {
	t.Helper()
	_, layer := RandomBlob(100)
	m := manifestOf(
		PutBytes(t, r, ocispec.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["`+digest.FromBytes(layer).String()+`"]}}`)),
		PutBytes(t, r, ocispec.MediaTypeImageLayer, layer))
	desc, err := r.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, m)
	if err != nil {
		t.Fatal(err)
	}
	return desc, m
}

func manifestOf(config ocispec.Descriptor, layers ...ocispec.Descriptor) []byte {
	b, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    layers,
	})
	if err != nil {
		panic(err) // it holds nothing that JSON cannot
	}
	return b
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

func wantManifest(t *testing.T, r repo.Repo, ref string, want ocispec.Descriptor, data []byte) {
	t.Helper()
	desc, b, err := r.Manifest(t.Context(), ref)
	if err != nil {
		t.Errorf("manifest %s: %v", ref, err)
		return
	}
	if !bytes.Equal(b, data) || desc.Digest != want.Digest || desc.Size != want.Size || desc.MediaType != want.MediaType {
		t.Errorf("manifest %s: got %+v, %s", ref, desc, b)
	}
	head, err := r.Head(t.Context(), ref)
	if err != nil || head.Digest != want.Digest || head.Size != want.Size || head.MediaType != want.MediaType {
		t.Errorf("head %s: got %+v, %v", ref, head, err)
	}
}

func wantNoManifest(t *testing.T, r repo.Repo, ref string) {
	t.Helper()
	_, err := r.Head(t.Context(), ref)
	wantErr(t, "head "+ref, err, repo.ErrNotFound)
	_, _, err = r.Manifest(t.Context(), ref)
	wantErr(t, "manifest "+ref, err, repo.ErrNotFound)
}

func readBlob(t *testing.T, r repo.Repo, desc ocispec.Descriptor) []byte {
	t.Helper()
	rc, err := r.Blob(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantTags(t *testing.T, r repo.Repo, want ...string) {
	t.Helper()
	var got []string
	for tag, err := range r.Tags(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, tag)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("tags: got %q, want %q", got, want)
	}
}

func repoEmpty(t *testing.T, r repo.Repo) {
	if r.Name() == "" {
		t.Error("it has no name")
	}
	desc, _ := RandomBlob(10)
	wantNoManifest(t, r, "nothing")
	wantNoManifest(t, r, desc.Digest.String())
	_, err := r.Blob(t.Context(), desc)
	wantErr(t, "blob", err, repo.ErrNotFound)
	if has, err := r.HasBlob(t.Context(), desc); has || err != nil {
		t.Errorf("has blob: %v, %v", has, err)
	}
	wantTags(t, r)
	for _, ref := range []string{"nothing", desc.Digest.String()} {
		if err := r.Delete(t.Context(), ref); err != nil {
			t.Errorf("delete %s: %v", ref, err)
		}
	}
}

func repoBlobs(t *testing.T, r repo.Repo) {
	for _, size := range []int{0, 1, 5 << 20} {
		desc, b := RandomBlob(size)
		if err := r.PutBlob(t.Context(), desc, "", OpenBytes(b)); err != nil {
			t.Fatal(err)
		}
		if has, err := r.HasBlob(t.Context(), desc); !has || err != nil {
			t.Errorf("has blob of %d bytes: %v, %v", size, has, err)
		}
		if !bytes.Equal(readBlob(t, r, desc), b) {
			t.Errorf("the blob of %d bytes comes back otherwise", size)
		}
	}
}

func repoBlobAgain(t *testing.T, r repo.Repo) {
	desc, b := RandomBlob(1000)
	for range 2 {
		if err := r.PutBlob(t.Context(), desc, "", OpenBytes(b)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(readBlob(t, r, desc), b) {
		t.Error("the blob comes back otherwise")
	}
}

func repoBlobSize(t *testing.T, r repo.Repo) {
	desc, b := RandomBlob(1000)
	if err := r.PutBlob(t.Context(), desc, "", OpenBytes(b)); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{999, 1001} {
		desc.Size = size
		if has, err := r.HasBlob(t.Context(), desc); has || err != nil {
			t.Errorf("has blob of %d bytes: %v, %v", size, has, err)
		}
		_, err := r.Blob(t.Context(), desc)
		wantErr(t, "blob", err, repo.ErrNotFound)
	}
}

func repoWrongBytes(t *testing.T, r repo.Repo) {
	desc, b := RandomBlob(1000)
	b[500] ^= 1
	if err := r.PutBlob(t.Context(), desc, "", OpenBytes(b)); err == nil {
		t.Error("the wrong bytes are taken")
	}
	if has, err := r.HasBlob(t.Context(), desc); has || err != nil {
		t.Errorf("has blob: %v, %v", has, err)
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func repoBrokenSource(t *testing.T, r repo.Repo) {
	desc, b := RandomBlob(100_000)
	lost := errors.New("the disk is gone")
	sources := map[string]func() (io.ReadCloser, error){
		"cannot be opened": func() (io.ReadCloser, error) { return nil, lost },
		"breaks": func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(b[:50_000]), failingReader{lost})), nil
		},
		"is too short": OpenBytes(b[:50_000]),
	}
	for name, open := range sources {
		begin := time.Now()
		err := r.PutBlob(t.Context(), desc, "", open)
		if err == nil || name != "is too short" && !errors.Is(err, lost) {
			t.Errorf("the source %s: %v", name, err)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("the source %s: told after %v", name, d)
		}
		if has, err := r.HasBlob(t.Context(), desc); has || err != nil {
			t.Errorf("the source %s: has blob: %v, %v", name, has, err)
		}
	}
}

func repoMountHint(t *testing.T, r repo.Repo) {
	for _, from := range []string{r.Name(), "docker.io/library/busybox", "docker.io/library/busybox@" + digest.FromString("x").String(), "oci:/nowhere", "!"} {
		desc, b := RandomBlob(100)
		if err := r.PutBlob(t.Context(), desc, from, OpenBytes(b)); err != nil {
			t.Errorf("from %s: %v", from, err)
		}
		if !bytes.Equal(readBlob(t, r, desc), b) {
			t.Errorf("from %s: the blob comes back otherwise", from)
		}
	}
}

func repoManifests(t *testing.T, r repo.Repo) {
	desc, m := PutImage(t, r, "a.rec")
	if desc.Digest != digest.FromBytes(m) || desc.Size != int64(len(m)) || desc.MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("put gives %+v", desc)
	}
	wantManifest(t, r, "a.rec", desc, m)
	wantManifest(t, r, desc.Digest.String(), desc, m)
	wantNoManifest(t, r, "a")

	untagged, m := PutImage(t, r, "")
	wantManifest(t, r, untagged.Digest.String(), untagged, m)
	wantTags(t, r, "a.rec")
}

func repoTagReplaced(t *testing.T, r repo.Repo) {
	one, first := PutImage(t, r, "x")
	two, second := PutImage(t, r, "x")
	wantManifest(t, r, "x", two, second)
	wantManifest(t, r, one.Digest.String(), one, first)
	wantTags(t, r, "x")
}

// repoArtifact is what a record of the shared cache looks like.
func repoArtifact(t *testing.T, r repo.Repo) {
	config := PutBytes(t, r, "application/vnd.obx.record.v1+json", []byte(`{"payload":""}`))
	config.Data = []byte(`{"payload":""}`)
	m := manifestOf(config, PutBytes(t, r, "application/vnd.obx.log.v1+zstd", []byte("a log")))
	desc, err := r.PutManifest(t.Context(), "record", ocispec.MediaTypeImageManifest, m)
	if err != nil {
		t.Fatal(err)
	}
	wantManifest(t, r, "record", desc, m)
}

func indexOf(entries ...ocispec.Descriptor) []byte {
	b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
	if err != nil {
		panic(err) // it holds nothing that JSON cannot
	}
	return b
}

func repoIndex(t *testing.T, r repo.Repo) {
	child, m := PutImage(t, r, "")
	child.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	index := indexOf(child)
	desc, err := r.PutManifest(t.Context(), "multi", ocispec.MediaTypeImageIndex, index)
	if err != nil {
		t.Fatal(err)
	}
	wantManifest(t, r, "multi", desc, index)
	wantManifest(t, r, child.Digest.String(), child, m)

	child.Digest = digest.FromString("nowhere")
	_, err = r.PutManifest(t.Context(), "multi", ocispec.MediaTypeImageIndex, indexOf(child))
	wantErr(t, "put an index without its manifest", err, repo.ErrBlobUnknown)
	wantManifest(t, r, "multi", desc, index)
}

func repoUnknownBlob(t *testing.T, r repo.Repo) {
	there := PutBytes(t, r, ocispec.MediaTypeImageLayer, []byte("there"))
	gone, _ := RandomBlob(10)
	gone.MediaType = ocispec.MediaTypeImageLayer
	config := PutBytes(t, r, ocispec.MediaTypeImageConfig, []byte("{}"))
	noConfig, _ := RandomBlob(11)
	noConfig.MediaType = ocispec.MediaTypeImageConfig
	for name, m := range map[string][]byte{"layer": manifestOf(config, there, gone), "config": manifestOf(noConfig, there)} {
		_, err := r.PutManifest(t.Context(), "x", ocispec.MediaTypeImageManifest, m)
		wantErr(t, "put a manifest without its "+name, err, repo.ErrBlobUnknown)
		wantNoManifest(t, r, "x")
	}
}

func repoLargeManifest(t *testing.T, r repo.Repo) {
	config := PutBytes(t, r, ocispec.MediaTypeImageConfig, []byte("{}"))
	config.Annotations = map[string]string{"x": strings.Repeat("x", 4<<20)}
	if _, err := r.PutManifest(t.Context(), "x", ocispec.MediaTypeImageManifest, manifestOf(config)); err == nil {
		t.Error("it is taken")
	}
	wantNoManifest(t, r, "x")
}

func repoBadRefs(t *testing.T, r repo.Repo) {
	_, m := PutImage(t, r, "x")
	for _, ref := range []string{"", ".", "..", "../x", "a/b", "x?y", "sha256:12", "sha256:../x", "-x", "x y", "x\x00", strings.Repeat("x", 129)} {
		if _, err := r.Head(t.Context(), ref); err == nil {
			t.Errorf("head %q: no error", ref)
		}
		if _, _, err := r.Manifest(t.Context(), ref); err == nil {
			t.Errorf("manifest %q: no error", ref)
		}
		if ref != "" {
			if _, err := r.PutManifest(t.Context(), ref, ocispec.MediaTypeImageManifest, m); err == nil {
				t.Errorf("put manifest %q: no error", ref)
			}
		}
		bad := ocispec.Descriptor{Digest: digest.Digest(ref), Size: 1}
		if _, err := r.Blob(t.Context(), bad); err == nil {
			t.Errorf("blob %q: no error", ref)
		}
		if err := r.PutBlob(t.Context(), bad, "", OpenBytes([]byte("x"))); err == nil {
			t.Errorf("put blob %q: no error", ref)
		}
	}
	wantTags(t, r, "x")
}

func repoTags(t *testing.T, r repo.Repo) {
	_, m := PutImage(t, r, "")
	var want []string
	for i := range 30 {
		tag := fmt.Sprintf("tag-%02d_x.y", i)
		if _, err := r.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, m); err != nil {
			t.Fatal(err)
		}
		want = append(want, tag)
	}
	wantTags(t, r, want...)
	for _, err := range r.Tags(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		break // ends early
	}
}

func repoDeleteTag(t *testing.T, r repo.Repo) {
	PutImage(t, r, "x")
	kept, m := PutImage(t, r, "y")
	for range 2 {
		if err := r.Delete(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
	wantNoManifest(t, r, "x")
	wantManifest(t, r, "y", kept, m)
	wantTags(t, r, "y")
	again, m := PutImage(t, r, "x")
	wantManifest(t, r, "x", again, m)
	wantTags(t, r, "x", "y")
}

func repoDeleteManifest(t *testing.T, r repo.Repo) {
	desc, m := PutImage(t, r, "x")
	if _, err := r.PutManifest(t.Context(), "also", ocispec.MediaTypeImageManifest, m); err != nil {
		t.Fatal(err)
	}
	kept, other := PutImage(t, r, "y")
	for range 2 {
		if err := r.Delete(t.Context(), desc.Digest.String()); err != nil {
			t.Fatal(err)
		}
	}
	wantNoManifest(t, r, "x")
	wantNoManifest(t, r, "also")
	wantNoManifest(t, r, desc.Digest.String())
	wantManifest(t, r, "y", kept, other)
	if _, err := r.PutManifest(t.Context(), "x", ocispec.MediaTypeImageManifest, m); err != nil {
		t.Fatal(err)
	}
	wantManifest(t, r, "x", desc, m)
}

func repoCancelled(t *testing.T, r repo.Repo) {
	image, m := PutImage(t, r, "x")
	desc, b := RandomBlob(100)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calls := map[string]func() error{
		"head":         func() error { _, err := r.Head(ctx, "x"); return err },
		"manifest":     func() error { _, _, err := r.Manifest(ctx, "x"); return err },
		"blob":         func() error { _, err := r.Blob(ctx, desc); return err },
		"has blob":     func() error { _, err := r.HasBlob(ctx, desc); return err },
		"put blob":     func() error { return r.PutBlob(ctx, desc, "", OpenBytes(b)) },
		"put manifest": func() error { _, err := r.PutManifest(ctx, "y", ocispec.MediaTypeImageManifest, m); return err },
		"delete":       func() error { return r.Delete(ctx, "x") },
		"tags": func() error {
			for _, err := range r.Tags(ctx) {
				return err
			}
			return nil
		},
	}
	for name, call := range calls {
		wantErr(t, name, call(), context.Canceled)
	}
	wantManifest(t, r, "x", image, m)
	wantTags(t, r, "x")

	// In the middle of an upload.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	err := r.PutBlob(ctx, desc, "", func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(b[:50]), readerFunc(func(p []byte) (int, error) {
			cancel()
			return copy(p, b[50:]), nil
		}))), nil
	})
	wantErr(t, "put blob", err, context.Canceled)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func repoConcurrent(t *testing.T, r repo.Repo) {
	const workers, rounds = 8, 5
	shared := PutBytes(t, r, ocispec.MediaTypeImageConfig, []byte("{}"))
	manifests := make([][]byte, workers*rounds)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				n := w*rounds + i
				layer, b := RandomBlob(1000)
				layer.MediaType = ocispec.MediaTypeImageLayer
				manifests[n] = manifestOf(shared, layer)
				err := errors.Join(
					r.PutBlob(t.Context(), layer, "", OpenBytes(b)),
					r.PutBlob(t.Context(), shared, "", OpenBytes([]byte("{}"))))
				for _, tag := range []string{fmt.Sprintf("t%d", n), "last"} {
					_, e := r.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, manifests[n])
					err = errors.Join(err, e)
				}
				_, _, e := r.Manifest(t.Context(), "last")
				if err := errors.Join(err, e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for n, m := range manifests {
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(m), Size: int64(len(m))}
		wantManifest(t, r, fmt.Sprintf("t%d", n), desc, m)
	}
	_, last, err := r.Manifest(t.Context(), "last")
	if err != nil || !slices.ContainsFunc(manifests, func(m []byte) bool { return bytes.Equal(m, last) }) {
		t.Errorf("the last one is %s, %v", last, err)
	}
}

func repoCollect(t *testing.T, r repo.Repo) {
	c, ok := r.(repo.Collector)
	if !ok {
		t.Skip("it keeps no garbage, or by rules of its own")
	}
	kept, m := PutImage(t, r, "kept")
	child, _ := PutImage(t, r, "")
	index := indexOf(child)
	multi, err := r.PutManifest(t.Context(), "multi", ocispec.MediaTypeImageIndex, index)
	if err != nil {
		t.Fatal(err)
	}
	untagged, _ := PutImage(t, r, "")
	loose := PutBytes(t, r, "x", []byte("loose"))
	if n, err := c.CollectGarbage(t.Context(), time.Hour); n != 0 || err != nil {
		t.Errorf("of fresh things, %d bytes are removed, %v", n, err)
	}
	if has, err := r.HasBlob(t.Context(), loose); !has || err != nil {
		t.Errorf("has a fresh blob: %v, %v", has, err)
	}
	if n, err := c.CollectGarbage(t.Context(), -time.Hour); n == 0 || err != nil {
		t.Errorf("%d bytes are removed, %v", n, err)
	}
	wantNoManifest(t, r, untagged.Digest.String())
	if has, err := r.HasBlob(t.Context(), loose); has || err != nil {
		t.Errorf("has a loose blob: %v, %v", has, err)
	}
	wantManifest(t, r, "kept", kept, m)
	wantManifest(t, r, "multi", multi, index)
	for _, d := range []digest.Digest{kept.Digest, child.Digest} {
		_, b, err := r.Manifest(t.Context(), d.String())
		var im ocispec.Manifest
		if err := errors.Join(err, json.Unmarshal(b, &im)); err != nil {
			t.Fatal(err)
		}
		for _, blob := range append(im.Layers, im.Config) {
			if has, err := r.HasBlob(t.Context(), blob); !has || err != nil {
				t.Errorf("has %s: %v, %v", blob.Digest, has, err)
			}
		}
	}
}
