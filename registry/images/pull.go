package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// An Image is what a manifest describes. For outputs, Layers may hold zero layers (steps that changed nothing): they are skipped, and DiffIDs
// are taken from the layers.
type Image struct {
	Config ocispec.Image
	Layers []layers.Layer
}

// maxTransfers is how many layers of an image come at once. Each is unpacked by several writers already.
const maxTransfers = 4

// Limits are what an image may take.
type Limits struct {
	Bytes int64         // of its layers together, unpacked
	Files int64         // of each layer
	Time  time.Duration // to fetch it
}

// limitsOf are the limits of the image of a name.
func (im *Resolver) limitsOf(n imageName) Limits {
	if im.given(n) {
		return Limits{}
	}
	return im.Limits
}

// An allowance is what is left of an image's limits. Layers that come at the same time may each take what is left: the error comes a little late then.
type allowance struct {
	limits Limits
	taken  atomic.Int64 // bytes
}

// layer bounds the next layer.
func (a *allowance) layer() (layers.Limits, error) {
	lim := layers.Limits{Entries: a.limits.Files}
	if a.limits.Bytes > 0 {
		if lim.Bytes = a.limits.Bytes - a.taken.Load(); lim.Bytes <= 0 {
			return lim, a.spent()
		}
	}
	return lim, nil
}

// take counts a layer that has come.
func (a *allowance) take(l layers.Layer) error {
	if taken := a.taken.Add(l.Size); a.limits.Bytes > 0 && taken > a.limits.Bytes {
		return a.spent()
	}
	return nil
}

func (a *allowance) spent() error {
	return fmt.Errorf("its layers have more than %d bytes, unpacked, which is the limit here", a.limits.Bytes)
}

// Pull makes the image of a resolved base available in the store: its config, and its layers, unpacked as they arrive
// if unpack is set, several at once. What is there already is not fetched. Everything is verified. Processes that want the same layer fetch it once.
func (im *Resolver) Pull(ctx context.Context, base keys.Base, unpack bool, p layers.Progress) (*Image, error) {
	if base.Digest == "" {
		return &Image{Config: ocispec.Image{Platform: base.Platform, RootFS: ocispec.RootFS{Type: "layers"}}}, nil
	}
	n, srcs, err := im.origin(base)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", base.Ref, err)
	}
	limits := im.limitsOf(n)
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if limits.Time > 0 {
		bounded, cancel = context.WithTimeout(ctx, limits.Time)
	}
	defer cancel()
	img, err := im.pull(bounded, srcs, base, unpack, &allowance{limits: limits}, p)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("it did not come within %v, which is the limit here", limits.Time)
	}
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", base.Ref, specsFault(err))
	}
	return img, nil
}

func (im *Resolver) pull(ctx context.Context, srcs []source, base keys.Base, unpack bool, a *allowance, p layers.Progress) (*Image, error) {
	if err := oci.CheckDigest(base.Digest); err != nil {
		return nil, err
	}
	key := base.Digest.Encoded()
	if err := im.Store.Hold(imagesDomain, key); err != nil {
		return nil, err
	}
	manifest, err := im.document(ctx, srcs, base.Digest)
	if err != nil {
		return nil, err
	}
	confDesc, descs, err := oci.ParseManifest(manifest)
	if err != nil {
		return nil, err
	}
	conf, err := im.config(ctx, srcs, confDesc, len(descs))
	if err != nil {
		return nil, err
	}
	want := oci.NormalizePlatform(base.Platform)
	have := oci.OrPlatform(oci.NormalizePlatform(conf.Platform), want)
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return nil, fmt.Errorf("it is for %s, not for %s (--platform)", oci.PlatformString(have), oci.PlatformString(want))
	}

	pulled := im.pulled(key)
	img := &Image{Config: *conf, Layers: make([]layers.Layer, len(descs))}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxTransfers)
	first := make(map[digest.Digest]int) // index of the first layer with these bytes
	for i, d := range descs {
		if j, ok := first[d.Digest]; ok {
			if conf.RootFS.DiffIDs[i] != conf.RootFS.DiffIDs[j] {
				return nil, fmt.Errorf("layers %d and %d have the same bytes, but different diff ids", j+1, i+1)
			}
			continue
		}
		first[d.Digest] = i
		g.Go(func() error {
			l, err := im.pullLayer(gctx, srcs, d, conf.RootFS.DiffIDs[i], unpack, a, p)
			if err == nil {
				err = a.take(l)
			}
			if err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(descs), err)
			}
			img.Layers[i] = l
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, cmp.Or(ctx.Err(), err)
	}
	for i, d := range descs {
		l := img.Layers[first[d.Digest]]
		if i < len(pulled) && l.Size == 0 {
			l.Size = pulled[i].Size
		}
		img.Layers[i] = l
	}
	if slices.EqualFunc(pulled, img.Layers, sameLayer) {
		im.Store.Touch(imagesDomain, key)
		return img, nil
	}
	return img, im.recordImage(key, []digest.Digest{base.Digest, confDesc.Digest}, img.Layers)
}

// origin finds the name under which a base can be had, and where.
func (im *Resolver) origin(base keys.Base) (imageName, []source, error) {
	im.mu.Lock()
	n, ok := im.origins[base.Digest]
	im.mu.Unlock()
	var err error
	if !ok {
		if n, err = parseName(base.Ref); err == nil {
			n, err = im.meaning(n)
		}
		if err != nil {
			return n, nil, err
		}
	}
	srcs, err := im.sources(n)
	return n, srcs, err
}

func sameLayer(a, b layers.Layer) bool {
	return a.Dir == b.Dir && a.DiffID == b.DiffID && a.Blob.Digest == b.Blob.Digest && a.Size == b.Size
}

// pulled is what the store's record says of the layers of an image; nil without one.
func (im *Resolver) pulled(key string) []layers.Layer {
	r, err := im.Store.Result(imagesDomain, key)
	if err != nil {
		return nil
	}
	var ls []layers.Layer
	if json.Unmarshal(r.Data, &ls) != nil {
		return nil
	}
	return ls
}

// recordImage keeps an image from being pruned while it is used now and then.
func (im *Resolver) recordImage(key string, blobs []digest.Digest, ls []layers.Layer) error {
	data, err := json.Marshal(ls)
	if err != nil {
		return fmt.Errorf("record image: %w", err)
	}
	r := &cas.Result{Key: key, Created: time.Now(), Data: data, Blobs: blobs}
	for _, l := range ls {
		if !slices.Contains(r.Blobs, l.Blob.Digest) {
			r.Blobs = append(r.Blobs, l.Blob.Digest)
		}
		if l.Dir != "" && !slices.Contains(r.Layers, l.Dir) {
			r.Layers = append(r.Layers, l.Dir)
		}
	}
	return im.Store.PutResult(imagesDomain, r)
}

func (im *Resolver) pullLayer(
	ctx context.Context, srcs []source, desc ocispec.Descriptor, diffID digest.Digest, unpack bool, a *allowance, p layers.Progress,
) (layers.Layer, error) {
	mediaType, err := oci.LayerType(desc.MediaType)
	if err != nil {
		return layers.Layer{}, err
	}
	l := layers.Layer{DiffID: diffID, Blob: ocispec.Descriptor{MediaType: mediaType, Digest: desc.Digest, Size: desc.Size}}
	form := layers.Bytes
	if unpack {
		form = layers.Both
	}
	if have, err := layers.Fetch(ctx, im.Store, l, form, layers.Limits{}, nil, nil); !errors.Is(err, cas.ErrNotFound) {
		return have, err
	}
	lim, err := a.layer()
	if err != nil {
		return l, err
	}
	return try(ctx, srcs, func(s source) (layers.Layer, error) {
		return layers.Fetch(ctx, im.Store, l, form, lim, p, func() (io.ReadCloser, error) { return s.Blob(ctx, l.Blob) })
	})
}

// Missing tells how many bytes of layers Pull would fetch for a base: of what is neither unpacked nor here as bytes.
func (im *Resolver) Missing(ctx context.Context, base keys.Base) (int64, error) {
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

// specsFault marks the error of a base image that is where a spec may not reach.
func specsFault(err error) error {
	if private := new(repo.PrivateError); errors.As(err, &private) {
		return &keys.BaseError{Err: private}
	}
	return err
}
