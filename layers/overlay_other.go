//go:build !linux

package layers

import (
	"context"
	"io"

	"github.com/ocurrent/obx/cas"
)

// WriteChange writes a layer directory as an uncompressed OCI layer tar.
func WriteChange(ctx context.Context, w io.Writer, dir string) error { return errNoOverlay }

func writeLayer(ctx context.Context, w io.Writer, dir string) error { return errNoOverlay }

// ReadChange is the inverse of WriteChange.
func ReadChange(ctx context.Context, r io.Reader, dir string, lim Limits) error { return errNoOverlay }

// Seal prepares a directory that overlayfs has written for being a layer.
func Seal(dir string, lower ...string) (empty bool, err error) { return false, errNoOverlay }

// MakeUpper makes the new directory dir with the attributes of another, for overlayfs to write to.
func MakeUpper(dir, below string) error { return errNoOverlay }

// SameDir reports whether two directories' own attributes agree, as far as a layer keeps them.
func SameDir(a, b string) (bool, error) { return false, errNoOverlay }

// CopyTree copies a whole tree into an existing local directory.
func CopyTree(ctx context.Context, dir string, t Tree) error { return errNoOverlay }

// ExportTree is CopyTree into a directory that leaves obx's keeping (output type=local).
func ExportTree(ctx context.Context, dir string, t Tree, setuid bool, asTar io.Writer) (Devices, error) {
	return Devices{}, errNoOverlay
}

// FlattenBaseDirs merges layer-form directories (paths, base first) into the new directory dst, by hard links.
func FlattenBaseDirs(ctx context.Context, dst string, dirs []string) error { return errNoOverlay }

func flattenDirs(ctx context.Context, dst string, dirs []string, base bool) error {
	return errNoOverlay
}

// MakeCopy makes the layer of a copy step: Windows has its own form.
func MakeCopy(ctx context.Context, st *cas.Store, c Copy) (Layer, error) {
	return MakeWindowsCopy(ctx, st, c, Compression{})
}

func untar(ctx context.Context, r io.Reader, dir string, o untarOptions) error { return errNoOverlay }
