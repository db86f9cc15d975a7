package qemu

import (
	"math"
	"testing"
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
