package conformance

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Rootless("cmd/obx")
	code := m.Run()
	removeBuilt()
	os.Exit(code)
}
