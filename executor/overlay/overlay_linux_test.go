package overlay_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
)

// rootlessVar makes this test's program one that tells what New says.
const rootlessVar = "OBX_TEST_ROOTLESS"

func TestMain(m *testing.M) {
	if overlay.IsSupervisor() {
		overlay.Supervise(overlay.Starter{})
	}
	conformance.Victim(open)
	if os.Getenv(rootlessVar) != "" {
		_, err := overlay.New(overlay.Options{})
		fmt.Println(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newStore(t testing.TB) *cas.Store {
	t.Helper()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

func newExecutor(t testing.TB, st *cas.Store) *overlay.Executor {
	t.Helper()
	e, err := overlay.New(overlay.Options{Store: st})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func open(st *cas.Store) (executor.Executor, error) {
	return overlay.New(overlay.Options{Store: st})
}

var maker = conformance.ExecutorMaker{
	Sandbox: true,
	New: func(t testing.TB, st *cas.Store) executor.Executor {
		e, err := open(st)
		if err != nil {
			t.Fatal(err)
		}
		return e
	},
}

func TestExecutor(t *testing.T) {
	conformance.RequireRoot(t)
	conformance.Executor(t, maker)
}
