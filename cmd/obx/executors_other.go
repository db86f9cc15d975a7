//go:build !linux && !windows

package main

import (
	"context"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
)

// platformFlags are those that this system's executors have.
type platformFlags struct {
	runtime string
}

// executorKinds lists all executors; the first is the default.
var executorKinds = []executorKind{
	{
		name:  "overlay",
		about: "overlayfs and an OCI runtime",
		open: func(_ context.Context, st *cas.Store, f *executorFlags) (executor.Executor, error) {
			return overlay.New(overlay.Options{Store: st, Runtime: f.runtime})
		},
		health: func(ctx context.Context, st *cas.Store, f *executorFlags) []executor.Check {
			return overlay.Health(ctx, overlay.Options{Store: st, Runtime: f.runtime})
		},
	},
}

func (f *executorFlags) addOfPlatform(*cobra.Command) {}

func (*executorFlags) settle(*project) {}

const defaultPlatformText = "Linux on this machine's processor"

// defaultPlatform is what is built for unless --platform says otherwise.
func defaultPlatform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}
