package conformance

import (
	"os"
	"path/filepath"
	"testing"
)

// Kernel is a Linux kernel for virtual machines of an architecture: what `make test-deps` has unpacked.
func Kernel(t testing.TB, arch string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "obx-test", "kernel-"+arch, "boot", "vmlinu[xz]-*"))
	if err != nil || len(found) == 0 {
		t.Fatalf("there is no kernel for %s (make test-deps)", arch)
	}
	return found[0]
}
