package registry

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
)

// WriteOCI writes an image as a tar of an OCI layout. Its layers have to be packed. name is "", or a reference to record: app:1.0 is
// found by the tag 1.0, and a bare word by itself. The same image gives the same bytes.
func WriteOCI(ctx context.Context, w io.Writer, st *cas.Store, img Image, name string) (ocispec.Descriptor, error) {
	o, err := assemble(img, name)
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
func WriteDocker(ctx context.Context, w io.Writer, st *cas.Store, img Image, name string) error {
	o, err := assemble(img, name)
	if err != nil {
		return fmt.Errorf("write docker image: %w", err)
	}
	// https://github.com/moby/docker-image-spec
	item := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: blobPath(o.config.Digest)}
	if o.full != "" {
		familiar, err := reference.ParseDockerRef(o.full)
		if err != nil {
			return fmt.Errorf("write docker image: %w", err)
		}
		item.RepoTags = []string{reference.FamiliarString(familiar)}
	}
	for _, l := range o.layers {
		item.Layers = append(item.Layers, blobPath(l.Digest))
	}
	manifest, err := json.Marshal([]any{item})
	if err != nil {
		return fmt.Errorf("write docker image: %w", err)
	}
	if err := o.writeTar(ctx, w, st, manifest); err != nil {
		return fmt.Errorf("write docker image: %w", err)
	}
	return nil
}

// WriteOCIDir writes an image into an OCI layout directory, which is made, or added to: blobs first, the index last by one rename. An image of
// that name is replaced; its blobs stay. Several processes may write to one directory.
func WriteOCIDir(ctx context.Context, dir string, st *cas.Store, img Image, name string) (ocispec.Descriptor, error) {
	o, err := assemble(img, name)
	if err == nil {
		err = o.writeDir(ctx, dir, st)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write OCI layout %s: %w", dir, err)
	}
	return o.manifest, nil
}

// An output is an image as it leaves: small documents in memory, layers in the store.
type output struct {
	manifest, config ocispec.Descriptor
	layers           []ocispec.Descriptor
	documents        map[digest.Digest][]byte
	tag, full        string // names in the index
}

func assemble(img Image, name string) (*output, error) {
	o := &output{documents: make(map[digest.Digest][]byte), layers: []ocispec.Descriptor{}}
	if err := o.setName(name); err != nil {
		return nil, err
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
		mediaType, err := ociLayerType(l.Blob.MediaType)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, l.DiffID)
		o.layers = append(o.layers, ocispec.Descriptor{MediaType: mediaType, Digest: l.Blob.Digest, Size: l.Blob.Size})
	}
	conf.History = fitHistory(conf.History, len(o.layers))
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

// CheckImageName says what is wrong with the name of an image that is written.
func CheckImageName(name string) error { return new(output).setName(name) }

// setName chooses what the index says. Tools look for the tag alone; containerd, and docker load with it, for the whole name.
func (o *output) setName(name string) error {
	if name == "" {
		return nil
	}
	n, err := parseName(name)
	if err != nil {
		return err
	}
	if n.host == "" || n.digest != "" {
		return fmt.Errorf("an image cannot be named %q", name)
	}
	o.full, o.tag = n.String(), n.tag
	if !strings.ContainsAny(name, "/:") {
		o.tag = name
	}
	return nil
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

// entry is the image's line in an index.
func (o *output) entry() ocispec.Descriptor {
	d := o.manifest
	if o.tag != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: o.tag, annotationContainerName: o.full}
	}
	return d
}

func newIndex(entries ...ocispec.Descriptor) ocispec.Index {
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}
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

// blobPath is where a layout has a blob, with slashes.
func blobPath(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func layoutFile() []byte {
	return []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
}

// writeTar writes the layout, with docker's manifest.json if it is not nil.
func (o *output) writeTar(ctx context.Context, w io.Writer, st *cas.Store, dockerManifest []byte) error {
	index, err := json.Marshal(newIndex(o.entry()))
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
		{ocispec.ImageLayoutFile, layoutFile()},
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
	if err := tw.WriteHeader(tarHeader(blobPath(d.Digest), tar.TypeReg, 0o644, d.Size)); err != nil {
		return err
	}
	_, err = io.Copy(tw, ctxReader{ctx, r})
	return err
}

func tarHeader(name string, typ byte, mode, size int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: typ, Mode: mode, Size: size, ModTime: time.Unix(0, 0)}
}

// ctxReader ends a copy when it is cancelled.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func (o *output) writeDir(ctx context.Context, dir string, st *cas.Store) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	files := &dirFiles{dir: dir}
	defer files.close()
	for _, d := range o.blobs() {
		if err := o.writeDirBlob(ctx, files, st, d); err != nil {
			return err
		}
	}
	unlock, err := files.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	index := newIndex()
	switch b, err := readDocument(files.root, ocispec.ImageIndexFile); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if _, err := parseIndex(b); err != nil {
			return err
		}
		if err := json.Unmarshal(b, &index); err != nil {
			return err
		}
	}
	if _, err := files.stat(ocispec.ImageLayoutFile); err != nil {
		if err := files.create(ocispec.ImageLayoutFile, writeBytes(layoutFile())); err != nil {
			return err
		}
	}
	entry := o.entry()
	index.Manifests = append(slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		was := d.Annotations[ocispec.AnnotationRefName]
		return was == o.tag && (was != "" || d.Digest == entry.Digest)
	}), entry)
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return files.create(ocispec.ImageIndexFile, writeBytes(b))
}

func (o *output) writeDirBlob(ctx context.Context, files *dirFiles, st *cas.Store, d ocispec.Descriptor) error {
	if stamp, err := files.stat(blobPath(d.Digest)); err == nil && stamp.size == d.Size {
		return nil
	}
	return files.create(blobPath(d.Digest), func(w io.Writer) error {
		r, err := o.open(st, d)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(w, ctxReader{ctx, r})
		return err
	})
}
