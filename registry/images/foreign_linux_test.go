package images_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

// soon fails the test if work waits for something.
func soon(t *testing.T, work func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("it waits")
	}
}

// useLayout does with a repository all that can be done with one. Errors are fine.
func useLayout(t *testing.T, ref string, known ocispec.Descriptor) (read []byte) {
	r, err := new(repo.Client).Open(ref)
	if err != nil {
		return nil
	}
	desc, b := conformance.RandomBlob(100)
	_ = r.PutBlob(t.Context(), desc, "", conformance.OpenBytes(b))
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: desc.Digest, Size: desc.Size}
	m, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config})
	if err != nil {
		t.Error(err)
	}
	_, _ = r.PutManifest(t.Context(), "mine", ocispec.MediaTypeImageManifest, m)
	for range r.Tags(t.Context()) {
	}
	for _, ref := range []string{"tag", known.Digest.String(), "mine"} {
		_, _ = r.Head(t.Context(), ref)
		_, b, _ := r.Manifest(t.Context(), ref)
		read = append(read, b...)
	}
	_, _ = r.HasBlob(t.Context(), known)
	if rc, err := r.Blob(t.Context(), known); err == nil {
		b, _ := io.ReadAll(rc)
		read = append(read, b...)
		rc.Close()
	}
	_ = r.Delete(t.Context(), "tag")
	_ = r.Delete(t.Context(), known.Digest.String())
	_, _ = r.(repo.Collector).CollectGarbage(t.Context(), 0)
	_ = r.(io.Closer).Close()
	return read
}

// snapshotOf tells all that a directory has.
func snapshotOf(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var b []byte
		if info.Mode().IsRegular() {
			if b, err = os.ReadFile(p); err != nil {
				return err
			}
		}
		fmt.Fprintln(&all, p, info.Mode(), info.ModTime(), string(b))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestLayoutWithLinks has the layout of another user, with links in it to where only we can write and read: nothing there changes, and
// nothing of it is read.
func TestLayoutWithLinks(t *testing.T) {
	secret := []byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"` + digest.FromString("x").String() + `"},"secret":1}`)
	known := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(secret), Size: int64(len(secret))}
	entry := known
	entry.Annotations = map[string]string{ocispec.AnnotationRefName: "tag"}
	_, index := makeIndex(t, ocispec.MediaTypeImageIndex, entry)
	tag, err := json.Marshal(known)
	if err != nil {
		t.Fatal(err)
	}
	blob := "blobs/sha256/" + known.Digest.Encoded()
	for _, link := range []string{"blobs", "blobs/sha256", blob, "tags", "tags/tag", "tags/mine", "index.json", "oci-layout", "all"} {
		t.Run(strings.ReplaceAll(link, "/", "-")[:min(12, len(link))], func(t *testing.T) {
			outside, dir := t.TempDir(), t.TempDir()
			for name, b := range map[string][]byte{blob: secret, "tags/tag": tag, "tags/mine": tag, "index.json": index, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
				repotest.WriteFile(t, filepath.Join(outside, name), b)
				repotest.WriteFile(t, filepath.Join(dir, name), b)
			}
			for _, name := range []string{link, "tags", "index.json", "blobs/sha256"} {
				if link != "all" && name != link {
					continue
				}
				if name == "all" {
					continue
				}
				at := filepath.Join(dir, name)
				if err := os.RemoveAll(at); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(filepath.Join(outside, name), at); err != nil {
					t.Fatal(err)
				}
			}
			before := snapshotOf(t, outside)
			soon(t, func() {
				if strings.HasPrefix(link, "blobs") {
					if _, err := pull(t.Context(), newImages(t), "oci:"+dir+":tag"); err == nil || !strings.Contains(err.Error(), "escapes") {
						t.Errorf("an image outside: %v", err)
					}
				}
				read := useLayout(t, "oci:"+dir, known)
				if strings.HasPrefix(link, "blobs") || link == "all" {
					if bytes.Contains(read, []byte("secret")) {
						t.Errorf("%s was read", blob)
					}
				}
				st, img, _ := anOutput(t)
				_, _ = images.WriteOCIDir(t.Context(), dir, st, img, "app:tag")
				_, _ = images.WriteOCIDir(t.Context(), dir, st, img, "app:mine")
			})
			if now := snapshotOf(t, outside); now != before {
				t.Errorf("what is outside has changed:\n%s\n%s", before, now)
			}
		})
	}
}

// TestLayoutWithInnerLinks holds that links within a layout are as good as files.
func TestLayoutWithInnerLinks(t *testing.T) {
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "of a", compressed: "gzip"})
	dir := layoutDir(t, map[string]*testImage{"tag": img})
	if err := os.Rename(filepath.Join(dir, "blobs"), filepath.Join(dir, "there")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("there", filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	if _, err := pull(t.Context(), newImages(t), "oci:"+dir+":tag"); err != nil {
		t.Error(err)
	}
	repotest.InLayout(t, "oci:"+dir, func(r repo.Repo) { conformance.PutImage(t, r, "x") })
}

// TestLayoutWithPipes has pipes where a layout has files: they are not there, at once.
func TestLayoutWithPipes(t *testing.T) {
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "of a", compressed: "gzip"})
	names := []string{"index.json", "oci-layout", "blobs", "blobs/sha256", "tags", "tags/tag", "blobs/sha256/" + img.desc.Digest.Encoded()}
	for d := range img.blobs {
		names = append(names, "blobs/sha256/"+d.Encoded())
	}
	for i, name := range names {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			dir := layoutDir(t, map[string]*testImage{"tag": img})
			at := filepath.Join(dir, name)
			if err := os.RemoveAll(at); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(at, 0o666); err != nil {
				t.Fatal(err)
			}
			soon(t, func() {
				if _, err := pull(t.Context(), newImages(t), "oci:"+dir+":tag"); err == nil && !strings.HasPrefix(name, "tags") && name != "oci-layout" {
					t.Errorf("%s: a pipe was read", name)
				}
				useLayout(t, "oci:"+dir, img.desc)
			})
		})
	}
}

// TestArchiveIsAPipe is an error at once.
func TestArchiveIsAPipe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache.tar")
	if err := unix.Mkfifo(file, 0o666); err != nil {
		t.Fatal(err)
	}
	soon(t, func() {
		if _, err := new(repo.Client).Open(file); err == nil || !strings.Contains(err.Error(), "regular file") {
			t.Errorf("open: %v", err)
		}
	})
}

// TestArchiveBesideLinks holds that what is spooled for an archive in another's directory stays there.
func TestArchiveBesideLinks(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	repotest.WriteFile(t, filepath.Join(outside, "old"), []byte("x"))
	old := time.Now().Add(-48 * time.Hour)
	link := filepath.Join(dir, ".cache.tar.tmp-1")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	ts := []unix.Timespec{unix.NsecToTimespec(old.UnixNano()), unix.NsecToTimespec(old.UnixNano())}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, link, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
	before := snapshotOf(t, outside)
	repotest.InLayout(t, filepath.Join(dir, "cache.tar"), func(r repo.Repo) { conformance.PutImage(t, r, "x") })
	if now := snapshotOf(t, outside); now != before {
		t.Errorf("what is outside has changed:\n%s\n%s", before, now)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "cache.tar" {
		t.Errorf("left %v, %v", entries, err)
	}
}

// TestLayoutIsOpenedOnce looks at the process's open files: one for a layout, however often it is read, and none when all is done.
func TestLayoutIsOpenedOnce(t *testing.T) {
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "one"})
	dir, file := layoutDir(t, map[string]*testImage{"tag": img}), filepath.Join(t.TempDir(), "layout.tar")
	repotest.InLayout(t, file, func(r repo.Repo) { conformance.PutImage(t, r, "tag") })
	for _, at := range []string{dir, file} {
		im := &images.Resolver{Store: repotest.OpenStore(t)}
		for _, p := range []string{"amd64", "arm64"} {
			base, err := im.Resolve(t.Context(), "oci:"+at+":tag", repotest.Linux(p))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := im.Missing(t.Context(), base); err != nil {
				t.Fatal(err)
			}
			if _, err := im.Blobs(t.Context(), base); err != nil {
				t.Fatal(err)
			}
		}
		if n := opened(t, at); n != 1 {
			t.Errorf("%s is open %d times", at, n)
		}
		if err := im.Close(); err != nil {
			t.Error(err)
		}
		if n := opened(t, at); n != 0 {
			t.Errorf("%s is open %d times after Close", at, n)
		}
	}
}

// opened counts the process's descriptors of a file or directory.
func opened(t *testing.T, name string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && to == name {
			n++
		}
	}
	return n
}
