package images_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

// TestLayoutOfOthers reads and changes a layout that another tool has made.
func TestLayoutOfOthers(t *testing.T) {
	one := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "one"})
	two := makeImage(t, true, repotest.Linux("amd64"), testLayer{file: "a", text: "two", compressed: "gzip"})
	three := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "three"})
	dir := layoutDir(t, map[string]*testImage{"one": one, "two": two, "": three})
	repotest.InLayout(t, "oci:"+dir, func(r repo.Repo) {
		if got := repotest.Tags(t, r); !slices.Equal(got, []string{"one", "two"}) {
			t.Errorf("tags: %q", got)
		}
		desc, b, err := r.Manifest(t.Context(), "two")
		if err != nil || desc.MediaType != dockerManifestType || !bytes.Equal(b, two.manifest) {
			t.Errorf("%v %s %v", desc, b, err)
		}
		if err := r.Delete(t.Context(), two.desc.Digest.String()); err != nil {
			t.Fatal(err)
		}
		conformance.PutImage(t, r, "one")
		conformance.PutImage(t, r, "four")
		if got := repotest.Tags(t, r); !slices.Equal(got, []string{"four", "one"}) {
			t.Errorf("tags: %q", got)
		}
		if _, err := r.(repo.Collector).CollectGarbage(t.Context(), -time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Head(t.Context(), three.desc.Digest.String()); err != nil {
			t.Errorf("the one without a name: %v", err)
		}
	})
	if got := repotest.IndexTags(t, dir); !slices.Equal(got, []string{"", "four", "one"}) {
		t.Errorf("index.json has %q", got)
	}
}

func TestLayoutTools(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(skopeo, append([]string{"--insecure-policy"}, args...)...).CombinedOutput(); err != nil {
			t.Errorf("skopeo %q: %v: %s", args, err, out)
		}
	}
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "one"})
	put := func(r repo.Repo, tag string) {
		for _, b := range img.blobs {
			conformance.PutBytes(t, r, "", b)
		}
		if _, err := r.PutManifest(t.Context(), tag, img.desc.MediaType, img.manifest); err != nil {
			t.Fatal(err)
		}
	}
	dir, file, other := filepath.Join(t.TempDir(), "dir"), filepath.Join(t.TempDir(), "layout.tar"), filepath.Join(t.TempDir(), "other")
	repotest.InLayout(t, "oci:"+dir, func(r repo.Repo) { put(r, "x") })
	repotest.InLayout(t, file, func(r repo.Repo) { put(r, "x") })
	run("copy", "oci:"+dir+":x", "oci:"+other+":dir")
	run("copy", "oci-archive:"+file+":x", "oci:"+other+":file")
	run("copy", "oci:"+dir+":x", "oci:"+dir+":again")
	run("copy", "oci:"+dir+":x", "oci-archive:"+other+".tar:archive")
	repotest.InLayout(t, "oci:"+other, func(r repo.Repo) {
		if got := repotest.Tags(t, r); !slices.Equal(got, []string{"dir", "file"}) {
			t.Errorf("tags: %q", got)
		}
	})
	repotest.InLayout(t, "oci:"+dir, func(r repo.Repo) { put(r, "y") })
	if got := repotest.IndexTags(t, dir); !slices.Equal(got, []string{"again", "x", "y"}) {
		t.Errorf("index.json has %q", got)
	}
	repotest.InLayout(t, other+".tar", func(r repo.Repo) {
		if _, err := r.Head(t.Context(), "archive"); err != nil { // skopeo has compressed its layer
			t.Error(err)
		}
		put(r, "y")
	})
	run("copy", "oci-archive:"+other+".tar:archive", "oci:"+other+":more")
}
