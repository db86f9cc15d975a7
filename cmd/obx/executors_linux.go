package main

import (
	"context"
	"os"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
	"github.com/ocurrent/obx/executor/qemu"
	"github.com/ocurrent/obx/executor/qemu/vm"
)

// platformFlags are those that this system's executors have.
type platformFlags struct {
	runtime     string
	containerd  string
	snapshotter string
	qemu        qemuFlags
}

// executorKinds lists all executors; the first is the default.
var executorKinds = []executorKind{
	overlayKind,
	containerdKind,
	{
		name:  "qemu",
		about: "virtual machines",
		open: func(_ context.Context, st *cas.Store, f *executorFlags) (executor.Executor, error) {
			o, err := f.qemu.options(st, f.warn)
			if err != nil {
				return nil, err
			}
			return late("qemu", ocispec.Platform{OS: o.OS, Architecture: o.Arch}, func() (executor.Executor, error) { return qemu.New(o, f.qemu.guest) })
		},
		health: func(ctx context.Context, st *cas.Store, f *executorFlags) []executor.Check {
			o, err := f.qemu.options(st, f.warn)
			if err != nil {
				return []executor.Check{{Name: "options", Err: err}}
			}
			return qemu.Health(ctx, o)
		},
		install: func(ctx context.Context, st *cas.Store, f *executorFlags, say func(string)) error {
			o, err := f.qemu.options(st, f.warn)
			if err != nil {
				return err
			}
			return vm.Install(ctx, o, say)
		},
	},
}

const containerdAbout = "through the containerd of this machine"

func (f *executorFlags) addOfPlatform(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.runtime, "runtime", "", "run steps with the sandbox `NAME`: builtin (default), or an OCI runtime: crun, runc, runsc or a path (of containerd: runc)")
	flags.StringVar(&f.containerd, "containerd", os.Getenv("CONTAINERD_ADDRESS"), "the `SOCKET` of containerd (default $CONTAINERD_ADDRESS, else /run/containerd/containerd.sock)")
	flags.StringVar(&f.snapshotter, "snapshotter", "", "the snapshotter `NAME` of containerd: overlayfs (default), btrfs, or another that it has")
	f.qemu.add(cmd)
	fixedValues(cmd, "runtime", overlay.Builtin, "crun", "runc", "runsc")
	fixedValues(cmd, "snapshotter", "overlayfs", "btrfs")
}

// settle tells the executors what they are for. A zero platform is this machine's.
func (f *executorFlags) settle(p ocispec.Platform) {
	f.qemu.system, f.qemu.arch = p.OS, p.Architecture
}

const defaultPlatformText = "Linux on this machine's processor"

// defaultPlatform is what is built for unless --platform says otherwise.
func defaultPlatform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}
