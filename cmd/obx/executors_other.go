//go:build !linux && !windows

package main

import (
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

// platformFlags are those that this system's executors have.
type platformFlags struct {
	runtime string
}

// executorKinds lists all executors; the first is the default.
var executorKinds = []executorKind{overlayKind}

func (f *executorFlags) addOfPlatform(*cobra.Command) {}

func (*executorFlags) settle(ocispec.Platform) {}

const defaultPlatformText = "Linux on this machine's processor"

// defaultPlatform is what is built for unless --platform says otherwise.
func defaultPlatform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}
