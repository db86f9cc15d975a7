package reference

import (
	"strings"
	"testing"

	docker "github.com/distribution/reference"
)

const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

var names = []string{
	"", "busybox", "busybox:1.36", "busybox@" + sum, "busybox:1.36@" + sum, "ocaml/opam:debian-12", "a/b/c", "library/busybox", "library/a/b",
	"docker.io/busybox", "docker.io/a/b", "docker.io/library/busybox", "index.docker.io/busybox", "index.docker.io/a/b:c", "Docker.io/x",
	"localhost/x", "localhost:5000/x", "localhost:5000/x/y:z", "LOCALHOST/x", "127.0.0.1:80/x", "host/x", "HOST/x", "host:80", "host:80/x", "host:/x",
	"host:a/x", "a.b/c", "a.b:1/c:2", ".a/b", "a./b", "-a.b/c", "a-.b/c", "a--b.c/d", "a_b.c/d", "a..b/c", "a:1:2/c", ":1/c", ".", "./x", "../x", "/x", "x/",
	"a//b", "[::1]:5000/x:1", "[::1]/x", "[]/x", "[fe80::1%eth0]/x", "[::1]5000/x", "[::1]:/x", "[::1", "[AbC:1]/x", "::1/x",
	"a.b_c__d-e---f", "a___b", "a._b", "a.-b", "a--", "_a", "-a", ".a", "a.", "a_", "x/_a", "x/a_", "A", "aB/c", "x/Y", "a b", "é", "x/é", "x/İ", "\x00", "a\n",
	"x:", "x:y:z", "x:.y", "x:-y", "x:_y", "x:Y.z-_1", "x:y/z", "x:é", "x@", "x@sha256", "x@sha256:12", "x@" + sum + "0", "x@" + strings.ToUpper(sum),
	"x@sha512:" + strings.Repeat("0", 128), "x@sha384:" + strings.Repeat("0", 96), "x@md5:" + strings.Repeat("0", 32), "x@a+b:" + strings.Repeat("0", 32),
	"x@" + sum + "@" + sum, "x@" + sum + ":1", sum, sum[len("sha256:"):], "a/" + sum[len("sha256:"):], sum[len("sha256:"):] + ":1", strings.Repeat("A", 64),
	"x:" + strings.Repeat("t", 128), "x:" + strings.Repeat("t", 129), strings.Repeat("a", 247), strings.Repeat("a", 248), "a.b/" + strings.Repeat("a", 255),
	"a.b/" + strings.Repeat("a", 256), "a.b/" + strings.Repeat("a/", 127) + "a", "a.b/" + strings.Repeat("a/", 128) + "a",
}

func TestDockersRules(t *testing.T) {
	for _, s := range names {
		compare(t, s)
	}
}

func FuzzDockersRules(f *testing.F) {
	for _, s := range names {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { compare(t, s) })
}

// compare fails t if Parse reads a name in another way than Docker does. One thing is meant: where a host is none and yet its dot makes it one, as in
// a_b.c/d, Docker's package makes a name without a host of it.
func compare(t *testing.T, s string) {
	t.Helper()
	got, err := Parse(s)
	want, wantErr := docker.ParseNormalizedNamed(s)
	if wantErr == nil && docker.Domain(want) == "" {
		if err == nil {
			t.Errorf("Parse(%q) = %+v, though it has no host", s, got)
		}
		return
	}
	if (err == nil) != (wantErr == nil) {
		t.Errorf("Parse(%q) = %+v, %v; Docker has %v, %v", s, got, err, want, wantErr)
	}
	if err != nil || wantErr != nil {
		return
	}
	name := Name{Host: docker.Domain(want), Path: docker.Path(want)}
	if tagged, ok := want.(docker.Tagged); ok {
		name.Tag = tagged.Tag()
	}
	if digested, ok := want.(docker.Digested); ok {
		name.Digest = digested.Digest()
	}
	if got != name {
		t.Errorf("Parse(%q) = %+v, Docker has %+v", s, got, name)
	}
	if got, want := got.Familiar(), docker.FamiliarString(want); got != want {
		t.Errorf("Parse(%q).Familiar() = %q, Docker has %q", s, got, want)
	}
}

func TestIsTag(t *testing.T) {
	for _, s := range []string{"", "a", "A_1.b-c", "_", ".", "-", "a b", "é", "a\n", "a:b", "a/b", strings.Repeat("a", 128), strings.Repeat("a", 129)} {
		if got, want := IsTag(s), docker.TagRegexp.FindString(s) == s && s != ""; got != want {
			t.Errorf("IsTag(%q) = %v, Docker has %v", s, got, want)
		}
	}
}
