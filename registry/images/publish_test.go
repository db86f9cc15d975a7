package images_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
)

// What is published is an ordinary image. What the repository has is not sent again, and what a repository of the same registry has is mounted.
func TestPublish(t *testing.T) {
	t.Parallel()
	eachRegistry(t, func(t *testing.T, addr string) {
		f := newFront(t, addr)
		im := newImages(t)
		base := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: noise(1 << 16), compressed: "gzip"})
		base.push(t, f.addr, "base", "1")
		img, err := pull(t.Context(), im, f.addr+"/base:1")
		if err != nil {
			t.Fatal(err)
		}
		own := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "b", text: "of b", compressed: "gzip"}, testLayer{file: "c", text: noise(1 << 17), compressed: "zstd"})
		for i, l := range own.layers {
			if _, err := im.Store.PutBlob(own.blobs[l.Digest]); err != nil {
				t.Fatal(err)
			}
			img.Layers = append(img.Layers, layers.Layer{Blob: l, DiffID: own.config.RootFS.DiffIDs[i]})
		}
		cached := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "c", text: noise(1 << 17), compressed: "zstd"})
		cached.push(t, f.addr, "cache/obx", "1")
		img.Config.Config.Entrypoint = []string{"/b"}

		pub := images.Publication{Image: *img, Store: im.Store, Base: 1, BaseRef: f.addr + "/base:1", Near: []string{"oci:/elsewhere", f.addr + "/cache/obx"}}
		push := func(names ...string) (ocispec.Descriptor, int64) {
			t.Helper()
			targets, err := images.Targets(im, names)
			if err != nil || len(targets) != 1 {
				t.Fatal(targets, err)
			}
			desc, sent, err := pub.Push(t.Context(), targets[0])
			if err != nil {
				t.Fatal(err)
			}
			return desc, sent
		}
		f.seen()
		desc, sent := push(f.addr+"/team/app:1", f.addr+"/team/app")
		if sent > 8<<10 {
			t.Errorf("%d bytes were sent, though the large layers are in other repositories", sent)
		}
		mounts := 0
		for _, r := range f.seen() {
			if strings.HasPrefix(r, http.MethodPost) {
				mounts++
			}
		}
		if mounts != 4 { // three layers, one of which has to be sent, and the config
			t.Errorf("%d uploads were begun", mounts)
		}
		if _, sent := push(f.addr + "/team/app:2"); sent > 1<<10 {
			t.Errorf("%d bytes were sent again", sent)
		}
		for _, r := range f.seen() {
			if strings.HasPrefix(r, http.MethodPost) {
				t.Errorf("an upload was begun again: %s", r)
			}
		}
		want := *base
		want.layers = slices.Concat(base.layers, own.layers)
		want.config.RootFS.DiffIDs = slices.Concat(base.config.RootFS.DiffIDs, own.config.RootFS.DiffIDs)
		want.blobs = map[digest.Digest][]byte{}
		for _, i := range []*testImage{base, own} {
			for d, b := range i.blobs {
				want.blobs[d] = b
			}
		}
		for _, tag := range []string{"1", "latest", "2"} {
			other := newImages(t)
			got, err := pull(t.Context(), other, addr+"/team/app:"+tag)
			if err != nil {
				t.Fatal(err)
			}
			wantPulled(t, other.Store, got, &want)
			if !slices.Equal(got.Config.Config.Entrypoint, []string{"/b"}) {
				t.Errorf("the entrypoint is %q", got.Config.Config.Entrypoint)
			}
		}

		// An index of two platforms, each of which was pushed before.
		arm := pub
		arm.Image.Config.Platform = repotest.Linux("arm64")
		target, err := images.Targets(im, []string{f.addr + "/team/app:multi"})
		if err != nil {
			t.Fatal(err)
		}
		entries := []ocispec.Descriptor{desc}
		for _, p := range []*images.Publication{&arm} {
			d, _, err := p.Push(t.Context(), images.Target{Repo: target[0].Repo})
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, d)
		}
		if _, err := images.PushIndex(t.Context(), target[0], entries); err != nil {
			t.Fatal(err)
		}
		for i, arch := range []string{"amd64", "arm64"} {
			b, err := newImages(t).Resolve(t.Context(), addr+"/team/app:multi", repotest.Linux(arch))
			if err != nil || b.Digest != entries[i].Digest {
				t.Errorf("%s: got %v, %v, want %s", arch, b, err, entries[i].Digest)
			}
		}
	})
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"h.example/a:1": "h.example/a 1", "localhost:5000/x/y": "localhost:5000/x/y latest", "user/app:dev": "docker.io/user/app dev",
		"docker.io/app:1": "docker.io/library/app 1",
	} {
		if repo, tag, err := images.ParseTarget(name); err != nil || repo+" "+tag != want {
			t.Errorf("%s: got %s %s, %v", name, repo, tag, err)
		}
	}
	for _, name := range []string{"", "app", "app:1", "h/A", "https://h.example/a", "h.example/a@" + string(digest.Digest("sha256:"+strings.Repeat("0", 64))), "oci:dir/x", "./x"} {
		if repo, tag, err := images.ParseTarget(name); err == nil {
			t.Errorf("%q: got %s %s", name, repo, tag)
		}
	}
}
