//go:build containerd

package main

import (
	"context"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/hcs"
)

// containerdKind is the executor itself: this program is obx-containerd.
var containerdKind = executorKind{
	name:  "containerd",
	about: containerdAbout,
	open: func(ctx context.Context, st *cas.Store, f *executorFlags) (executor.Executor, error) {
		return late("containerd", defaultPlatform(), func() (executor.Executor, error) { return hcs.New(ctx, f.hcs(st)) })
	},
	health: func(ctx context.Context, st *cas.Store, f *executorFlags) []executor.Check {
		return hcs.Health(ctx, f.hcs(st))
	},
}

func (f *executorFlags) hcs(st *cas.Store) hcs.Options {
	return hcs.Options{Store: st, Address: f.containerd, Snapshotter: f.snapshotter, Runtime: f.runtime}
}
