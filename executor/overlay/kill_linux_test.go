package overlay_test

import (
	"testing"

	"github.com/ocurrent/obx/conformance"
)

func TestKill(t *testing.T) {
	conformance.RequireRoot(t)
	conformance.Kill(t, maker, true)
}
