package qemu

import (
	"context"
	"fmt"
	"io"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/qcow2"
	"github.com/ocurrent/obx/layers"
)

// An openedRoot is a root of which it is not known yet whether its layers have files or a disk: that is seen when it is
// first used.
type openedRoot struct {
	files root          // of the layers, as long as nobody has looked
	root  executor.Root // files, or one of a disk
}

// use looks, once.
func (o *openedRoot) use(ctx context.Context) (executor.Root, error) {
	if o.root != nil {
		return o.root, nil
	}
	paths, err := o.files.chain.All(ctx)
	if err != nil {
		return nil, err
	}
	disk, rest, err := qcow2.Find(paths)
	if err != nil {
		return nil, err
	}
	if len(disk) == 0 {
		if system := o.files.e.options.OS; system != "linux" {
			return nil, fmt.Errorf("the base image has no disk: a machine of %s boots from a disk image (--base NAME=qcow2:FILE)", system)
		}
		o.root = &o.files
		return o.root, nil
	}
	o.root, err = o.files.e.newDiskRoot(disk, rest)
	return o.root, err
}

func (o *openedRoot) Run(ctx context.Context, p executor.Process, out io.Writer) error {
	r, err := o.use(ctx)
	if err != nil {
		return err
	}
	return r.Run(ctx, p, out)
}

func (o *openedRoot) Freeze(ctx context.Context) (executor.Change, error) {
	if o.root == nil {
		return rootfs.NewChange(layers.Layer{}), nil
	}
	return o.root.Freeze(ctx)
}

func (o *openedRoot) Add(ctx context.Context, l layers.Layer) error {
	if o.root == nil {
		return o.files.Add(ctx, l)
	}
	return o.root.Add(ctx, l)
}

func (o *openedRoot) Files(ctx context.Context) (layers.Tree, error) {
	r, err := o.use(ctx)
	if err != nil {
		return nil, err
	}
	return r.Files(ctx)
}

func (o *openedRoot) Close() error {
	if o.root == nil {
		return o.files.Close()
	}
	return o.root.Close()
}
