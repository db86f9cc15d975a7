package conformance

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Rootless("cmd/obx")
	os.Exit(m.Run())
}
