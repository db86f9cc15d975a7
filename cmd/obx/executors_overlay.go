//go:build !windows

package main

import (
	"context"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
)

// overlayKind is the executor of Linux. Elsewhere it says that it is.
var overlayKind = executorKind{
	name:  "overlay",
	about: "overlayfs, and a sandbox on this machine",
	open: func(_ context.Context, st *cas.Store, f *executorFlags) (executor.Executor, error) {
		return late("overlay", defaultPlatform(), func() (executor.Executor, error) {
			return overlay.New(overlay.Options{Store: st, Runtime: f.runtime, Warn: f.warn})
		})
	},
	health: func(ctx context.Context, st *cas.Store, f *executorFlags) []executor.Check {
		return overlay.Health(ctx, overlay.Options{Store: st, Runtime: f.runtime})
	},
}
