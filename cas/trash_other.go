//go:build !linux

package cas

import (
	"context"
	"os"
)

func lowerPriority() {}

// removeAll deletes path and all below it. It is no error if there is nothing.
func removeAll(_ context.Context, path string) error { return os.RemoveAll(path) }
