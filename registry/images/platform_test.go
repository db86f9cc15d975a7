package images

import (
	"context"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/internal/oci"
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

func TestChoose(t *testing.T) {
	tests := []struct {
		name, want string
		have       []string
		choice     int // -1: none
	}{
		{"the one", "linux/amd64", []string{"linux/arm64", "linux/amd64", "linux/386"}, 1},
		{"no other", "linux/amd64", []string{"linux/arm64", "linux/386", "windows/amd64"}, -1},
		{"same variant, spelled out", "linux/arm64", []string{"linux/arm/v7", "linux/arm64/v8"}, 1},
		{"variant asked for, implied", "linux/arm64/v8", []string{"linux/arm64"}, 0},
		{"best of amd64", "linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v2", "linux/amd64/v4"}, 1},
		{"not a newer one", "linux/amd64", []string{"linux/amd64/v3", "linux/amd64"}, 1},
		{"none but newer", "linux/amd64", []string{"linux/amd64/v3"}, -1},
		{"best of arm", "linux/arm", []string{"linux/arm/v5", "linux/arm/v6", "linux/arm/v8"}, 1},
		{"no arm for arm64", "linux/arm64", []string{"linux/arm/v7"}, -1},
		{"first of equals", "linux/amd64", []string{"linux/amd64", "linux/amd64"}, 0},
		{"attestations", "linux/amd64", []string{"unknown/unknown", "linux/amd64"}, 1},
		{"newest Windows", "windows/amd64", []string{"windows/amd64/10.0.17763.99", "windows/amd64/10.0.20348.1", "windows/amd64/10.0.20348.12"}, 2},
		{"this Windows", "windows/amd64/10.0.20348.5", []string{"windows/amd64/10.0.17763.99", "windows/amd64/10.0.20348.9", "windows/amd64/10.0.26100.1"}, 1},
		{"older Windows", "windows/amd64/10.0.20348.5", []string{"windows/amd64/10.0.17763.99", "windows/amd64/10.0.26100.1"}, 0},
		{"no newer Windows", "windows/amd64/10.0.17763.1", []string{"windows/amd64/10.0.20348.9"}, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var entries []ocispec.Descriptor
			for i, s := range tt.have {
				p := parsePlatform(s)
				entries = append(entries, ocispec.Descriptor{
					MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(string(rune('a' + i))), Platform: &p,
				})
			}
			if len(entries) == 1 { // one alone would be taken for all platforms
				entries = append(entries, ocispec.Descriptor{MediaType: "application/other"})
			}
			var im Resolver
			got, err := im.choose(context.Background(), nil, entries, oci.NormalizePlatform(parsePlatform(tt.want)))
			switch {
			case tt.choice < 0 && err == nil:
				t.Errorf("got %s", oci.PlatformString(*got.Platform))
			case tt.choice < 0 && !strings.Contains(err.Error(), "there is no image for "+tt.want[:5]):
				t.Error(err)
			case tt.choice >= 0 && err != nil:
				t.Error(err)
			case tt.choice >= 0 && got.Digest != entries[tt.choice].Digest:
				t.Errorf("got %s, %s", got.Digest, oci.PlatformString(*got.Platform))
			}
		})
	}
}
