//go:build linux || windows

package hcs

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// start begins a run, and removes what killed ones have left: in containerd, what left removes beside it, and last their
// directories. What cannot be removed now is left for the next one: it is in nobody's way. The directory is returned
// with an error too, if it was made.
func (d *daemon) start(ctx context.Context, prefix string, left func(*runDir) error) (*runDir, error) {
	// Of one containerd each: who uses another one cannot remove what a killed run has left in this.
	top := filepath.Join(runsDir(), digest.FromString(d.address).Encoded()[:12])
	dead, err := deadRuns(top)
	if err != nil {
		return nil, err
	}
	for _, r := range dead {
		if err := errors.Join(d.end(ctx, r.name()), left(r)); err != nil {
			_ = r.lock.Close()
			continue
		}
		_ = r.remove()
	}
	run, err := newRunDir(top, prefix)
	if err != nil {
		return nil, err
	}
	return run, d.begin(ctx, run.name())
}
