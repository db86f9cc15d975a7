package repo_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

// layoutForms are a directory and an archive that do not exist yet.
func layoutForms(t *testing.T, test func(t *testing.T, ref string)) {
	t.Run("directory", func(t *testing.T) { test(t, "oci:"+filepath.Join(t.TempDir(), "layout")) })
	t.Run("archive", func(t *testing.T) { test(t, filepath.Join(t.TempDir(), "layout.tar")) })
}

// unpacked gives the directory of a layout.
func unpacked(t testing.TB, ref string) string {
	t.Helper()
	dir, isDir := strings.CutPrefix(ref, "oci:")
	if isDir {
		return dir
	}
	dir = t.TempDir()
	f, err := os.Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		repotest.WriteFile(t, filepath.Join(dir, h.Name), b)
	}
}

func TestLayoutGrows(t *testing.T) {
	layoutForms(t, func(t *testing.T, ref string) {
		var x, y ocispec.Descriptor
		repotest.InLayout(t, ref, func(r repo.Repo) { x, _ = conformance.PutImage(t, r, "x") })
		repotest.InLayout(t, ref, func(r repo.Repo) {
			if desc, err := r.Head(t.Context(), "x"); err != nil || desc.Digest != x.Digest {
				t.Errorf("head: %v, %v", desc, err)
			}
			y, _ = conformance.PutImage(t, r, "y")
			conformance.PutImage(t, r, "z")
		})
		repotest.InLayout(t, ref, func(r repo.Repo) {
			if err := r.Delete(t.Context(), "z"); err != nil {
				t.Fatal(err)
			}
			if got := repotest.Tags(t, r); !slices.Equal(got, []string{"x", "y"}) {
				t.Errorf("tags: %q", got)
			}
		})
		var before, after int64
		repotest.InLayout(t, ref, func(r repo.Repo) {
			if _, err := r.Head(t.Context(), "z"); !errors.Is(err, repo.ErrNotFound) {
				t.Errorf("the deleted one: %v", err)
			}
			for _, want := range []ocispec.Descriptor{x, y} {
				if _, _, err := r.Manifest(t.Context(), want.Digest.String()); err != nil {
					t.Error(err)
				}
			}
			before = sizeOf(t, ref)
			if n, err := r.(repo.Collector).CollectGarbage(t.Context(), -time.Hour); n == 0 || err != nil {
				t.Errorf("collected %d bytes, %v", n, err)
			}
		})
		if after = sizeOf(t, ref); after >= before {
			t.Errorf("it had %d bytes, and has %d", before, after)
		}
		dir := unpacked(t, ref)
		if got := repotest.IndexTags(t, dir); !slices.Equal(got, []string{"x", "y"}) {
			t.Errorf("index.json has %q", got)
		}
		want := 1
		if runtime.GOOS == "windows" && strings.HasSuffix(ref, ".tar") { // with the file that is locked
			want++
		}
		if entries, err := os.ReadDir(filepath.Dir(strings.TrimPrefix(ref, "oci:"))); len(entries) != want {
			t.Errorf("beside it: %v, %v", entries, err)
		}
	})
}

func sizeOf(t testing.TB, ref string) (sum int64) {
	t.Helper()
	err := filepath.Walk(strings.TrimPrefix(ref, "oci:"), func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestLayoutManyWriters has several writers, as separate as processes are, and readers meanwhile.
func TestLayoutManyWriters(t *testing.T) {
	layoutForms(t, func(t *testing.T, ref string) {
		if runtime.GOOS == "windows" && strings.HasSuffix(ref, ".tar") {
			t.Skip("Windows does not replace an archive that others read")
		}
		const writers, each = 6, 8
		repotest.InLayout(t, ref, func(r repo.Repo) { conformance.PutImage(t, r, "first") })
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for round := range 2 {
					repotest.InLayout(t, ref, func(r repo.Repo) {
						for i := range each / 2 {
							conformance.PutImage(t, r, fmt.Sprintf("%d.%d.%d", w, round, i))
							conformance.PutImage(t, r, "shared")
						}
						if _, _, err := r.Manifest(t.Context(), "first"); err != nil {
							t.Error(err)
						}
					})
				}
			})
		}
		wg.Wait()
		repotest.InLayout(t, ref, func(r repo.Repo) {
			tags := repotest.Tags(t, r)
			if len(tags) != writers*each+2 {
				t.Errorf("%d tags: %q", len(tags), tags)
			}
			for _, tag := range tags {
				_, m, err := r.Manifest(t.Context(), tag)
				var im ocispec.Manifest
				if err := errors.Join(err, json.Unmarshal(m, &im)); err != nil {
					t.Errorf("%s: %v", tag, err)
				}
				for _, l := range append(im.Layers, im.Config) {
					if b, err := readAll(t.Context(), r, l); err != nil || digest.FromBytes(b) != l.Digest {
						t.Errorf("%s: %v", tag, err)
					}
				}
			}
		})
		if got := repotest.IndexTags(t, unpacked(t, ref)); len(got) != writers*each+2 {
			t.Errorf("index.json has %q", got)
		}
	})
}

func TestLayoutBroken(t *testing.T) {
	layoutForms(t, func(t *testing.T, ref string) {
		var config, layer ocispec.Descriptor
		repotest.InLayout(t, ref, func(r repo.Repo) {
			_, m := conformance.PutImage(t, r, "x")
			for _, tag := range []string{"empty", "rubbish", "hostile", "lost", "changed", "large"} {
				conformance.PutImage(t, r, tag)
			}
			var im ocispec.Manifest
			if err := json.Unmarshal(m, &im); err != nil {
				t.Fatal(err)
			}
			config, layer = im.Config, im.Layers[0]
		})
		dir := unpacked(t, ref)
		manifest := func(tag string) string {
			b, err := os.ReadFile(filepath.Join(dir, "tags", tag))
			var desc ocispec.Descriptor
			if err := errors.Join(err, json.Unmarshal(b, &desc)); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "blobs/sha256", desc.Digest.Encoded())
		}
		if err := os.Remove(manifest("lost")); err != nil {
			t.Fatal(err)
		}
		repotest.WriteFile(t, manifest("changed"), []byte(`{"schemaVersion":2}`))
		repotest.WriteFile(t, manifest("large"), bytes.Repeat([]byte(" "), 5<<20))
		repotest.WriteFile(t, filepath.Join(dir, "tags/empty"), nil)
		repotest.WriteFile(t, filepath.Join(dir, "tags/rubbish"), []byte("{"))
		repotest.WriteFile(t, filepath.Join(dir, "tags/hostile"), []byte(`{"digest":"../../../etc/passwd","size":1}`))
		repotest.WriteFile(t, filepath.Join(dir, "index.json"), []byte(`{"schemaVersion":2,"manifests":[]}`))
		repotest.WriteFile(t, filepath.Join(dir, "blobs/sha256", layer.Digest.Encoded()), []byte("short"))
		if err := os.Remove(filepath.Join(dir, "blobs/sha256", config.Digest.Encoded())); err != nil {
			t.Fatal(err)
		}
		if runtime.GOOS == "windows" {
			if strings.HasSuffix(ref, ".tar") {
				t.Skip("there is no tar")
			}
		} else if strings.HasSuffix(ref, ".tar") {
			packDir(t, dir, ref)
		} else if out, err := exec.Command("mkfifo", filepath.Join(dir, "blobs/sha256", config.Digest.Encoded())).CombinedOutput(); err != nil {
			t.Fatalf("mkfifo: %v: %s", err, out)
		}
		repotest.InLayout(t, ref, func(r repo.Repo) {
			for _, tag := range []string{"empty", "rubbish", "hostile", "lost", "changed", "large"} {
				if _, _, err := r.Manifest(t.Context(), tag); !errors.Is(err, repo.ErrNotFound) {
					t.Errorf("%s: %v", tag, err)
				}
			}
			for _, desc := range []ocispec.Descriptor{config, layer} {
				if _, err := r.Blob(t.Context(), desc); !errors.Is(err, repo.ErrNotFound) {
					t.Errorf("blob: %v", err)
				}
			}
			if got := repotest.Tags(t, r); len(got) != 7 {
				t.Errorf("tags: %q", got)
			}
			// All of it can be mended.
			for _, tag := range []string{"empty", "rubbish", "hostile", "lost", "changed", "large"} {
				want, _ := conformance.PutImage(t, r, tag)
				if desc, err := r.Head(t.Context(), tag); err != nil || desc.Digest != want.Digest {
					t.Errorf("%s: %v, %v", tag, desc, err)
				}
			}
		})
	})
}

// packDir makes an archive as tar(1) would.
func packDir(t testing.TB, dir, file string) {
	t.Helper()
	out, err := exec.Command("tar", "-C", dir, "-cf", file, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
}

// TestLayoutSweeps removes what killed processes leave, once it is old.
func TestLayoutSweeps(t *testing.T) {
	layoutForms(t, func(t *testing.T, ref string) {
		repotest.InLayout(t, ref, func(r repo.Repo) { conformance.PutImage(t, r, "x") })
		var left []string
		if dir, isDir := strings.CutPrefix(ref, "oci:"); isDir {
			left = []string{filepath.Join(dir, "blobs/sha256/.tmp-1"), filepath.Join(dir, "tags/.tmp-2"), filepath.Join(dir, ".tmp-3")}
		} else {
			left = []string{filepath.Join(filepath.Dir(ref), ".layout.tar.tmp-1"), filepath.Join(filepath.Dir(ref), ".layout.tar.tmp-2")}
		}
		for i, path := range left {
			repotest.WriteFile(t, filepath.Join(path, "x"), nil)
			if at := time.Now().Add(-48 * time.Hour); i > 0 {
				if err := os.Chtimes(path, at, at); err != nil {
					t.Fatal(err)
				}
			}
		}
		repotest.InLayout(t, ref, func(r repo.Repo) { conformance.PutImage(t, r, "y") })
		for i, path := range left {
			if _, err := os.Stat(path); (err == nil) != (i == 0) {
				t.Errorf("%s: %v", path, err)
			}
		}
	})
}

// An archive that is cut anywhere is an error, and not one with fewer members.
func TestLayoutArchiveIsWhole(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "whole.tar")
	repotest.InLayout(t, whole, func(r repo.Repo) { conformance.PutImage(t, r, "x") })
	b, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	last := len(bytes.TrimRight(b, "\x00")) // the last byte of the last member
	end := (last + 511) &^ 511
	for _, tt := range []struct {
		name string
		size int
		ok   bool
	}{
		{"whole", len(b), true},
		{"one block of the end", end + 512, true},
		{"nothing of it", end, false},
		{"a part of its first block", end + 100, false},
		{"in the padding of the last member", last + 1, false},
		{"after the last member's last byte", last, false},
		{"in the last member", last - 10, false},
		{"in a header", 100, false},
		{"after a header", 512, false},
		{"empty", 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "cut.tar")
			repotest.WriteFile(t, file, b[:tt.size])
			r, err := new(repo.Client).Open(file)
			if err == nil {
				defer r.(io.Closer).Close()
			}
			if tt.ok != (err == nil) || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// FuzzLayoutArchive reads archives from anywhere.
func FuzzLayoutArchive(f *testing.F) {
	file := filepath.Join(f.TempDir(), "seed.tar")
	repotest.InLayout(f, file, func(r repo.Repo) { conformance.PutImage(f, r, "x") })
	seed, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:700])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "x.tar")
		repotest.WriteFile(t, file, b)
		r, err := new(repo.Client).Open(file)
		if err != nil {
			return
		}
		for tag, err := range r.Tags(t.Context()) {
			if err != nil {
				break
			}
			desc, m, err := r.Manifest(t.Context(), tag)
			if err == nil && desc.Digest != digest.FromBytes(m) {
				t.Errorf("the manifest of %s has another digest", tag)
			}
		}
		if err := r.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	})
}
