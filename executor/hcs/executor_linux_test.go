package hcs_test

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/hcs"
)

// addressVar names a containerd to the processes that tests start.
const addressVar = "OBX_TEST_CONTAINERD"

func TestMain(m *testing.M) {
	conformance.Victim(func(st *cas.Store) (executor.Executor, error) {
		return hcs.New(context.Background(), hcs.Options{Store: st, Address: os.Getenv(addressVar)})
	})
	os.Exit(m.Run())
}

func maker(o hcs.Options) conformance.ExecutorMaker {
	return conformance.ExecutorMaker{
		Sandbox: true,
		New: func(t testing.TB, st *cas.Store) executor.Executor {
			o.Store = st
			e, err := hcs.New(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			return e
		},
	}
}

func TestExecutor(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "btrfs"} {
		t.Run(snapshotter, func(t *testing.T) {
			t.Parallel()
			address := conformance.StartContainerd(t, snapshotter)
			t.Cleanup(func() { wantNothing(t, address, snapshotter) }) // after the suite's own
			conformance.Executor(t, maker(hcs.Options{Address: address, Snapshotter: snapshotter}))
		})
	}
}

// wantNothing fails t if there is anything of obx in a containerd.
func wantNothing(t *testing.T, address, snapshotter string) {
	t.Helper()
	c, err := client.New(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(context.Background(), "obx")
	all, err := c.Containers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range all {
		t.Errorf("left over: container %s", x.ID())
	}
	leases, err := c.LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		t.Errorf("left over: lease %s", l.ID)
	}
	err = c.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		t.Errorf("left over: snapshot %s", info.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestKill(t *testing.T) {
	address := conformance.StartContainerd(t, "overlayfs")
	conformance.Kill(t, maker(hcs.Options{Address: address}), false, addressVar+"="+address)
	wantNothing(t, address, "overlayfs")
	// Each other's runs are not touched.
	st := conformance.OpenStore(t)
	one := maker(hcs.Options{Address: address}).New(t, st)
	two := maker(hcs.Options{Address: address}).New(t, st)
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	r, err := one.Open(t.Context(), nil)
	if err == nil {
		err = r.Add(t.Context(), conformance.Busybox(t, st))
	}
	if err == nil {
		err = r.Run(t.Context(), executor.Process{Argv: []string{"/bin/true"}, Dir: "/"}, io.Discard)
	}
	if err == nil {
		err = r.Close()
	}
	if err != nil {
		t.Error(err)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	wantNothing(t, address, "overlayfs")
}

func TestTerminalEscapes(t *testing.T) {
	conformance.TerminalEscapes(t, maker(hcs.Options{Address: conformance.StartContainerd(t, "overlayfs")}))
}

func TestTerminal(t *testing.T) {
	conformance.Terminal(t, maker(hcs.Options{Address: conformance.StartContainerd(t, "overlayfs")}))
}

func TestHealth(t *testing.T) {
	address := conformance.StartContainerd(t, "overlayfs")
	st := conformance.OpenStore(t)
	for _, test := range []struct {
		name   string
		o      hcs.Options
		failed string
		said   string
	}{
		{"well", hcs.Options{Store: st, Address: address}, "", ""},
		{"no containerd", hcs.Options{Store: st, Address: address + "-not"}, "containerd", "apt-get install containerd"},
		{"no runtime", hcs.Options{Store: st, Address: address, Runtime: "nosuchruntime"}, "OCI runtime", "nosuchruntime"},
		{"broken runtime", hcs.Options{Store: st, Address: address, Runtime: brokenRuntime(t)}, "sandbox", "OCI runtime create failed"},
		{"no snapshotter", hcs.Options{Store: st, Address: address, Snapshotter: "nosuch"}, "snapshotter", "ctr plugins ls"},
		{"no store", hcs.Options{Address: address}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			seen := test.failed == ""
			for _, c := range hcs.Health(t.Context(), test.o) {
				t.Logf("%s: %s %v", c.Name, c.Detail, c.Err)
				if c.Err == nil {
					continue
				}
				seen = seen || c.Name == test.failed && strings.Contains(c.Err.Error(), test.said)
				if c.Name != test.failed {
					t.Errorf("%s: %v", c.Name, c.Err)
				}
			}
			if !seen {
				t.Errorf("%s is not said to be wrong with %q", test.failed, test.said)
			}
		})
	}
	wantNothing(t, address, "overlayfs")
}

func brokenRuntime(t *testing.T) string {
	t.Helper()
	file := t.TempDir() + "/broken"
	if err := os.WriteFile(file, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}
