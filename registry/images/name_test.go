package images

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestNormalize(t *testing.T) {
	cwd, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	layout := func(path string) string { return "oci:" + filepath.Join(cwd, filepath.FromSlash(path)) }
	tests := []struct{ ref, want string }{
		{"scratch", "scratch"},
		{"busybox", "docker.io/library/busybox:latest"},
		{"busybox:latest", "docker.io/library/busybox:latest"},
		{"index.docker.io/busybox", "docker.io/library/busybox:latest"},
		{"ocaml/opam:debian-12", "docker.io/ocaml/opam:debian-12"},
		{"docker.io/ocaml/opam", "docker.io/ocaml/opam:latest"},
		{"ghcr.io/x/y@" + someDigest, "ghcr.io/x/y@" + someDigest},
		{"ghcr.io/x/y:1@" + someDigest, "ghcr.io/x/y@" + someDigest},
		{"localhost/x", "localhost/x:latest"},
		{"localhost:5000/x", "localhost:5000/x:latest"},
		{"[::1]:5000/x:1", "[::1]:5000/x:1"},
		{"REGISTRY.example/x", "REGISTRY.example/x:latest"},
		{"oci:a", layout("a")},
		{"oci:a/b/", layout("a/b")},
		{"oci:a:1.0", layout("a") + ":1.0"},
		{"oci:./a:b/c", layout("a:b/c")},
		{"oci:a:b/", layout("a:b") + string(filepath.Separator)},
		{"oci:a@" + someDigest, layout("a") + "@" + someDigest},
		{"oci:a:t@" + someDigest, layout("a") + ":t@" + someDigest},
	}
	for _, tt := range tests {
		if runtime.GOOS == "windows" && strings.Contains(tt.ref, "a:b") {
			continue // no directory has such a name
		}
		got, err := Normalize(tt.ref)
		if err != nil || got != tt.want {
			t.Errorf("Normalize(%q) = %q, %v; want %q", tt.ref, got, err, tt.want)
			continue
		}
		if again, err := Normalize(got); err != nil || again != got {
			t.Errorf("Normalize(%q) = %q, %v; want it unchanged", got, again, err)
		}
	}
}

func TestNormalizeErrors(t *testing.T) {
	tests := []struct{ ref, want string }{
		{"", "is empty"},
		{"Busybox", "must be lowercase"},
		{"docker://busybox", `a name has no scheme: write "busybox"`},
		{"a b", "invalid reference format"},
		{"busybox:", "invalid reference format"},
		{"x@sha256:12", "invalid"},
		{"x@sha512:" + strings.Repeat("0", 128), "only sha256 is supported"},
		{strings.Repeat("a", 64), "64-byte hexadecimal"},
		{"oci:", "the directory is missing"},
		{"oci::tag", "the directory is missing"},
		{"oci:a:b c", "is no tag"},
		{"oci:a:-b", "is no tag"},
		{"oci:a:" + strings.Repeat("b", 129), "is no tag"},
		{"oci:a@sha256:12", "invalid"},
	}
	for _, tt := range tests {
		got, err := Normalize(tt.ref)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Normalize(%q) = %q, %v; want an error with %q", tt.ref, got, err, tt.want)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"scratch", "busybox", "a/b:c", "localhost:5000/x@" + someDigest, "oci:a:b/", "oci:C:\\x:y", "oci:x@" + someDigest} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		n, err := Normalize(ref)
		if err != nil {
			return
		}
		if again, err := Normalize(n); err != nil || again != n {
			t.Fatalf("Normalize(%q) = %q, but Normalize of that is %q, %v", ref, n, again, err)
		}
	})
}
