package images_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
)

// largeImage has one layer of 300 MB in 6000 files, which compresses to some 40 %.
func largeImage(b *testing.B, compression string) *testImage {
	b.Helper()
	const files, size = 6000, 50_000
	random := []byte(noise(files * size / 4))
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for i := range files {
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/", i/100), Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/f%d", i/100, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			b.Fatal(err)
		}
		part := random[i*size/4:][:size/4]
		if _, err := w.Write(bytes.Join([][]byte{part, part, part[:len(part)/2], bytes.Repeat([]byte("int main() {}\n"), size)}, nil)[:size]); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	layer := compressed(b, compression, plain.Bytes())
	img := &testImage{blobs: map[digest.Digest][]byte{digest.FromBytes(layer): layer}}
	img.config = ocispec.Image{
		Platform: repotest.Linux("amd64"),
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain.Bytes())}},
	}
	img.layers = []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageLayer + "+" + compression, Digest: digest.FromBytes(layer), Size: int64(len(layer)),
	}}
	img.seal(b, false)
	return img
}

// BenchmarkPull measures a pull of a large image from a registry process, unpacked, beside what tar needs for the same bytes from a local file.
func BenchmarkPull(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("requires root: layers have owners")
	}
	for _, compression := range []string{"gzip", "zstd"} {
		img := largeImage(b, compression)
		blob := img.blobs[img.layers[0].Digest]
		b.Run(compression+"/floor", func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "layer")
			repotest.WriteFile(b, file, blob)
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				b.StartTimer()
				if out, err := exec.Command("sh", "-c", compression+` -dc <"$1" | tar -x -C "$2"`, "sh", file, dir).CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
			}
		})
		b.Run(compression+"/pull", func(b *testing.B) {
			addr := conformance.StartRegistry(b)
			img.push(b, addr, "x", "latest")
			for b.Loop() {
				b.StopTimer()
				im := newImages(b)
				b.StartTimer()
				base, err := im.Resolve(b.Context(), addr+"/x", repotest.Linux("amd64"))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := im.Pull(b.Context(), base, true, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(compression+"/write", func(b *testing.B) {
			im := newImages(b)
			got, err := pull(b.Context(), im, "oci:"+layoutDir(b, map[string]*testImage{"": img}))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(blob)))
			for b.Loop() {
				if _, err := images.WriteOCI(b.Context(), io.Discard, im.Store, *got, "x"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
