package qemu

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
)

func TestMachineMemory(t *testing.T) {
	const g = 1 << 30
	for _, c := range []struct{ least, limit, want int64 }{
		{g, 0, g}, {g, 100 << 20, g}, {g, g, 2 * g}, {g, 8 * g, 9 * g}, {16 * g, 8 * g, 16 * g},
		{g, maxMemory + 1, 0}, {g, math.MaxInt64, 0}, // errors
	} {
		if got, err := machineMemory(c.least, c.limit); got != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("with at least %d and a limit of %d: %d, %v; want %d", c.least, c.limit, got, err, c.want)
		}
	}
}

// TestNoStates looks for a machine where none can be saved: each caller is told, at once.
func TestNoStates(t *testing.T) {
	e := testExecutor(t, Options{Store: conformance.OpenStore(t), BootTimeout: 300 * time.Millisecond})
	defer e.Close()
	if err := e.getReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, first := e.state(t.Context(), e.options.Memory)
	if first == nil || !strings.Contains(first.Error(), "did not boot") {
		t.Errorf("got %v", first)
	}
	if s, err := e.state(t.Context(), e.options.Memory); s != nil || err != first {
		t.Errorf("it is tried again: %v, %v", s, err)
	}
	// Who is cancelled does not wait for who saves one.
	if err := e.saving.Acquire(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	defer e.saving.Release(1)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	cancel(why)
	if _, err := e.state(ctx, 1); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

// TestOldStates drops what an earlier boot of the host has saved, and what nobody has used for long.
func TestOldStates(t *testing.T) {
	st := conformance.OpenStore(t)
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{boot + "-used", boot + "-unused", "0123456789abcdef-used"} {
		if err := os.MkdirAll(filepath.Join(st.Dir(), stateDir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-maxStateAge - time.Hour)
	if err := os.Chtimes(filepath.Join(st.Dir(), stateDir, boot+"-unused"), old, old); err != nil {
		t.Fatal(err)
	}
	(&Executor{options: Options{Store: st}}).dropOldStates()
	left, err := os.ReadDir(filepath.Join(st.Dir(), stateDir))
	if err != nil || len(left) != 1 || left[0].Name() != boot+"-used" {
		t.Errorf("left are %v, %v", left, err)
	}
}
