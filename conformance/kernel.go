package conformance

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/layers"
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

// LongMachines reports whether the tests of virtual machines that take minutes run, too, as with `make machines`.
func LongMachines() bool { return os.Getenv("OBX_TEST_MACHINES") == "all" }

// DebianDisk is a disk with Debian and sshd, and the key to it: what `make test-disks` has made.
func DebianDisk(t testing.TB) (disk, key string) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "obx-test")
	for _, name := range []string{"debian.qcow2", "debian.key"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%v (make test-disks)", err)
		}
	}
	return filepath.Join(dir, "debian.qcow2"), filepath.Join(dir, "debian.key")
}

// DiskLayer is the layer of a base image that is a disk, in a store.
func DiskLayer(t testing.TB, st *cas.Store, file string) layers.Layer {
	t.Helper()
	dir, err := os.MkdirTemp(st.TempDir(), "disk-")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (make test-deps)", err)
	}
	to := filepath.Join(dir, "fs", "disk", "000.qcow2")
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o644); err != nil {
		t.Fatal(err)
	}
	name, err := st.CommitLayer(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return layers.Layer{Dir: name}
}
