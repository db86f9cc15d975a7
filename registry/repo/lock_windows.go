package repo

import (
	"context"
	"path/filepath"

	"github.com/rogpeppe/go-internal/lockedfile"
)

// lockDir waits until no other process changes a directory under this lock: a file in it, since directories cannot be locked here.
func lockDir(_ context.Context, dir string) (unlock func(), err error) {
	return lockedfile.MutexAt(filepath.Join(dir, ".lock")).Lock()
}
