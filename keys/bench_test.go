package keys

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys/spec"
)

// bigTree makes 10,000 small files in 110 directories.
func bigTree(b *testing.B) string {
	dir := b.TempDir()
	for d := range 100 {
		sub := filepath.Join(dir, fmt.Sprintf("lib%d", d%10), fmt.Sprintf("part%d", d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for f := range 100 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file%d.ml", f)), make([]byte, 5000+f), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	return dir
}

// memo remembers digests by path and size: the least that a FileHasher can do.
type memo struct {
	plainHasher
	known sync.Map
}

type memoKey struct {
	name string
	size int64
}

func (m *memo) Digest(name string, info fs.FileInfo, open func() (io.ReadCloser, error)) (digest.Digest, error) {
	key := memoKey{name, info.Size()}
	if d, ok := m.known.Load(key); ok {
		return d.(digest.Digest), nil
	}
	d, err := m.plainHasher.Digest(name, info, open)
	m.known.Store(key, d)
	return d, err
}

// BenchmarkNew makes the plan of a build that copies 10,000 files.
func BenchmarkNew(b *testing.B) {
	dir := bigTree(b)
	root, err := os.OpenRoot(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	s := &spec.Spec{Stage: spec.Stage{
		From: spec.From{Image: "busybox"},
		Ops:  []spec.Op{&spec.Copy{Src: []string{"."}, Dst: "/src/"}, &spec.Run{Command: "make"}},
	}}
	for _, bm := range []struct {
		name   string
		fsys   fs.FS
		hasher FileHasher
	}{
		{"unchanged/root", root.FS(), &memo{plainHasher: newPlainHasher()}},
		{"unchanged/dir", os.DirFS(dir), &memo{plainHasher: newPlainHasher()}},
		{"read/root", root.FS(), nil},
		{"read/dir", os.DirFS(dir), nil},
	} {
		b.Run(bm.name, func(b *testing.B) {
			o := Options{
				Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
				Context:  bm.fsys,
				Hasher:   bm.hasher,
				Resolver: fakeResolver{},
			}
			if _, err := New(context.Background(), s, o); err != nil { // fills the memo
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := New(context.Background(), s, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type fakeResolver struct{}

func (fakeResolver) Resolve(_ context.Context, ref string, p ocispec.Platform) (Base, error) {
	if ref == "scratch" {
		return Base{Ref: ref, Platform: p}, nil
	}
	return Base{Ref: ref, Digest: digest.FromString(ref), Platform: p}, nil
}
