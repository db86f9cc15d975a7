package images

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/reference"
	"github.com/ocurrent/obx/registry/repo"
)

// WriteOCI writes an image as a tar of an OCI layout. Its layers have to be packed. names are references to record: app:1.0 is
// found by the tag 1.0, and a bare word by itself. The same image gives the same bytes. As others here that write images, it gives the
// manifest's descriptor.
func WriteOCI(ctx context.Context, w io.Writer, st *cas.Store, img Image, names ...string) (ocispec.Descriptor, error) {
	o, err := assemble(img, names)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write OCI image: %w", err)
	}
	if err := o.writeTar(ctx, w, st, nil); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write OCI image: %w", err)
	}
	return o.manifest, nil
}

// WriteDocker writes what `docker load` reads: docker-save's manifest.json and an OCI layout in one tar, over the same blobs. Docker before 23
// cannot read zstd layers.
func WriteDocker(ctx context.Context, w io.Writer, st *cas.Store, img Image, names ...string) (ocispec.Descriptor, error) {
	o, err := assemble(img, names)
	if err == nil {
		err = o.writeDocker(ctx, w, st)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write docker image: %w", err)
	}
	return o.manifest, nil
}

func (o *output) writeDocker(ctx context.Context, w io.Writer, st *cas.Store) error {
	// https://github.com/moby/docker-image-spec
	item := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: oci.BlobPath(o.config.Digest)}
	for _, n := range o.names {
		r, err := reference.Parse(n.full)
		if err != nil {
			return err
		}
		item.RepoTags = append(item.RepoTags, r.Familiar())
	}
	for _, l := range o.layers {
		item.Layers = append(item.Layers, oci.BlobPath(l.Digest))
	}
	manifest, err := json.Marshal([]any{item})
	if err != nil {
		return err
	}
	return o.writeTar(ctx, w, st, manifest)
}

// WriteOCIDir writes an image into an OCI layout directory, which is made, or added to: blobs first, the index last by one rename. An image of
// that name is replaced; its blobs stay. Several processes may write to one directory.
func WriteOCIDir(ctx context.Context, dir string, st *cas.Store, img Image, names ...string) (ocispec.Descriptor, error) {
	o, err := assemble(img, names)
	if err == nil {
		err = o.writeDir(ctx, dir, st)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write OCI layout %s: %w", dir, err)
	}
	return o.manifest, nil
}

func (o *output) writeDir(ctx context.Context, dir string, st *cas.Store) error {
	layout, err := repo.OpenLayout(dir)
	if err != nil {
		return err
	}
	var blobs []repo.Blob
	for _, d := range o.blobs() {
		blobs = append(blobs, repo.Blob{Desc: d, Open: func() (io.ReadCloser, error) { return o.open(st, d) }})
	}
	return errors.Join(layout.Add(ctx, blobs, o.entries()), layout.Close())
}

// An output is an image as it leaves: small documents in memory, layers in the store.
type output struct {
	manifest, config ocispec.Descriptor
	layers           []ocispec.Descriptor
	documents        map[digest.Digest][]byte
	names            []outputName
}

// An outputName is a name in an index. Tools look for the tag alone; containerd, and docker load with it, for the whole name.
type outputName struct{ tag, full string }

func assemble(img Image, names []string) (*output, error) {
	o := &output{documents: make(map[digest.Digest][]byte), layers: []ocispec.Descriptor{}}
	for _, name := range names {
		n, err := parseOutputName(name)
		if err != nil {
			return nil, err
		}
		o.names = append(o.names, n)
	}
	conf := img.Config
	conf.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for i, l := range img.Layers {
		if l.IsZero() {
			continue
		}
		if l.Blob.Digest == "" || l.DiffID == "" {
			return nil, fmt.Errorf("layer %d is not packed", i+1)
		}
		mediaType, err := oci.LayerType(l.Blob.MediaType)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, l.DiffID)
		o.layers = append(o.layers, ocispec.Descriptor{MediaType: mediaType, Digest: l.Blob.Digest, Size: l.Blob.Size})
	}
	conf.History = oci.FitHistory(conf.History, len(o.layers))
	var err error
	if o.config, err = o.add(ocispec.MediaTypeImageConfig, conf); err != nil {
		return nil, err
	}
	o.manifest, err = o.add(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    o.config,
		Layers:    o.layers,
	})
	return o, err
}

// CheckOutputName refuses a name that no image can be written under.
func CheckOutputName(name string) error {
	_, err := parseOutputName(name)
	return err
}

func parseOutputName(name string) (outputName, error) {
	n, err := parseName(name)
	if err != nil {
		return outputName{}, err
	}
	if n.host == "" || n.digest != "" {
		return outputName{}, fmt.Errorf("an image cannot be named %q", name)
	}
	o := outputName{tag: n.tag, full: n.String()}
	if !strings.ContainsAny(name, "/:") {
		o.tag = name
	}
	return o, nil
}

func (o *output) add(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.FromBytes(b)
	o.documents[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}, nil
}

// entries are the image's lines in an index: one for each name, or one without.
func (o *output) entries() []ocispec.Descriptor {
	if o.names == nil {
		return []ocispec.Descriptor{o.manifest}
	}
	var all []ocispec.Descriptor
	for _, n := range o.names {
		d := o.manifest
		d.Annotations = map[string]string{ocispec.AnnotationRefName: n.tag, annotationContainerName: n.full}
		all = append(all, d)
	}
	return all
}

// blobs lists all blobs once, sorted.
func (o *output) blobs() []ocispec.Descriptor {
	all := append([]ocispec.Descriptor{o.manifest, o.config}, o.layers...)
	slices.SortFunc(all, func(a, b ocispec.Descriptor) int { return cmp.Compare(a.Digest, b.Digest) })
	return slices.CompactFunc(all, func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest })
}

// open gives the bytes of a blob, which are d.Size many.
func (o *output) open(st *cas.Store, d ocispec.Descriptor) (io.ReadCloser, error) {
	if b, ok := o.documents[d.Digest]; ok {
		return io.NopCloser(strings.NewReader(string(b))), nil
	}
	f, err := st.Blob(d.Digest)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != d.Size {
		err = fmt.Errorf("it has %d bytes, not %d", info.Size(), d.Size)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	return f, nil
}

// writeTar writes the layout, with docker's manifest.json if it is not nil.
func (o *output) writeTar(ctx context.Context, w io.Writer, st *cas.Store, dockerManifest []byte) error {
	index, err := json.Marshal(oci.NewIndex(o.entries()...))
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, dir := range []string{ocispec.ImageBlobsDir + "/", ocispec.ImageBlobsDir + "/sha256/"} {
		if err := tw.WriteHeader(tarHeader(dir, tar.TypeDir, 0o755, 0)); err != nil {
			return err
		}
	}
	for _, d := range o.blobs() {
		if err := o.writeTarBlob(ctx, tw, st, d); err != nil {
			return err
		}
	}
	files := []struct {
		name string
		b    []byte
	}{
		{ocispec.ImageIndexFile, index},
		{"manifest.json", dockerManifest},
		{ocispec.ImageLayoutFile, oci.LayoutFile()},
	}
	for _, f := range files {
		if f.b == nil {
			continue
		}
		if err := tw.WriteHeader(tarHeader(f.name, tar.TypeReg, 0o644, int64(len(f.b)))); err != nil {
			return err
		}
		if _, err := tw.Write(f.b); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (o *output) writeTarBlob(ctx context.Context, tw *tar.Writer, st *cas.Store, d ocispec.Descriptor) error {
	r, err := o.open(st, d)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := tw.WriteHeader(tarHeader(oci.BlobPath(d.Digest), tar.TypeReg, 0o644, d.Size)); err != nil {
		return err
	}
	_, err = io.Copy(tw, cas.Reader(ctx, r))
	return err
}

func tarHeader(name string, typ byte, mode, size int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: typ, Mode: mode, Size: size, ModTime: time.Unix(0, 0)}
}
