package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
)

// anOutput is an image in a store, of Docker's making, with a step after it that changed nothing.
func anOutput(t testing.TB) (*cas.Store, images.Image, *testImage) {
	t.Helper()
	want := makeImage(t, true, repotest.Linux("amd64"), testLayer{file: "a", text: "of a", compressed: "gzip"}, testLayer{file: "b", text: noise(1 << 16), compressed: "gzip"})
	im := newImages(t)
	img, err := pull(t.Context(), im, "oci:"+layoutDir(t, map[string]*testImage{"": want}))
	if err != nil {
		t.Fatal(err)
	}
	img.Layers = append(img.Layers, layers.Layer{})
	img.Config.History = []ocispec.History{{CreatedBy: "a"}, {CreatedBy: "b"}, {CreatedBy: "nothing", EmptyLayer: true}}
	img.Config.Config.WorkingDir = "/src"
	return im.Store, *img, want
}

// wantBack pulls an image from a layout, and compares.
func wantBack(t *testing.T, ref string, want *testImage) {
	t.Helper()
	im := newImages(t)
	got, err := pull(t.Context(), im, ref)
	if err != nil {
		t.Fatal(err)
	}
	wantPulled(t, im.Store, got, want)
	if got.Config.Config.WorkingDir != "/src" || len(got.Config.History) != 3 {
		t.Errorf("got config %+v", got.Config)
	}
}

// untar unpacks regular files.
func untar(t testing.TB, r io.Reader) (dir string, headers []*tar.Header) {
	t.Helper()
	dir = t.TempDir()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return dir, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, h)
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		repotest.WriteFile(t, filepath.Join(dir, h.Name), b)
	}
}

func TestWriteOCI(t *testing.T) {
	t.Parallel()
	st, img, want := anOutput(t)
	var b, again bytes.Buffer
	desc, err := images.WriteOCI(t.Context(), &b, st, img, "example.com/app:1.0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := images.WriteOCI(t.Context(), &again, st, img, "example.com/app:1.0"); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Errorf("writing again gives other bytes, %v", err)
	}
	dir, headers := untar(t, &again)
	for _, h := range headers {
		if !h.ModTime.Equal(time.Unix(0, 0)) || h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s: %v %d:%d", h.Name, h.ModTime, h.Uid, h.Gid)
		}
	}
	wantBack(t, "oci:"+dir, want)
	wantBack(t, "oci:"+dir+":1.0", want)
	wantBack(t, "oci:"+dir+"@"+desc.Digest.String(), want)

	file := filepath.Join(t.TempDir(), "image.tar")
	repotest.WriteFile(t, file, b.Bytes())
	wantOras(t, file, "1.0", desc)
	wantSkopeo(t, "oci-archive:"+file+":1.0", want)
	wantBuildah(t, "oci-archive:"+file+":1.0")
}

// wantBuildah builds on an image.
func wantBuildah(t *testing.T, ref string) {
	t.Helper()
	if _, err := exec.LookPath("buildah"); err != nil || os.Geteuid() != 0 {
		t.Log("buildah is not installed, or not to be had without root: nothing is built on the image")
		return
	}
	dir := t.TempDir()
	buildah := func(args ...string) string {
		t.Helper()
		args = append([]string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run")}, args...)
		out, err := exec.Command("buildah", args...).Output()
		if err != nil {
			t.Fatalf("buildah %s: %s", args[6], stderr(err))
		}
		return strings.TrimSpace(string(out))
	}
	container := buildah("from", ref)
	buildah("config", "--env", "MORE=1", container)
	buildah("commit", "-q", container, "oci:"+filepath.Join(dir, "more")+":1")
	if got, err := pull(t.Context(), newImages(t), "oci:"+filepath.Join(dir, "more")+":1"); err != nil || !slices.Contains(got.Config.Config.Env, "MORE=1") {
		t.Errorf("what was built on it: %v, %v", got, err)
	}
}

// wantOras reads an image with oras-go.
func wantOras(t *testing.T, file, tag string, want ocispec.Descriptor) {
	t.Helper()
	store, err := oci.NewFromTar(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := store.Resolve(t.Context(), tag)
	if err != nil || desc.Digest != want.Digest {
		t.Fatalf("got %v, %v", desc, err)
	}
	b, err := content.FetchAll(t.Context(), store, desc)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range append(m.Layers, m.Config) {
		if !strings.HasPrefix(d.MediaType, "application/vnd.oci.") {
			t.Errorf("media type %s", d.MediaType)
		}
		if _, err := content.FetchAll(t.Context(), store, d); err != nil {
			t.Error(err)
		}
	}
}

// wantSkopeo reads an image as users do.
func wantSkopeo(t *testing.T, ref string, want *testImage) {
	t.Helper()
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Log("skopeo is not installed: the image is not read with it")
		return
	}
	out, err := exec.Command("skopeo", "inspect", ref).Output()
	if err != nil {
		t.Fatalf("skopeo inspect: %s", stderr(err))
	}
	var got struct {
		Architecture string
		Layers       []string
		Env          []string
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Architecture != want.config.Architecture || len(got.Layers) != len(want.layers) || !slices.Equal(got.Env, want.config.Config.Env) {
		t.Errorf("skopeo says %s", out)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("skopeo", "--insecure-policy", "copy", "-q", ref, "dir:"+to).CombinedOutput(); err != nil {
		t.Errorf("skopeo copy: %s", out)
	}
}

func stderr(err error) []byte {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.Stderr
	}
	return []byte(err.Error())
}

func TestWriteDocker(t *testing.T) {
	t.Parallel()
	st, img, want := anOutput(t)
	for name, tags := range map[string][]string{
		"": nil, "app": {"app:latest"}, "ghcr.io/x/app:1": {"ghcr.io/x/app:1"}, "app:1 other/app:2": {"app:1", "other/app:2"},
	} {
		names := strings.Fields(name)
		var b, again bytes.Buffer
		if _, err := images.WriteDocker(t.Context(), &b, st, img, names...); err != nil {
			t.Fatal(err)
		}
		if _, err := images.WriteDocker(t.Context(), &again, st, img, names...); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
			t.Errorf("writing again gives other bytes, %v", err)
		}
		file := filepath.Join(t.TempDir(), "image.tar")
		repotest.WriteFile(t, file, b.Bytes())
		wantSkopeo(t, "docker-archive:"+file, want)
		if name == "app" {
			wantBuildah(t, "docker-archive:"+file)
		}

		conf, loaded, err := conformance.CheckDockerArchive(bytes.NewReader(b.Bytes()))
		if err != nil || !slices.Equal(loaded, tags) || !slices.Equal(conf.RootFS.DiffIDs, want.config.RootFS.DiffIDs) {
			t.Errorf("docker load: %q, %v, %v", loaded, conf.RootFS, err)
		}
		dir, _ := untar(t, &b)
		for _, tag := range append(tags, "") {
			if _, tag, _ = strings.Cut(tag, ":"); tag != "" {
				tag = ":" + tag
			} else if len(tags) > 1 {
				continue // one of two
			}
			if tag == ":latest" {
				tag = ":app"
			}
			wantBack(t, "oci:"+dir+tag, want)
		}
	}
}

// A layout in an archive is one, too: an image that was said to be written is there.
func TestWriteOCIArchive(t *testing.T) {
	t.Parallel()
	st, img, want := anOutput(t)
	file := filepath.Join(t.TempDir(), "layout.tar")
	for _, name := range []string{"app:1", "app:2"} {
		if _, err := images.WriteOCIDir(t.Context(), file, st, img, name); err != nil {
			t.Fatal(err)
		}
	}
	wantBack(t, "oci:"+file+":2", want)
	wantBack(t, "oci:"+file+":1", want)
}

func TestWriteOCIDir(t *testing.T) {
	t.Parallel()
	st, img, want := anOutput(t)
	dir := filepath.Join(t.TempDir(), "new", "layout")
	write := func(img images.Image, names ...string) ocispec.Descriptor {
		t.Helper()
		desc, err := images.WriteOCIDir(t.Context(), dir, st, img, names...)
		if err != nil {
			t.Fatal(err)
		}
		return desc
	}
	write(img)
	write(img)
	wantBack(t, "oci:"+dir, want) // still one
	other := img
	other.Layers = img.Layers[:1]
	write(other, "app:1")
	write(img, "app:1")
	write(img, "plain")
	wantBack(t, "oci:"+dir+":1", want)
	wantBack(t, "oci:"+dir+":plain", want)
	var index ocispec.Index
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &index); err != nil || len(index.Manifests) != 3 {
		t.Errorf("%s: %v", b, err)
	}
	wantSkopeo(t, "oci:"+dir+":plain", want)

	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { write(img, fmt.Sprintf("app:n%d", i)) })
	}
	wg.Wait()
	for i := range 8 {
		wantBack(t, fmt.Sprintf("oci:%s:n%d", dir, i), want)
	}
	entries, err := os.ReadDir(dir)
	files := 3
	if runtime.GOOS == "windows" { // with the file that is locked
		files++
	}
	if err != nil || len(entries) != files {
		t.Errorf("in the layout: %v, %v", entries, err)
	}
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
	if err != nil || len(blobs) != 6 { // two layers, two configs, two manifests
		t.Errorf("blobs: %v, %v", blobs, err)
	}
}

func TestWriteUmoci(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("umoci is not installed")
	}
	if os.Geteuid() != 0 {
		t.Skip("requires root: umoci makes files of others")
	}
	st, img, _ := anOutput(t)
	dir := filepath.Join(t.TempDir(), "layout")
	if _, err := images.WriteOCIDir(t.Context(), dir, st, img, "app:1"); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	if out, err := exec.Command("umoci", "unpack", "--image", dir+":1", bundle).CombinedOutput(); err != nil {
		t.Fatalf("umoci unpack: %s", out)
	}
	if b, err := os.ReadFile(filepath.Join(bundle, "rootfs", "a")); err != nil || string(b) != "of a" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestWriteErrors(t *testing.T) {
	t.Parallel()
	st, img, _ := anOutput(t)
	unpacked, missing := img, img
	unpacked.Layers = append(slices.Clone(img.Layers), layers.Layer{Dir: "x"})
	missing.Layers = slices.Clone(img.Layers)
	missing.Layers[0].Blob.Digest = digest.FromString("missing")
	for _, tt := range []struct {
		img        images.Image
		name, want string
	}{
		{unpacked, "app", "layer 4 is not packed"},
		{missing, "app", "not found in the store"},
		{img, "", "the name of an image is empty"},
		{img, "Bad", "must be lowercase"},
		{img, "scratch", "cannot be named"},
		{img, "x@" + digest.FromString("x").String(), "cannot be named"},
	} {
		dir := filepath.Join(t.TempDir(), "layout")
		_, err := images.WriteOCIDir(t.Context(), dir, st, tt.img, tt.name)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("directory: got %v, want %q", err, tt.want)
		}
		if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
			t.Error("there is an index of a broken image")
		}
		if _, err := images.WriteOCI(t.Context(), io.Discard, st, tt.img, tt.name); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("tar: got %v, want %q", err, tt.want)
		}
		if _, err := images.WriteDocker(t.Context(), io.Discard, st, tt.img, tt.name); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("docker: got %v, want %q", err, tt.want)
		}
	}
}
