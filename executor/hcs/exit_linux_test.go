package hcs

import (
	"testing"

	"github.com/ocurrent/obx/executor/internal/rootfs"
)

// TestExitUnwatched has what is known of an end on kernels that do not tell it.
func TestExitUnwatched(t *testing.T) {
	for _, tt := range []struct {
		status uint32
		killed bool
		want   rootfs.Exit
	}{
		{0, false, rootfs.Exit{}},
		{3, false, rootfs.Exit{Code: 3}},
		{137, false, rootfs.Exit{Code: 137}}, // a shell whose child was killed gives the same
		{137, true, rootfs.Exit{Signal: 9}},
		{0, true, rootfs.Exit{}}, // it was faster
	} {
		if got := (&watch{-1}).exit(tt.status, tt.killed); got != tt.want {
			t.Errorf("%d, killed %v: %+v, want %+v", tt.status, tt.killed, got, tt.want)
		}
	}
}
