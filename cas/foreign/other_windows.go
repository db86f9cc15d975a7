package foreign

import (
	"context"
	"os"
)

// dontWait does nothing here: a pipe is no file of a directory.
const dontWait = 0

// RemoveAll deletes path and all below it. It is no error if there is nothing.
func RemoveAll(_ context.Context, path string) error { return os.RemoveAll(path) }
