package registry

import (
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationContainerName is where containerd and BuildKit keep a full name; the reference name is then only the tag.
const annotationContainerName = "io.containerd.image.name"

// pick finds the entries of a tag in a layout: more than one only if these are for several platforms. Without a tag, there has to be one image only.
func pick(layout string, entries []ocispec.Descriptor, tag string) ([]ocispec.Descriptor, error) {
	if tag == "" {
		if len(entries) == 1 {
			return entries, nil
		}
		return nil, fmt.Errorf("%s holds %d images, name one by its tag: %s", layout, len(entries), tagList(entries))
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
		return nil, fmt.Errorf("%s has no tag %q: %w: it has %s", layout, tag, ErrNotFound, tagList(entries))
	}
	return found, nil
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
