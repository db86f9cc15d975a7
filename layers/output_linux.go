package layers

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"math"

	"golang.org/x/sync/errgroup"
)

// CopyTree copies a whole tree into an existing local directory. What the directory has stays, unless the tree has
// something of that name: a link there is replaced, never followed. The directory keeps its own attributes.
func CopyTree(ctx context.Context, dir string, t Tree) error {
	return copyTree(ctx, dir, t, io.Discard, nil)
}

// ExportTree is CopyTree into a directory that leaves obx's keeping (output type=local). What could give rights on this
// machine to who finds it there is left out: device nodes, of which it tells, and, if setuid is false, the set-user-ID
// and set-group-ID bits and the capabilities of files. asTar gets what WriteTree would write.
func ExportTree(ctx context.Context, dir string, t Tree, setuid bool, asTar io.Writer) (Devices, error) {
	x := &export{setuid: setuid, skipped: map[string]bool{}}
	err := copyTree(ctx, dir, t, asTar, x.filter)
	return x.devices, err
}

// An export leaves out of a tree what could give rights.
type export struct {
	setuid  bool
	skipped map[string]bool // names of devices: further ones are links to these
	devices Devices
}

func (x *export) filter(h *tar.Header) bool {
	switch {
	case h.Typeflag == tar.TypeChar, h.Typeflag == tar.TypeBlock, h.Typeflag == tar.TypeLink && x.skipped[h.Linkname]:
		if x.devices.Count == 0 {
			x.devices.First = h.Name
		}
		x.devices.Count++
		x.skipped[h.Name] = true
		return false
	case !x.setuid:
		h.Mode &^= 0o6000
		delete(h.PAXRecords, schilyXattr+capabilityXattr)
	}
	return true
}

func copyTree(ctx context.Context, dir string, t Tree, asTar io.Writer, filter func(*tar.Header) bool) error {
	pipe := newTee(1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := WriteTree(ctx, io.MultiWriter(pipe, asTar), t)
		pipe.close(err)
		return err
	})
	g.Go(func() (err error) {
		in := pipe.readers[0]
		defer func() { in.close(err) }()
		return untar(ctx, in, dir, untarOptions{plain: true, filter: filter, limits: Limits{math.MaxInt64, math.MaxInt64}})
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("copy to %s: %w", dir, err)
	}
	return nil
}
