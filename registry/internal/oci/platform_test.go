package oci

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// parsePlatform reads linux/arm/v7, windows/amd64/10.0.1.2.
func parsePlatform(s string) ocispec.Platform {
	parts := strings.Split(s, "/")
	p := ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) > 2 && p.OS == "windows" {
		p.OSVersion = parts[2]
	} else if len(parts) > 2 {
		p.Variant = parts[2]
	}
	return p
}

func TestNormalizePlatform(t *testing.T) {
	for s, want := range map[string]string{
		"linux/amd64":            "linux/amd64",
		"Linux/x86_64":           "linux/amd64",
		"linux/amd64/v1":         "linux/amd64",
		"linux/amd64/v3":         "linux/amd64/v3",
		"linux/arm64":            "linux/arm64",
		"linux/arm64/v8":         "linux/arm64",
		"linux/arm64/8":          "linux/arm64",
		"linux/aarch64/v8.0":     "linux/arm64",
		"linux/arm":              "linux/arm/v7",
		"linux/arm/6":            "linux/arm/v6",
		"linux/armel":            "linux/arm/v6",
		"linux/i386":             "linux/386",
		"windows/amd64/10.0.1.2": "windows/amd64 (10.0.1.2)",
	} {
		p := NormalizePlatform(parsePlatform(s))
		if got := PlatformString(p); got != want {
			t.Errorf("%s is %s, want %s", s, got, want)
		}
		if again := PlatformString(NormalizePlatform(p)); again != PlatformString(p) {
			t.Errorf("%s: normalized again it is %s", s, again)
		}
	}
}
