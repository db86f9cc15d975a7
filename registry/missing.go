package registry

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/keys"
)

// Missing tells how many bytes of layers Pull would fetch for a base: of what is neither unpacked nor here as bytes.
func (im *Images) Missing(ctx context.Context, base keys.Base) (int64, error) {
	descs, err := im.layersOf(ctx, base)
	if err != nil {
		return 0, err
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
