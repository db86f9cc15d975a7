package registry

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/keys"
)

// Missing tells how many bytes of layers Pull would fetch for a base: of what is neither unpacked nor here as bytes.
func (im *Images) Missing(ctx context.Context, base keys.Base) (int64, error) {
	if err := im.init(); err != nil {
		return 0, err
	}
	if base.Digest == "" {
		return 0, nil
	}
	n, err := im.origin(base)
	if err != nil {
		return 0, err
	}
	data, err := im.document(ctx, im.sources(n), base.Digest)
	if err != nil {
		return 0, fmt.Errorf("read the manifest of %s: %w", base.Ref, err)
	}
	_, descs, err := parseManifest(data)
	if err != nil {
		return 0, fmt.Errorf("read the manifest of %s: %w", base.Ref, err)
	}
	var sum int64
	seen := map[digest.Digest]bool{}
	for _, d := range descs {
		if _, here := im.Store.HasBlob(d.Digest); !here && !seen[d.Digest] {
			sum += d.Size
		}
		seen[d.Digest] = true
	}
	return sum, nil
}
