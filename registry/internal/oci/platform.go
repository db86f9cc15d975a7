package oci

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// NormalizePlatform gives each platform one spelling: arm64 is arm64/v8, amd64 is amd64/v1, arm is arm/v7; the implied variants of amd64 and
// arm64 are left out. Only Windows has an os.version.
func NormalizePlatform(p ocispec.Platform) ocispec.Platform {
	q := ocispec.Platform{
		OS:           strings.ToLower(p.OS),
		Architecture: strings.ToLower(p.Architecture),
		Variant:      strings.ToLower(p.Variant),
	}
	switch q.Architecture {
	case "x86_64", "x86-64":
		q.Architecture = "amd64"
	case "aarch64":
		q.Architecture = "arm64"
	case "i386":
		q.Architecture, q.Variant = "386", ""
	case "armhf":
		q.Architecture, q.Variant = "arm", "v7"
	case "armel":
		q.Architecture, q.Variant = "arm", "v6"
	}
	if q.Variant != "" && q.Variant[0] >= '0' && q.Variant[0] <= '9' {
		q.Variant = "v" + q.Variant
	}
	q.Variant = strings.TrimSuffix(q.Variant, ".0")
	switch {
	case q.Architecture == "amd64" && q.Variant == "v1", q.Architecture == "arm64" && q.Variant == "v8":
		q.Variant = ""
	case q.Architecture == "arm" && q.Variant == "":
		q.Variant = "v7"
	}
	if q.OS == "windows" {
		q.OSVersion = p.OSVersion
	}
	return q
}

// OrPlatform is have, a normalized platform of an image, with what it leaves out as wanted: to Docker, too, an image without a system or
// an architecture is for the machine's.
func OrPlatform(have, want ocispec.Platform) ocispec.Platform {
	if have.OS == "" {
		have.OS = want.OS
	}
	if have.Architecture == "" {
		have.Architecture, have.Variant = want.Architecture, want.Variant
	}
	return have
}

// PlatformString writes a platform for people, and for keys of records: OS/ARCH[/VARIANT], with the version of Windows.
func PlatformString(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	if p.OSVersion != "" {
		s += " (" + p.OSVersion + ")"
	}
	return s
}

// RunsOn reports whether an image for have runs on want; both are normalized. An older variant of the architecture does, and an older build of
// Windows.
func RunsOn(want, have ocispec.Platform) bool {
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return false
	}
	if have.Variant != want.Variant {
		w, wok := variantNumber(want)
		h, hok := variantNumber(have)
		if !wok || !hok || h > w {
			return false
		}
	}
	if want.OSVersion == "" || have.OSVersion == "" {
		return true
	}
	// The fourth number is the patch level, which does not have to agree.
	w, h := versionNumbers(want.OSVersion), versionNumbers(have.OSVersion)
	return slices.Compare(h[:min(len(h), 3)], w[:min(len(w), 3)]) <= 0
}

// ComparePlatforms orders what runs on one platform: the best comes last.
func ComparePlatforms(a, b ocispec.Platform) int {
	va, _ := variantNumber(a)
	vb, _ := variantNumber(b)
	return cmp.Or(
		cmp.Compare(va, vb),
		slices.Compare(versionNumbers(a.OSVersion), versionNumbers(b.OSVersion)),
	)
}

// variantNumber orders the variants of an architecture where they are ordered.
func variantNumber(p ocispec.Platform) (float64, bool) {
	switch p.Architecture {
	case "amd64", "arm64", "arm":
	default:
		return 0, false
	}
	if p.Variant == "" {
		return map[string]float64{"amd64": 1, "arm64": 8}[p.Architecture], true
	}
	v, err := strconv.ParseFloat(strings.TrimPrefix(p.Variant, "v"), 64)
	return v, err == nil
}

// versionNumbers reads 10.0.20348.1607.
func versionNumbers(s string) []int {
	var v []int
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			break
		}
		v = append(v, n)
	}
	return v
}
