// Package oci reads and writes what OCI specifies: manifests, indexes and configs, with their bounds, digests, tags, and platforms. It is pure.
package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/reference"
)

// Docker's media types; they differ from OCI's in name only.
const (
	dockerIndex      = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest   = "application/vnd.docker.distribution.manifest.v2+json"
	dockerSchema1    = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Sig = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerConfig     = "application/vnd.docker.container.image.v1+json"
	dockerLayer      = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd  = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeign    = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// MaxDocument bounds indexes, manifests and configs. Registries accept no larger manifests.
const MaxDocument = 4 << 20

// Accepted are the media types that a reference may name, best first.
func Accepted() []string {
	return []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerIndex, dockerManifest}
}

// IsIndex reports a media type of indexes, OCI's or Docker's.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerIndex
}

// CheckDocumentType refuses what is neither an index nor a manifest.
func CheckDocumentType(mediaType string) error {
	switch {
	case slices.Contains(Accepted(), mediaType):
		return nil
	case mediaType == dockerSchema1 || mediaType == dockerSchema1Sig:
		return errors.New("it is in Docker's first image format (schema 1), which is not supported: push it again with a current docker or skopeo")
	default:
		return fmt.Errorf("%w: its media type is %q", errNotImage, mediaType)
	}
}

var errNotImage = errors.New("it is no image")

// A Misfit is the error of a document that has come whole, and is not what it should be: among the entries of an index it is for other readers.
type Misfit struct{ error }

func (e Misfit) Unwrap() error { return e.error }

// asMisfit is deferred by what reads documents.
func asMisfit(err *error) {
	if *err != nil {
		*err = Misfit{*err}
	}
}

// isImageConfig reports whether a config of this type is an image's. Of the last ones Docker says that schema 2 images have them, by mistakes of old
// registries and of what pushed to them, and takes them too.
// https://github.com/moby/moby/blob/v24.0.7/distribution/registry.go
func isImageConfig(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig, "application/octet-stream", "application/json", "text/html", "":
		return true
	}
	return false
}

// LayerType gives a layer's media type in OCI's terms, whoever's it is.
func LayerType(mediaType string) (string, error) {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, dockerLayer:
		return ocispec.MediaTypeImageLayer, nil
	case ocispec.MediaTypeImageLayerGzip, dockerLayerGzip:
		return ocispec.MediaTypeImageLayerGzip, nil
	case ocispec.MediaTypeImageLayerZstd, dockerLayerZstd:
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return "", fmt.Errorf("layers of type %q are not supported", mediaType)
}

// A Document holds the fields of an index and of a manifest.
type Document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	FSLayers      json.RawMessage      `json:"fsLayers"` // of schema 1
}

// ParseDocument reads an index or a manifest, and refuses what could be read in two ways.
func ParseDocument(b []byte) (*Document, error) {
	var d Document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	if d.SchemaVersion == 1 || d.FSLayers != nil {
		return nil, CheckDocumentType(dockerSchema1)
	}
	if d.SchemaVersion != 2 {
		return nil, fmt.Errorf("read the manifest: schema version %d is not supported", d.SchemaVersion)
	}
	if d.Manifests != nil && (d.Layers != nil || d.Config != nil) {
		return nil, errors.New("the manifest is ambiguous: it is both an index and an image")
	}
	for _, desc := range slices.Concat(d.Manifests, d.Layers) {
		if err := CheckDescriptor(desc); err != nil {
			return nil, err
		}
	}
	return &d, nil
}

// ParseIndex reads an index's entries.
func ParseIndex(b []byte) ([]ocispec.Descriptor, error) {
	d, err := ParseDocument(b)
	if err != nil {
		return nil, err
	}
	if d.Config != nil || d.Layers != nil || d.MediaType != "" && !IsIndex(d.MediaType) {
		return nil, errors.New("what should be an index is none")
	}
	return d.Manifests, nil
}

// ParseManifest reads an image's config and layers, and refuses layers that could not be fetched.
func ParseManifest(b []byte) (config ocispec.Descriptor, layers []ocispec.Descriptor, err error) {
	defer asMisfit(&err)
	d, err := ParseDocument(b)
	if err != nil {
		return config, nil, err
	}
	if d.Config == nil || d.Manifests != nil || IsIndex(d.MediaType) {
		return config, nil, errors.New("what should be an image's manifest is none")
	}
	if d.MediaType != "" {
		if err := CheckDocumentType(d.MediaType); err != nil {
			return config, nil, err
		}
	}
	if err := CheckDescriptor(*d.Config); err != nil {
		return config, nil, err
	}
	if t := d.Config.MediaType; !isImageConfig(t) {
		return config, nil, fmt.Errorf("%w but an artifact: its config's type is %q", errNotImage, t)
	}
	for i, l := range d.Layers {
		if len(l.URLs) > 0 || l.MediaType == dockerForeign {
			return config, nil, fmt.Errorf("layer %d is not kept by the registry (a foreign layer), and is not fetched from elsewhere: "+
				"copy the image into a registry with its layers first", i+1)
		}
		if _, err := LayerType(l.MediaType); err != nil {
			return config, nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return *d.Config, d.Layers, nil
}

// CheckDescriptor accepts what the store can hold.
func CheckDescriptor(d ocispec.Descriptor) error {
	if err := CheckDigest(d.Digest); err != nil {
		return fmt.Errorf("read the manifest: %w", err)
	}
	if d.Size < 0 {
		return fmt.Errorf("read the manifest: the size of %s is %d", d.Digest, d.Size)
	}
	return nil
}

// ParseConfig reads an image's config, which has to tell the diff id of each layer.
func ParseConfig(b []byte, layers int) (_ *ocispec.Image, err error) {
	defer asMisfit(&err)
	var c ocispec.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("read the image's config: %w", err)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("read the image's config: it has %d diff ids, but the manifest has %d layers", len(c.RootFS.DiffIDs), layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := CheckDigest(d); err != nil {
			return nil, fmt.Errorf("read the image's config: diff id: %w", err)
		}
	}
	for _, v := range c.Config.Env {
		if strings.Contains(v, "\x00") {
			return nil, fmt.Errorf("read the image's config: its variable %q has a zero byte, which no process can be given", v)
		}
	}
	return &c, nil
}

// CheckBytes holds a small document against its digest.
func CheckBytes(b []byte, want digest.Digest) error {
	if got := digest.FromBytes(b); got != want {
		return fmt.Errorf("the bytes of %s are wrong: their digest is %s", want, got)
	}
	return nil
}

// IsTag reports whether a text can be a tag.
func IsTag(s string) bool { return reference.IsTag(s) }

// CheckDigest accepts the digests that the store can hold.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: only sha256 is supported", d)
	}
	return nil
}

// NewIndex is an index that lists entries, in OCI's form.
func NewIndex(entries ...ocispec.Descriptor) ocispec.Index {
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}
}

// BlobPath is where a layout has a blob, with slashes.
func BlobPath(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// LayoutFile is the content of the file that makes a directory a layout.
func LayoutFile() []byte {
	return []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
}

// unknownEntry stands in a history for a layer of which the base image's says nothing.
const unknownEntry = "not in the base image's history"

// FitHistory gives an image of n layers as many entries that are not empty: tools refuse others, though builders make them. What a base image's
// history lacks or has too much is taken to be at its beginning: builders add at the end, for each layer that they add.
func FitHistory(hs []ocispec.History, n int) []ocispec.History {
	hs = slices.Clone(hs)
	for i, h := range slices.Backward(hs) {
		if h.EmptyLayer {
			continue
		}
		if n > 0 {
			n--
		} else {
			hs[i].EmptyLayer = true
		}
	}
	return append(slices.Repeat([]ocispec.History{{Comment: unknownEntry}}, n), hs...)
}

// Bare is a descriptor as it stands in requests.
func Bare(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// Opener opens bytes in memory, as often as it is called.
func Opener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// Refers lists what a manifest or index needs.
func (d *Document) Refers() []ocispec.Descriptor {
	all := slices.Concat(d.Manifests, d.Layers)
	if d.Config != nil {
		all = append(all, *d.Config)
	}
	return slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return len(d.URLs) > 0 })
}

// MediaTypeOf tells what an index's or manifest's bytes are, for those that are named by digest alone.
func MediaTypeOf(b []byte) (string, error) {
	d, err := ParseDocument(b)
	switch {
	case err != nil:
		return "", err
	case d.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case d.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	case d.MediaType != "":
		return d.MediaType, nil
	}
	return "", errors.New("it is neither an index nor an image")
}

// CheckPut refuses what no Repo takes.
func CheckPut(tag string, data []byte) error {
	if tag != "" && !IsTag(tag) {
		return fmt.Errorf("%q is no tag", tag)
	}
	if len(data) > MaxDocument {
		return fmt.Errorf("%d bytes are too many for a manifest: at most %d", len(data), MaxDocument)
	}
	return nil
}

// CheckRef refuses what would make a request for something else.
func CheckRef(ref string) error {
	if !IsTag(ref) && CheckDigest(digest.Digest(ref)) != nil {
		return fmt.Errorf("%q is neither a tag nor a digest", ref)
	}
	return nil
}

// Digests are those of descriptors, in their order.
func Digests(ls []ocispec.Descriptor) []digest.Digest {
	blobs := make([]digest.Digest, len(ls))
	for i, l := range ls {
		blobs[i] = l.Digest
	}
	return blobs
}

// LayoutPrefix begins the name of a layout: oci:DIR.
const LayoutPrefix = "oci:"
