package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas/foreign"
)

// annotationContainerName is where containerd and BuildKit keep a full name; the reference name is then only the tag.
const annotationContainerName = "io.containerd.image.name"

// A layout is an OCI layout directory that is read. https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
type layout struct{ dir string }

func (l layout) String() string { return layoutPrefix + l.dir }

// resolve finds the entries of a tag: more than one only if these are for several platforms. Without a tag, there has to be one image only.
func (l layout) resolve(tag string) ([]ocispec.Descriptor, error) {
	entries, err := l.index()
	if err != nil {
		return nil, err
	}
	if tag == "" {
		if len(entries) == 1 {
			return entries, nil
		}
		return nil, fmt.Errorf("%s holds %d images, name one by its tag: %s", l, len(entries), tagList(entries))
	}
	var found []ocispec.Descriptor
	for _, e := range entries {
		if e.Annotations[ocispec.AnnotationRefName] == tag {
			found = append(found, e)
		}
	}
	if found == nil {
		// Some tools write the whole name.
		for _, e := range entries {
			if n, err := parseName(e.Annotations[ocispec.AnnotationRefName]); err == nil && n.tag == tag {
				found = append(found, e)
			}
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%s has no tag %q: %w: it has %s", l, tag, ErrNotFound, tagList(entries))
	}
	return found, nil
}

// find implements source.
func (l layout) find(ctx context.Context, n imageName) ([]ocispec.Descriptor, error) {
	if n.digest == "" {
		return l.resolve(n.tag)
	}
	b, err := l.manifest(ctx, n.digest)
	if err != nil {
		return nil, err
	}
	mediaType, err := mediaTypeOf(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n, err)
	}
	return []ocispec.Descriptor{{MediaType: mediaType, Digest: n.digest, Size: int64(len(b))}}, nil
}

func (l layout) index() ([]ocispec.Descriptor, error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, fmt.Errorf("read the layout: %w", err)
	}
	defer root.Close()
	if _, err := root.Stat(ocispec.ImageLayoutFile); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no OCI layout: it has no file %s", l.dir, ocispec.ImageLayoutFile)
	}
	b, err := readDocument(root, ocispec.ImageIndexFile)
	if err != nil {
		return nil, fmt.Errorf("read the layout %s: %w", l.dir, err)
	}
	entries, err := parseIndex(b)
	if err != nil {
		return nil, fmt.Errorf("read the layout %s: %w", l.dir, err)
	}
	return entries, nil
}

func (l layout) manifest(_ context.Context, d digest.Digest) ([]byte, error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, l.explain(d, err)
	}
	defer root.Close()
	b, err := readDocument(root, blobPath(d))
	if err != nil {
		return nil, l.explain(d, err)
	}
	if err := checkBytes(b, d); err != nil {
		return nil, l.explain(d, err)
	}
	return b, nil
}

func (l layout) blob(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, l.explain(desc.Digest, err)
	}
	defer root.Close()
	f, _, err := openInLayout(root, blobPath(desc.Digest))
	if err != nil {
		return nil, l.explain(desc.Digest, err)
	}
	return f, nil
}

func (l layout) explain(d digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	return fmt.Errorf("%s in %s: %w", d, l.dir, err)
}

// readDocument reads a small file of a layout.
func readDocument(root *os.Root, name string) ([]byte, error) {
	f, _, err := openInLayout(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return foreign.ReadAll(f, maxDocument)
}

// mediaTypeOf tells what an index's or manifest's bytes are, for those that are named by digest alone.
func mediaTypeOf(b []byte) (string, error) {
	d, err := parseDocument(b)
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

func tagList(entries []ocispec.Descriptor) string {
	var tags []string
	for _, e := range entries {
		tag := e.Annotations[ocispec.AnnotationRefName]
		if tag == "" {
			tag = "@" + e.Digest.String()
		}
		tags = append(tags, tag)
	}
	if tags == nil {
		return "none"
	}
	slices.Sort(tags)
	return strings.Join(slices.Compact(tags), ", ")
}
