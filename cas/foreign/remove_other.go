//go:build unix && !linux

package foreign

import (
	"context"
	"os"
)

// RemoveAll deletes path and all below it. It is no error if there is nothing.
func RemoveAll(_ context.Context, path string) error { return os.RemoveAll(path) }
