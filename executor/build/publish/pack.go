package publish

import (
	"context"
	"runtime"

	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/layers"
)

// A packer packs layers, each once, with half of the processors, so that steps have the others.
type packer struct {
	store       *cas.Store
	compression layers.Compression
	cores       *semaphore.Weighted
	packed      cas.Once[string, layers.Layer] // by layer directory
}

func newPacker(st *cas.Store, c layers.Compression) *packer {
	return &packer{store: st, compression: c, cores: semaphore.NewWeighted(max(1, int64(runtime.GOMAXPROCS(0))/2))}
}

// pack gives a layer with its bytes, which are in the store if they were not known.
func (p *packer) pack(ctx context.Context, l layers.Layer) (layers.Layer, error) {
	if l.IsZero() || l.Blob.Digest != "" {
		return l, nil
	}
	return p.packed.Do(ctx, l.Dir, func(ctx context.Context) (layers.Layer, error) {
		if err := p.cores.Acquire(ctx, 1); err != nil {
			return l, err
		}
		defer p.cores.Release(1)
		return layers.Pack(ctx, p.store, l, p.compression)
	})
}
