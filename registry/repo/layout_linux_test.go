package repo_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

// smallDisk mounts a file system of 1 MiB. remount changes whether it can be written.
func smallDisk(t *testing.T) (dir string, remount func(readOnly bool)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("requires root: mounts a file system")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, func(readOnly bool) {
		flags := uintptr(unix.MS_REMOUNT)
		if readOnly {
			flags |= unix.MS_RDONLY
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", flags, "size=1m"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLayoutReadOnly(t *testing.T) {
	for _, name := range []string{"layout", "layout.tar"} {
		dir, remount := smallDisk(t)
		ref := "oci:" + filepath.Join(dir, name)
		repotest.InLayout(t, ref, func(r repo.Repo) { conformance.PutImage(t, r, "x") })
		remount(true)
		repotest.InLayout(t, ref, func(r repo.Repo) {
			image, m, err := r.Manifest(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			desc, b := conformance.RandomBlob(10)
			if err := r.PutBlob(t.Context(), desc, "", conformance.OpenBytes(b)); !errors.Is(err, repo.ErrReadOnly) {
				t.Errorf("%s: put blob: %v", name, err)
			}
			if _, err := r.PutManifest(t.Context(), "y", ocispec.MediaTypeImageManifest, m); !errors.Is(err, repo.ErrReadOnly) {
				t.Errorf("%s: put manifest: %v", name, err)
			}
			if err := r.Delete(t.Context(), "nothing"); err != nil {
				t.Errorf("%s: delete what is not there: %v", name, err)
			}
			if err := r.Delete(t.Context(), "x"); !errors.Is(err, repo.ErrReadOnly) {
				t.Errorf("%s: delete: %v", name, err)
			}
			if desc, err := r.Head(t.Context(), "x"); err != nil || desc.Digest != image.Digest {
				t.Errorf("%s: head: %v, %v", name, desc, err)
			}
		})
		remount(false)
		repotest.InLayout(t, ref, func(r repo.Repo) { conformance.PutImage(t, r, "y") })
	}
}

func TestLayoutFullDisk(t *testing.T) {
	for _, name := range []string{"layout", "layout.tar"} {
		dir, _ := smallDisk(t)
		ref := "oci:" + filepath.Join(dir, name)
		repotest.InLayout(t, ref, func(r repo.Repo) { conformance.PutImage(t, r, "x") })
		repotest.InLayout(t, ref, func(r repo.Repo) {
			desc, b := conformance.RandomBlob(2 << 20)
			err := r.PutBlob(t.Context(), desc, "", conformance.OpenBytes(b))
			if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, repo.ErrReadOnly) {
				t.Errorf("%s: put blob: %v", name, err)
			}
			if has, err := r.HasBlob(t.Context(), desc); has || err != nil {
				t.Errorf("%s: has blob: %v, %v", name, has, err)
			}
			conformance.PutImage(t, r, "y")
		})
		repotest.InLayout(t, ref, func(r repo.Repo) {
			if got := repotest.Tags(t, r); len(got) != 2 {
				t.Errorf("%s: tags: %q", name, got)
			}
		})
	}
	// An archive is written at the end: there may be no room for it then. The old one stays.
	dir, _ := smallDisk(t)
	file := filepath.Join(dir, "layout.tar")
	repotest.InLayout(t, file, func(r repo.Repo) { conformance.PutImage(t, r, "x") })
	r, err := new(repo.Client).Open(file)
	if err != nil {
		t.Fatal(err)
	}
	_, b := conformance.RandomBlob(700 << 10)
	conformance.PutBytes(t, r, "", b)
	conformance.PutImage(t, r, "y")
	if err := r.(io.Closer).Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("close: %v", err)
	}
	repotest.InLayout(t, file, func(r repo.Repo) {
		if got := repotest.Tags(t, r); len(got) != 1 {
			t.Errorf("tags: %q", got)
		}
	})
}
