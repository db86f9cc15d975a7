package layers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ocurrent/obx/cas"
)

// Flatten makes one layer directory out of several neighbours in a chain (base first), by hard links. What is below
// them is unknown, so it keeps what hides lower files.
func Flatten(ctx context.Context, st *cas.Store, dirs []string) (Layer, error) {
	return flattenLayers(ctx, st, dirs, false)
}

// FlattenBase is Flatten for the lowest layers of a chain, the base's own among them: nothing is below, so the result
// needs no whiteouts. For chains beyond what overlayfs mounts.
func FlattenBase(ctx context.Context, st *cas.Store, dirs []string) (Layer, error) {
	return flattenLayers(ctx, st, dirs, true)
}

func flattenLayers(ctx context.Context, st *cas.Store, dirs []string, base bool) (Layer, error) {
	fail := func(err error) (Layer, error) { return Layer{}, fmt.Errorf("flatten layers: %w", err) }
	dir, err := os.MkdirTemp(st.TempDir(), "flat-")
	if err != nil {
		return fail(err)
	}
	defer discard(st, dir)
	paths := make([]string, len(dirs))
	for i, d := range dirs {
		paths[i] = st.LayerPath(d)
	}
	if err := flattenDirs(ctx, filepath.Join(dir, "fs"), paths, base); err != nil {
		return fail(err)
	}
	name, err := st.CommitLayer(dir, "")
	if err != nil {
		return fail(err)
	}
	return Layer{Dir: name}, nil
}
