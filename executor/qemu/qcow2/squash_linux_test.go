package qcow2

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ocurrent/obx/layers"
)

// TestSquash makes a chain of disks shorter: the disk is the same, and needs only the base.
func TestSquash(t *testing.T) {
	dir := t.TempDir()
	tool := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	var chain []string
	for i := range 6 {
		args := []string{"create", "-q", "-f", "qcow2"}
		if i > 0 {
			args = append(args, "-b", layers.DiskName(i-1), "-F", "qcow2")
		}
		tool("qemu-img", append(args, layers.DiskName(i), "64M")...)
		// Each writes to a place of its own and to one that all write to, and makes zeros of what the one below has.
		tool("qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %dM 1M", i+1, 2*i), "-c", fmt.Sprintf("write -P %d 40M 100k", i+1),
			"-c", fmt.Sprintf("write -z %dM 64k", max(2*i-2, 0)), layers.DiskName(i))
		chain = append(chain, filepath.Join(dir, layers.DiskName(i)))
	}
	tool("qemu-img", "convert", "-O", "raw", layers.DiskName(5), "want")
	if err := Squash(t.Context(), dir, chain[:5], chain[5]); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(chain[5])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if h, err := ReadHeader(f); err != nil || h.Backing != layers.DiskName(0) {
		t.Errorf("its header says %+v, %v", h, err)
	}
	for _, between := range chain[1:5] {
		if err := os.Remove(between); err != nil {
			t.Fatal(err)
		}
	}
	tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", layers.DiskName(5), "want")
	left, err := filepath.Glob(filepath.Join(dir, "squash-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
