package main

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/hcs"
)

// platformFlags are those that this system's executors have.
type platformFlags struct {
	containerd string
	isolation  string
}

// executorKinds lists all executors; the first is the default.
var executorKinds = []executorKind{
	{
		name:  "hcs",
		about: "Windows containers, through containerd",
		open: func(ctx context.Context, st *cas.Store, f *executorFlags) (executor.Executor, error) {
			return late("hcs", defaultPlatform(), func() (executor.Executor, error) { return hcs.New(ctx, f.hcs(st)) })
		},
		health: func(ctx context.Context, st *cas.Store, f *executorFlags) []executor.Check {
			return hcs.Health(ctx, f.hcs(st))
		},
	},
}

func (f *executorFlags) hcs(st *cas.Store) hcs.Options {
	return hcs.Options{Store: st, Address: f.containerd, Isolation: f.isolation}
}

func (f *executorFlags) addOfPlatform(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.containerd, "containerd", "", `the named `+"`PIPE`"+` of containerd (default \\.\pipe\containerd-containerd)`)
	flags.StringVar(&f.isolation, "isolation", "auto", "isolate steps by a `KIND`: process, hyperv, or auto (hyperv where this Windows is too new or old for the image)")
	fixedValues(cmd, "isolation", "auto", "process", "hyperv")
}

func (*executorFlags) settle(ocispec.Platform) {}

const defaultPlatformText = "this machine's: Windows, of its version"

// defaultPlatform is what is built for unless --platform says otherwise.
func defaultPlatform() ocispec.Platform { return hcs.Platform() }
