//go:build !linux

package overlay

import (
	"context"
	"errors"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// An Executor runs nothing here.
type Executor struct{}

var errNotLinux = errors.New("the overlay executor needs Linux")

// New fails: overlayfs and OCI runtimes are Linux's.
func New(Options) (*Executor, error) { return nil, errNotLinux }

// IsSupervisor is false.
func IsSupervisor() bool { return false }

// Supervise is never called.
func Supervise(func(root int) error) { panic(errNotLinux) }

// Health says that this is not Linux.
func Health(context.Context, Options) []executor.Check {
	return []executor.Check{{Name: "operating system", Detail: runtime.GOOS, Err: errNotLinux}}
}

// Prepare fails.
func (*Executor) Prepare() error { return errNotLinux }

// Platform is this machine's.
func (*Executor) Platform() ocispec.Platform {
	return ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
}

// Open fails.
func (*Executor) Open(context.Context, []layers.Layer) (executor.Root, error) {
	return nil, errNotLinux
}

// Close does nothing.
func (*Executor) Close() error { return nil }
