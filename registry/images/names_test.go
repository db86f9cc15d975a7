package images_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

// publish resolves a base image on one machine, and puts it and its name into a cache.
func publish(t testing.TB, im *images.Resolver, to *repo.Sender, ref string) (base keys.Base, sent int64) {
	t.Helper()
	base, err := im.Resolve(t.Context(), ref, repotest.Linux("amd64"))
	if err != nil {
		t.Fatal(err)
	}
	sent, err = im.PublishBase(t.Context(), to, base)
	if err != nil {
		t.Fatal(err)
	}
	more, err := im.PublishName(t.Context(), to, images.Name{For: repotest.Linux("amd64"), Base: base})
	if err != nil {
		t.Fatal(err)
	}
	return base, sent + more
}

func nameTag(ref string) string {
	return "name-" + digest.FromString(ref+"\nlinux/amd64").Encoded()
}

// Without a network, a base image and what its name means come from a cache: imported, or as they are.
func TestBasesOfCaches(t *testing.T) {
	t.Parallel()
	addr := conformance.StartRegistry(t)
	for _, docker := range []bool{false, true} {
		name := fmt.Sprintf("docker=%v", docker)
		ref := fmt.Sprintf("%s/base:%v", addr, docker)
		img := makeImage(t, docker, repotest.Linux("amd64"), testLayer{file: "a", text: name, compressed: "gzip"}, testLayer{file: "b", text: name, compressed: "gzip"})
		img.push(t, addr, "base", fmt.Sprint(docker))
		repos := map[string]func(t testing.TB) repo.Repo{
			"memory": func(testing.TB) repo.Repo { return &repo.Memory{} },
			"layout": func(t testing.TB) repo.Repo { return repotest.Open(t, "oci:"+t.TempDir()) },
			"registry": func(t testing.TB) repo.Repo {
				return repotest.Open(t, fmt.Sprintf("%s/cache%v", addr, docker))
			},
		}
		for kind, fresh := range repos {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				im := newImages(t)
				to := &repo.Sender{Repo: fresh(t)}
				base, sent := publish(t, im, to, ref)
				if sent < img.layers[0].Size || base.Digest != img.desc.Digest {
					t.Errorf("sent %d bytes of %s", sent, base.Digest)
				}
				for _, im := range []*images.Resolver{im, newImages(t)} {
					if _, sent := publish(t, im, &repo.Sender{Repo: to.Repo}, ref); sent != 0 {
						t.Errorf("sent %d bytes again", sent)
					}
				}

				cached := newImages(t)
				cached.Offline, cached.Caches = true, []repo.Repo{to.Repo}
				got, err := pull(t.Context(), cached, ref)
				if err != nil {
					t.Fatal(err)
				}
				wantPulled(t, cached.Store, got, img)

				// Through another cache.
				copied := &repo.Sender{Repo: &repo.Memory{}}
				for i := range 2 {
					n, sent, err := images.CopyBases(t.Context(), repotest.OpenStore(t), to.Repo, copied, nil)
					if err != nil || n != 1-i || (sent > 0) != (i == 0) {
						t.Errorf("copied %d, %d bytes, %v", n, sent, err)
					}
				}
				to = copied

				imported := newImages(t)
				var warned []string
				warn := func(msg string) { warned = append(warned, msg) }
				if n, err := imported.Import(t.Context(), to.Repo, func([]digest.Digest) bool { return false }, nil, warn); n != 0 || err != nil {
					t.Errorf("imported %d that nobody wants, %v", n, err)
				}
				if n, err := imported.Import(t.Context(), to.Repo, nil, nil, warn); n != 1 || err != nil {
					t.Errorf("imported %d, %v", n, err)
				}
				if len(warned) > 0 {
					t.Errorf("warnings: %q", warned)
				}
				off := &images.Resolver{Store: imported.Store, Offline: true}
				if got, err = pull(t.Context(), off, ref); err != nil {
					t.Fatal(err)
				}
				wantPulled(t, off.Store, got, img)
			})
		}
	}
}

// While the registry of a base image cannot be reached, its bytes come from a cache. What the name means does not.
func TestUnreachableOrigin(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "a"})
	dir := layoutDir(t, map[string]*testImage{"1": img})
	const ref = "127.0.0.1:1/base:1" // nobody listens there
	r := &repo.Memory{}
	im := newImages(t)
	im.Bases = map[string]string{ref: "oci:" + dir + ":1"}
	base, _ := publish(t, im, &repo.Sender{Repo: r}, ref)

	far := newImages(t)
	far.Client = repotest.Hurried(time.Second, time.Second, 10*time.Millisecond)
	far.Caches = []repo.Repo{&repo.Memory{}, r}
	got, err := far.Pull(t.Context(), base, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantPulled(t, far.Store, got, img)
	if _, err := far.Resolve(t.Context(), ref, repotest.Linux("amd64")); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("resolve: %v", err)
	}
	// The error is that of the registry, not of caches that have nothing to do with it.
	far.Caches = []repo.Repo{&repo.Memory{}}
	base.Digest = digest.FromString("another")
	if _, err := far.Pull(t.Context(), base, false, nil); err == nil || errors.Is(err, repo.ErrNotFound) {
		t.Errorf("pull: %v", err)
	}

	// A layout that is elsewhere only has a name, too.
	name := "oci:" + dir + ":1"
	publish(t, im, &repo.Sender{Repo: r}, name)
	if err := errors.Join(im.Close(), os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	off := newImages(t)
	off.Offline, off.Caches = true, []repo.Repo{r}
	if got, err = pull(t.Context(), off, name); err != nil {
		t.Fatal(err)
	}
	wantPulled(t, off.Store, got, img)
}

// The last writer says what a name means.
func TestNamesChange(t *testing.T) {
	t.Parallel()
	r := &repo.Memory{}
	dir := t.TempDir()
	for _, text := range []string{"old", "new"} {
		img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: text})
		img.writeBlobs(t, dir)
		desc := img.desc
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: "1"}
		writeIndex(t, dir, desc)
		im := newImages(t)
		im.Bases = map[string]string{"example.test/base:1": "oci:" + dir + ":1"}
		publish(t, im, &repo.Sender{Repo: r}, "example.test/base:1")
		off := newImages(t)
		off.Offline, off.Caches = true, []repo.Repo{r}
		base, err := off.Resolve(t.Context(), "example.test/base:1", repotest.Linux("amd64"))
		if err != nil || base.Digest != img.desc.Digest {
			t.Errorf("%s: it means %s, want %s (%v)", text, base.Digest, img.desc.Digest, err)
		}
		if _, err := off.Resolve(t.Context(), "example.test/base:1", repotest.Linux("arm64")); err == nil {
			t.Error("it means something for another platform")
		}
	}
}

// Names that are broken, or were moved, mean nothing; broken images are left out.
func TestBrokenNames(t *testing.T) {
	t.Parallel()
	const ref = "example.test/base:1"
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "a", compressed: "gzip"})
	dir := layoutDir(t, map[string]*testImage{"1": img})
	other := nameTag("example.test/other:1")
	manifest := func(change func(m *ocispec.Manifest)) func(t testing.TB, repo *repo.Memory) {
		return func(t testing.TB, repo *repo.Memory) {
			_, b, err := repo.Manifest(t.Context(), nameTag(ref))
			if err != nil {
				t.Fatal(err)
			}
			var m ocispec.Manifest
			parse(t, b, &m)
			change(&m)
			if b, err = json.Marshal(m); err != nil {
				t.Fatal(err)
			}
			if _, err := repo.PutManifest(t.Context(), nameTag(ref), m.MediaType, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name           string
		spoil          func(t testing.TB, repo *repo.Memory)
		resolve, pull  bool
		bases, warning int
	}{
		{"nothing", func(testing.TB, *repo.Memory) {}, true, true, 1, 0},
		{"data", manifest(func(m *ocispec.Manifest) { m.Config.Data = []byte("{}") }), false, false, 1, 1},
		{"no data", manifest(func(m *ocispec.Manifest) { m.Config.Data = nil }), true, true, 1, 0},
		{"moved", func(t testing.TB, r *repo.Memory) {
			im := newImages(t)
			im.Bases = map[string]string{"example.test/other:1": "oci:" + dir + ":1"}
			publish(t, im, &repo.Sender{Repo: r}, "example.test/other:1")
			_, b, err := r.Manifest(t.Context(), other)
			if err == nil {
				_, err = r.PutManifest(t.Context(), nameTag(ref), ocispec.MediaTypeImageManifest, b)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, false, false, 1, 1},
		{"layer", func(t testing.TB, repo *repo.Memory) { repotest.Corrupt(t, repo, img.layers[0]) }, true, false, 0, 1},
		{"another image", func(t testing.TB, repo *repo.Memory) {
			desc := conformance.PutBytes(t, repo, ocispec.MediaTypeImageConfig, []byte("{}"))
			b, err := json.Marshal(ocispec.Manifest{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: desc, Layers: []ocispec.Descriptor{},
			})
			if err == nil {
				err = repo.Delete(t.Context(), img.desc.Digest.String())
			}
			if err == nil {
				_, err = repo.PutManifest(t.Context(), "base-"+img.desc.Digest.Encoded(), ocispec.MediaTypeImageManifest, b)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, true, false, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := &repo.Memory{}
			im := newImages(t)
			im.Bases = map[string]string{ref: "oci:" + dir + ":1"}
			publish(t, im, &repo.Sender{Repo: r}, ref)
			c.spoil(t, r)

			off := newImages(t)
			off.Offline, off.Caches = true, []repo.Repo{r}
			base, err := off.Resolve(t.Context(), ref, repotest.Linux("amd64"))
			if (err == nil) != c.resolve {
				t.Errorf("resolve: %v", err)
			}
			if err == nil {
				if _, err := off.Pull(t.Context(), base, false, nil); (err == nil) != c.pull {
					t.Errorf("pull: %v", err)
				}
			}
			to := newImages(t)
			var warned []string
			warn := func(msg string) { warned = append(warned, msg) }
			n, err := to.Import(t.Context(), r, nil, nil, warn)
			if err != nil || n != c.bases || len(warned) != c.warning {
				t.Errorf("imported %d, %v; warnings: %q", n, err, warned)
			}
			// Who has it right mends it.
			if c.bases == 1 {
				publish(t, im, &repo.Sender{Repo: r}, ref)
				if _, err := pull(t.Context(), off, ref); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// pickyRepo takes only configs of images, as some registries do.
type pickyRepo struct{ *repo.Memory }

func (r pickyRepo) PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil || m.Config.MediaType != ocispec.MediaTypeImageConfig {
		return ocispec.Descriptor{}, repo.ErrRefused
	}
	return r.Memory.PutManifest(ctx, tag, mediaType, data)
}

func TestNamesInDisguise(t *testing.T) {
	t.Parallel()
	dir := layoutDir(t, map[string]*testImage{"1": makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "a"})})
	r := pickyRepo{&repo.Memory{}}
	im := newImages(t)
	im.Bases = map[string]string{"example.test/base:1": "oci:" + dir + ":1"}
	base, _ := publish(t, im, &repo.Sender{Repo: r}, "example.test/base:1")
	off := newImages(t)
	off.Offline, off.Caches = true, []repo.Repo{r}
	if got, err := off.Resolve(t.Context(), "example.test/base:1", repotest.Linux("amd64")); err != nil || got.Digest != base.Digest {
		t.Errorf("it means %s, %v", got.Digest, err)
	}
}

// A base image of which the cache and the store have lost a part is made whole from where it came.
func TestPublishBaseMends(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "a"}, testLayer{file: "b", text: "b"})
	origin := "oci:" + layoutDir(t, map[string]*testImage{"1": img}) + ":1"
	dir := t.TempDir()
	for _, lost := range []digest.Digest{img.layers[1].Digest, img.desc.Digest} {
		im := newImages(t)
		publish(t, im, &repo.Sender{Repo: repotest.Open(t, "oci:"+dir)}, origin)
		if err := os.Remove(filepath.Join(dir, "blobs/sha256", lost.Encoded())); err != nil {
			t.Fatal(err)
		}
		if _, sent := publish(t, im, &repo.Sender{Repo: repotest.Open(t, "oci:"+dir)}, origin); sent == 0 {
			t.Errorf("%s is not put again", lost)
		}
	}
}

// Whatever a cache says of a name, what Resolve makes of it is a digest, or an error.
func FuzzName(f *testing.F) {
	const ref = "docker.io/library/busybox:latest"
	good := fmt.Sprintf(`{"name":%q,"for":{"architecture":"amd64","os":"linux"},"digest":%q,"platform":{"architecture":"amd64","os":"linux"}}`,
		ref, digest.FromString("x"))
	for _, s := range []string{good, "{}", "null", strings.Replace(good, "sha256", "sha512", 1), strings.Replace(good, `"os":"linux"}}`, `"os":"windows"}}`, 1)} {
		f.Add([]byte(s))
	}
	st := repotest.OpenStore(f)
	f.Fuzz(func(t *testing.T, config []byte) {
		r := &repo.Memory{}
		desc := conformance.PutBytes(t, r, ocispec.MediaTypeImageConfig, config)
		desc.Data = config
		b, err := json.Marshal(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: desc, Layers: []ocispec.Descriptor{},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.PutManifest(t.Context(), nameTag(ref), ocispec.MediaTypeImageManifest, b); err != nil {
			return // too large for a manifest
		}
		im := &images.Resolver{Store: st, Offline: true, Caches: []repo.Repo{r}}
		base, err := im.Resolve(t.Context(), ref, repotest.Linux("amd64"))
		if err == nil && (base.Digest.Validate() != nil || base.Digest.Algorithm() != digest.SHA256 || base.Ref != ref || base.Platform.OS != "linux") {
			t.Errorf("%s is %+v", ref, base)
		}
	})
}

// A name with the digest of an index means what the index lists, whatever a cache says.
func TestPinnedNames(t *testing.T) {
	t.Parallel()
	addr := conformance.StartRegistry(t)
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "a"})
	bad := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "bad"})
	arm := makeImage(t, false, repotest.Linux("arm64"), testLayer{file: "a", text: "arm"})
	for i, img := range []*testImage{img, bad, arm} {
		img.push(t, addr, "base", fmt.Sprint(i))
	}
	desc, b := makeIndex(t, ocispec.MediaTypeImageIndex, img.on(repotest.Linux("amd64")), arm.on(repotest.Linux("arm64")))
	if _, err := repotest.Open(t, addr+"/base").PutManifest(t.Context(), "multi", desc.MediaType, b); err != nil {
		t.Fatal(err)
	}
	ref := addr + "/base@" + desc.Digest.String()

	im := newImages(t)
	to := &repo.Sender{Repo: &repo.Memory{}}
	if base, _ := publish(t, im, to, ref); base.Digest != img.desc.Digest {
		t.Fatalf("it means %s", base.Digest)
	}
	copied := &repo.Sender{Repo: repotest.Open(t, addr+"/copied")}
	if _, _, err := images.CopyBases(t.Context(), im.Store, to.Repo, copied, nil); err != nil {
		t.Fatal(err)
	}
	for _, r := range []repo.Repo{to.Repo, copied.Repo} {
		off := newImages(t)
		off.Offline, off.Caches = true, []repo.Repo{r}
		got, err := pull(t.Context(), off, ref)
		if err != nil {
			t.Fatal(err)
		}
		wantPulled(t, off.Store, got, img)
	}

	// Another cache says that it is the bad image: with the index, with one that lists that, and without.
	_, other := makeIndex(t, ocispec.MediaTypeImageIndex, bad.on(repotest.Linux("amd64")))
	for name, index := range map[string][]byte{"the index": b, "another index": other, "none": nil} {
		t.Run(name, func(t *testing.T) {
			r := &repo.Memory{}
			lying := &repo.Sender{Repo: r}
			publish(t, newImages(t), lying, addr+"/base:1")
			_, m, err := to.Repo.Manifest(t.Context(), nameTag(ref))
			if err != nil {
				t.Fatal(err)
			}
			var manifest ocispec.Manifest
			parse(t, m, &manifest)
			data := bytes.ReplaceAll(manifest.Config.Data, []byte(img.desc.Digest.String()), []byte(bad.desc.Digest.String()))
			manifest.Config = conformance.PutBytes(t, r, manifest.Config.MediaType, data)
			manifest.Config.Data = data
			manifest.Layers = []ocispec.Descriptor{}
			if index != nil {
				manifest.Layers = append(manifest.Layers, conformance.PutBytes(t, r, "application/vnd.obx.name.index.v1+json", index))
			}
			if m, err = json.Marshal(manifest); err == nil {
				_, err = r.PutManifest(t.Context(), nameTag(ref), manifest.MediaType, m)
			}
			if err != nil {
				t.Fatal(err)
			}
			off := newImages(t)
			off.Offline, off.Caches = true, []repo.Repo{r}
			if base, err := off.Resolve(t.Context(), ref, repotest.Linux("amd64")); err == nil {
				t.Errorf("offline it means %s", base.Digest)
			}
			imported := newImages(t)
			var warned []string
			warn := func(msg string) { warned = append(warned, msg) }
			if n, err := imported.Import(t.Context(), r, nil, nil, warn); n != 1 || err != nil || len(warned) != 1 {
				t.Errorf("imported %d, %v", n, err)
			}
			on := &images.Resolver{Store: imported.Store}
			if base, err := on.Resolve(t.Context(), ref, repotest.Linux("amd64")); err != nil || base.Digest != img.desc.Digest {
				t.Errorf("then it means %s, %v", base.Digest, err)
			}
		})
	}
}

// Verify reads base images and names too.
func TestVerifyBases(t *testing.T) {
	t.Parallel()
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "1", compressed: "gzip"})
	origin := "oci:" + layoutDir(t, map[string]*testImage{"latest": img})
	dir := t.TempDir()
	im := newImages(t)
	to := &registry.Cache{Repo: repotest.Open(t, "oci:"+dir), Store: im.Store}
	base, err := im.Resolve(t.Context(), origin, repotest.Linux("amd64"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.PublishBase(t.Context(), to.Sender(), base); err != nil {
		t.Fatal(err)
	}
	if _, err := im.PublishName(t.Context(), to.Sender(), images.Name{For: repotest.Linux("amd64"), Base: base}); err != nil {
		t.Fatal(err)
	}
	if found := verify(t, to); len(found) > 0 {
		t.Fatalf("found %q", found)
	}
	if err := os.Remove(filepath.Join(dir, "blobs/sha256", img.layers[0].Digest.Encoded())); err != nil {
		t.Fatal(err)
	}
	c := &registry.Cache{Repo: repotest.Open(t, "oci:"+dir), Store: im.Store}
	found := verify(t, c)
	if len(found) != 1 || !strings.HasPrefix(found[0], "base-") || !strings.Contains(found[0], img.layers[0].Digest.String()) {
		t.Errorf("found %q", found)
	}
}

func verify(t testing.TB, c *registry.Cache) (found []string) {
	t.Helper()
	for p, err := range c.Verify(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, p.String())
	}
	return found
}

func parse(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}
