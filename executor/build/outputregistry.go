package build

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/registry/images"
)

// pushImage pushes an image to each repository that a name says.
func (b *Builder) pushImage(ctx context.Context, top *results.Result, img images.Image, o OutputSpec, wrote *Written) error {
	targets, err := images.Targets(b.Images, o.Names)
	if err != nil {
		return err
	}
	pub := images.Publication{Image: img, Store: b.Store}
	pub.Base, pub.BaseRef = top.Base()
	for _, c := range b.Caches {
		pub.Near = append(pub.Near, c.Name())
	}
	wrote.Size = sizeOf(img)
	for _, t := range targets {
		if o.Untagged {
			t.Tags = nil
		}
		desc, sent, err := pub.Push(ctx, t)
		if err != nil {
			return err
		}
		wrote.Sent += sent
		wrote.Manifest = desc
	}
	return nil
}

// WriteIndex publishes images of several platforms, which have been written with OutputSpec.Untagged, under the names of an output of type registry.
func (b *Builder) WriteIndex(ctx context.Context, o OutputSpec, imgs []Written) (Written, error) {
	all := Written{What: "index", Names: o.Names}
	var entries []ocispec.Descriptor
	for _, w := range imgs {
		entries = append(entries, w.Manifest)
		all.Size += w.Size
		all.Sent += w.Sent
	}
	targets, err := images.Targets(b.Images, o.Names)
	if err != nil {
		return all, err
	}
	for _, t := range targets {
		if all.Manifest, err = images.PushIndex(ctx, t, entries); err != nil {
			return all, err
		}
	}
	all.Digest = all.Manifest.Digest
	return all, nil
}
