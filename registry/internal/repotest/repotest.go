// Package repotest is what tests of the packages below registry share.
package repotest

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/repo"
)

// Linux is a platform.
func Linux(arch string) ocispec.Platform { return ocispec.Platform{OS: "linux", Architecture: arch} }

// OpenStore makes a store, until the test ends.
func OpenStore(t testing.TB) *cas.Store {
	t.Helper()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

// Open opens a repository by a client, if one is given, until the test ends.
func Open(t testing.TB, ref string, by ...*repo.Client) repo.Repo {
	t.Helper()
	r, err := append(by, new(repo.Client))[0].Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := r.(io.Closer); ok {
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return r
}

// InLayout opens a layout for some work.
func InLayout(t testing.TB, ref string, work func(r repo.Repo)) {
	t.Helper()
	r, err := new(repo.Client).Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	work(r)
	if err := r.(io.Closer).Close(); err != nil {
		t.Fatal(err)
	}
}

// Hurried is a client with little patience.
func Hurried(header, stall, vain time.Duration) *repo.Client {
	return &repo.Client{Patience: repo.Patience{Header: header, Stall: stall, Vain: vain, Backoff: 5 * time.Millisecond}}
}

// Tags are those of a repository.
func Tags(t testing.TB, r repo.Repo) (tags []string) {
	t.Helper()
	for tag, err := range r.Tags(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		tags = append(tags, tag)
	}
	return tags
}

// IndexTags are those that the index.json of a layout has, all of whose manifests are there.
func IndexTags(t testing.TB, dir string) (tags []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	for _, e := range index.Manifests {
		if _, err := os.Stat(filepath.Join(dir, "blobs/sha256", e.Digest.Encoded())); err != nil {
			t.Error(err)
		}
		tags = append(tags, e.Annotations[ocispec.AnnotationRefName])
	}
	return tags
}

// WriteFile makes a file, and the directories above it.
func WriteFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Corrupt changes the last byte of a blob where it is.
func Corrupt(t testing.TB, m *repo.Memory, desc ocispec.Descriptor) {
	t.Helper()
	var b kept
	rc, err := m.Blob(t.Context(), desc)
	if err == nil {
		_, err = io.Copy(&b, rc) // which is given the very bytes
	}
	if err != nil {
		t.Fatal(err)
	}
	b.bytes[len(b.bytes)-1] ^= 1
}

type kept struct{ bytes []byte }

func (k *kept) Write(b []byte) (int, error) {
	k.bytes = b
	return len(b), nil
}
