package layerdisk

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/conformance"
)

// TestDeepImage has the host's kernel read the image of a layer that is deeper than a path.
func TestDeepImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root: mounts an image")
	}
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(b, []byte("erofs")) {
		t.Skip("the kernel has no EROFS")
	}
	tmp := t.TempDir()
	dir, _ := conformance.DeepTree(t)
	l, err := ReadLayer(dir)
	if err != nil {
		t.Fatal(err)
	}
	img, err := newImage([]*Layer{l})
	if err != nil {
		t.Fatal(err)
	}
	var files fileCache
	defer files.close()
	b := make([]byte, img.size)
	err = img.readAt(b, 0, func(dir string, at *foreign.Level) (*os.File, error) { return files.open(openFile{0, dir, at}) })
	if err != nil {
		t.Fatal(err)
	}
	image, mnt := filepath.Join(tmp, "image"), filepath.Join(tmp, "mnt")
	if err := errors.Join(os.WriteFile(image, b, 0o600), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", image, mnt).CombinedOutput(); err != nil {
		t.Skipf("cannot mount it: %s", out)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	}()
	if got := conformance.ChangeBytes(t, filepath.Join(mnt, "0")); !bytes.Equal(got, conformance.ChangeBytes(t, dir)) {
		t.Error("the image differs")
	}
}
