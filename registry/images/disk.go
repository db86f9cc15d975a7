package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// PushDisk publishes a disk, a qcow2 file, as an image with one layer. The image is a function of the file, the platform and
// the compression alone. The store is where it is packed.
func PushDisk(ctx context.Context, st *cas.Store, repo repo.Repo, tag string, p ocispec.Platform, file string, c layers.Compression) (digest.Digest, error) {
	l, err := packDisk(ctx, st, file, c)
	if err != nil {
		return "", fmt.Errorf("pack %s: %w", file, err)
	}
	fail := func(err error) (digest.Digest, error) {
		return "", fmt.Errorf("publish %s in %s: %w", file, repo.Name(), err)
	}
	err = repo.PutBlob(ctx, l.Blob, "", func() (io.ReadCloser, error) { return st.Blob(l.Blob.Digest) })
	if err != nil {
		return fail(err)
	}
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.DiffID}},
	})
	if err != nil {
		return fail(err)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    []ocispec.Descriptor{l.Blob},
	}
	if err := repo.PutBlob(ctx, m.Config, "", oci.Opener(config)); err != nil {
		return fail(err)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return fail(err)
	}
	desc, err := repo.PutManifest(ctx, tag, m.MediaType, data)
	if err != nil {
		return fail(err)
	}
	return desc.Digest, nil
}

// SplitTag splits the name of an image that is to be written into its repository, as repo.Client.Open takes it, and its tag.
func SplitTag(ref string) (repo, tag string, err error) {
	n, err := parseName(ref)
	switch {
	case err != nil:
		return "", "", err
	case n.isScratch() || n.digest != "":
		return "", "", fmt.Errorf("%s: an image is written under a tag", ref)
	case n.tag == "":
		n.tag = "latest"
	}
	if n.dir != "" {
		return oci.LayoutPrefix + n.dir, n.tag, nil
	}
	return n.host + "/" + n.path, n.tag, nil
}

// packDisk makes a layer with the file. Its times and owner say nothing.
func packDisk(ctx context.Context, st *cas.Store, file string, c layers.Compression) (layers.Layer, error) {
	dir, err := os.MkdirTemp(st.TempDir(), "disk-")
	if err != nil {
		return layers.Layer{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it is gone if all went well
	to := filepath.Join(dir, "fs", layers.DiskDir, layers.DiskName(0))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return layers.Layer{}, err
	}
	if err := copyDisk(to, file); err != nil {
		return layers.Layer{}, err
	}
	epoch := time.Unix(0, 0)
	for name := to; ; name = filepath.Dir(name) {
		if err := os.Chtimes(name, epoch, epoch); err != nil {
			return layers.Layer{}, err
		}
		if name == filepath.Join(dir, "fs") {
			break
		}
	}
	name, err := st.CommitLayer(dir, "")
	if err != nil {
		return layers.Layer{}, err
	}
	return layers.Pack(ctx, st, layers.Layer{Dir: name}, c)
}

func copyDisk(to, from string) error {
	in, err := foreign.OpenFile(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
