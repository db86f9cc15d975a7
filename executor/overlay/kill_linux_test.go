package overlay_test

import (
	"testing"

	"github.com/ocurrent/obx/conformance"
)

func TestKill(t *testing.T) {
	each(t, func(t *testing.T, runtime string) {
		conformance.Kill(t, maker(runtime), true, runtimeVar+"="+runtime)
	})
}
