package build_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/layers"
)

// What --compression says is what an output has, whatever its layers were packed as before: on the machine that built them, that has pushed them, or that
// has pulled them. Without it, only a base image's layers are as they came, and docker gets nothing that it may not read.
func TestOutputCompression(t *testing.T) {
	t.Parallel()
	bases := map[string]string{}
	for _, c := range []string{"gzip", "zstd"} {
		m := newMachine(t)
		m.Compression = layers.Compression{Algorithm: c}
		m.NeedFiles = true
		o := m.run(`((from scratch) (shell /bin/sh -c) (run (shell "echo base > /base")))`)
		bases[c] = filepath.Join(t.TempDir(), "base")
		if _, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: "oci", Dest: bases[c], Dir: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for base, dir := range bases {
		text := fmt.Sprintf(`((from "oci:%s") (shell /bin/sh -c) (run (shell "echo one > /one")) (run (shell "echo two > /two")))`, dir)
		r := &spyRepo{}
		pushed := newMachine(t).share(r)
		pushed.run(text)
		for _, m := range []*machine{newMachine(t), pushed, newMachine(t).share(r)} {
			m.NeedFiles = true
			o := m.run(text)
			for _, c := range []struct{ asked, kind, base, own string }{
				{"", "oci", base, "zstd"},
				{"", "docker", "gzip", "gzip"},
				{"gzip", "oci", "gzip", "gzip"},
				{"none", "docker", "none", "none"},
				{"zstd", "oci", "zstd", "zstd"},
				{"zstd", "docker", "zstd", "zstd"},
				{"", "oci", base, "zstd"},
			} {
				m.Compression = layers.Compression{Algorithm: c.asked}
				file := filepath.Join(t.TempDir(), "image.tar")
				if _, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: c.kind, Dest: file, Names: []string{"app:1"}}, nil); err != nil {
					t.Fatal(err)
				}
				if got, want := strings.Join(compressions(t, file), " "), strings.Join([]string{c.base, c.own, c.own}, " "); got != want {
					t.Errorf("on %s, type=%s with --compression %q has %s, want %s", base, c.kind, c.asked, got, want)
				}
				if c.kind != "docker" || c.asked == "zstd" {
					continue
				}
				f, err := os.Open(file)
				if err != nil {
					t.Fatal(err)
				}
				if _, names, err := conformance.CheckDockerArchive(f); err != nil || fmt.Sprint(names) != "[app:1]" {
					t.Errorf("docker load: %q, %v", names, err)
				}
				f.Close()
			}
		}
	}
}

// compressions tells what the layers of an image in an archive are, by their bytes, which their types agree with.
func compressions(t *testing.T, file string) (all []string) {
	t.Helper()
	dir := t.TempDir()
	unpack(t, file, dir)
	var index ocispec.Index
	var manifest ocispec.Manifest
	blob := func(d ocispec.Descriptor) string { return filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded()) }
	readJSON(t, filepath.Join(dir, "index.json"), &index)
	readJSON(t, blob(index.Manifests[0]), &manifest)
	for _, l := range manifest.Layers {
		b, err := os.ReadFile(blob(l))
		if err != nil {
			t.Fatal(err)
		}
		is, mediaType := "none", ocispec.MediaTypeImageLayer
		switch {
		case b[0] == 0x1f && b[1] == 0x8b:
			is, mediaType = "gzip", ocispec.MediaTypeImageLayerGzip
		case b[0] == 0x28 && b[1] == 0xb5:
			is, mediaType = "zstd", ocispec.MediaTypeImageLayerZstd
		}
		if l.MediaType != mediaType {
			t.Errorf("a layer that is %s has the type %s", is, l.MediaType)
		}
		all = append(all, is)
	}
	return all
}
