package hcs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
)

const howToStart = "try `apt-get install containerd` and `systemctl start containerd`, or name its socket with --containerd"

// Health tries what an Executor with these options needs. The store may be nil, if it could not be opened: then only what
// needs none is tried.
func Health(ctx context.Context, o Options) []executor.Check {
	o = o.complete()
	var h executor.Health
	h.Check("root", func() (string, error) {
		if os.Geteuid() != 0 {
			return "", errNotRoot
		}
		return "", nil
	})
	h.Check("OCI runtime", func() (string, error) { return rootfs.FindRuntime(o.Runtime, ociRuntimes...) })
	h.Warn(rootfs.RuntimeWarning(rootfs.RuntimeVersion(ctx, h.Checks[len(h.Checks)-1].Detail)))
	h.Check("containerd", func() (string, error) { return o.check(ctx) })
	if h.Failed() || o.Store == nil {
		return h.Checks
	}
	e, err := New(ctx, o)
	if err != nil {
		h.Check("executor", func() (string, error) { return "", err })
		return h.Checks
	}
	r := runner{e}
	h.Check("snapshotter", func() (string, error) {
		s, err := r.Scratch(ctx)
		if err != nil {
			return "", fmt.Errorf("%w: `ctr plugins ls` lists those that containerd has", err)
		}
		return o.Snapshotter, s.Drop()
	})
	if !h.Failed() {
		h.Check("sandbox", func() (string, error) {
			id := e.NewID()
			b, err := r.Box(id)
			if err == nil {
				err = e.Try(ctx, id, b)
			}
			if err != nil {
				return "", fmt.Errorf("%w: containerd and obx have to see the same mounts and processes; one in a container of its own sees others", err)
			}
			return runtimeName, nil
		})
		h.Warn(rootfs.AppArmorWarning())
	}
	if err := e.Close(); err != nil {
		h.Check("clean-up", func() (string, error) { return "", errors.Join(err) })
	}
	return h.Checks
}
