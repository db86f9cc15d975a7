package hcs_test

import (
	"testing"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/hcs"
)

func TestExecutor(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "btrfs"} {
		t.Run(snapshotter, func(t *testing.T) {
			address := conformance.StartContainerd(t, snapshotter)
			conformance.Executor(t, conformance.ExecutorMaker{
				Sandbox: true,
				New: func(t testing.TB, st *cas.Store) executor.Executor {
					e, err := hcs.New(t.Context(), hcs.Options{Store: st, Address: address, Snapshotter: snapshotter})
					if err != nil {
						t.Fatal(err)
					}
					return e
				},
			})
		})
	}
}
