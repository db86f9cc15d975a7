package layers

import (
	"context"
	"fmt"
	"math"

	"golang.org/x/sync/errgroup"
)

// CopyTree copies a whole tree into an existing local directory (output type=local). What the directory has stays,
// unless the tree has something of that name: a link there is replaced, never followed. The directory keeps its own
// attributes.
func CopyTree(ctx context.Context, dir string, t Tree) error {
	pipe := newTee(1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := WriteTree(ctx, pipe, t)
		pipe.close(err)
		return err
	})
	g.Go(func() (err error) {
		in := pipe.readers[0]
		defer func() { in.close(err) }()
		return untar(ctx, in, dir, untarOptions{plain: true, limits: Limits{math.MaxInt64, math.MaxInt64}})
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("copy to %s: %w", dir, err)
	}
	return nil
}
