package hcs

import (
	"context"
	"errors"
	"fmt"

	sys "golang.org/x/sys/windows"

	"github.com/ocurrent/obx/executor"
)

// Health tries what an Executor with these options needs. The store may be nil, if it could not be opened.
func Health(ctx context.Context, o Options) []executor.Check {
	return health(ctx, o, thisWindows())
}

func health(ctx context.Context, o Options, w windows) []executor.Check {
	o = o.complete()
	var h executor.Health
	h.Check("administrator", func() (string, error) {
		if !sys.GetCurrentProcessToken().IsElevated() {
			return "", errors.New("layers are read with the privilege to back up files: run obx as an administrator")
		}
		return "", nil
	})
	h.Check("Windows", func() (string, error) {
		return fmt.Sprintf("%d.%d.%d", w.version.MajorVersion, w.version.MinorVersion, w.version.Build), nil
	})
	h.Check("containerd", func() (string, error) { return o.check(ctx) })
	if h.Failed() || o.Store == nil {
		return h.Checks
	}
	h.Check("network", func() (string, error) {
		n, err := openNetwork(w.hcn, "obx-healthcheck")
		if err != nil {
			return "", fmt.Errorf("steps with (network host) cannot run: %w", err)
		}
		return "NAT", n.close()
	})
	h.Check("executor", func() (string, error) {
		e, err := newExecutor(ctx, o, w)
		if err != nil {
			return "", err
		}
		return runtimeName + ", snapshotter " + o.Snapshotter, e.Close()
	})
	return h.Checks
}
