package images

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/internal/oci"
)

func TestLockfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "obx.lock")
	l, err := OpenLockfile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Save(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("an empty lock file was written")
	}
	amd64 := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	win := ocispec.Platform{OS: "windows", Architecture: "amd64"}
	win2022 := ocispec.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.1"}
	z := resolution{Name: "docker.io/library/z:latest", For: amd64, Digest: someDigest, Platform: amd64}
	a := resolution{Name: "docker.io/library/a:latest", For: win, Digest: someDigest, Platform: win2022}
	l.add(z)
	l.add(a)
	l.add(resolution{Name: z.Name, For: z.For, Digest: "sha256:other"})
	if err := l.Save(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Index(before, []byte("library/a")) > bytes.Index(before, []byte("library/z")) {
		t.Error("it is not sorted")
	}
	l, err = OpenLockfile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []resolution{a, z} {
		got, ok := l.lookup(want.Name, want.For)
		if !ok || got.Digest != want.Digest || oci.PlatformString(got.Platform) != oci.PlatformString(want.Platform) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if _, ok := l.lookup(z.Name, win); ok {
		t.Error("found for another platform")
	}
}

func TestLockfileErrors(t *testing.T) {
	entry := `{"name":"docker.io/library/a:latest","for":{"os":"linux","architecture":"amd64"},"digest":"` + someDigest + `","platform":{"os":"linux","architecture":"amd64"}}`
	file := func(images string) string { return `{"version":1,"images":[` + images + `]}` }
	if _, err := parseLockfile([]byte(file(entry))); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ text, want string }{
		{"", "EOF"},
		{"{}", "version 0"},
		{`{"version":2}`, "version 2"},
		{file(entry) + "x", "more after"},
		{file(entry + "," + entry), "twice"},
		{file(strings.Replace(entry, "docker.io/library/a:latest", "a", 1)), `it has to be written "docker.io/library/a:latest"`},
		{file(strings.Replace(entry, "sha256:e", "sha256:x", 1)), "digest"},
		{file(strings.Replace(entry, "amd64", "", 1)), "no platform"},
		{file(strings.Replace(entry, `"name"`, `"nom"`, 1)), "unknown field"},
	}
	for _, tt := range tests {
		_, err := parseLockfile([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.text, err, tt.want)
		}
	}
}

func FuzzLockfile(f *testing.F) {
	f.Add([]byte(`{"version":1,"images":[{"name":"docker.io/library/a:latest","for":{"os":"linux","architecture":"amd64"},"digest":"` + someDigest +
		`","platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		images, err := parseLockfile(b)
		if err != nil {
			return
		}
		l := Lockfile{images: images}
		again, err := parseLockfile(l.encode())
		if err != nil {
			t.Fatalf("cannot be read again: %v", err)
		}
		if l2 := (&Lockfile{images: again}); !bytes.Equal(l.encode(), l2.encode()) {
			t.Fatalf("%s became %s", l.encode(), l2.encode())
		}
	})
}
