package results

import (
	"slices"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
)

// Images have entries that are no variables, and some twice.
func TestEnviron(t *testing.T) {
	t.Parallel()
	var base ocispec.Image
	base.Config.Env = []string{"", "FOO", "=bar", "A=1", "C=", "A=2", "A", "B=x=y", "PATH=/nowhere", "with space=v"}
	got := Environ(&base, keys.Context{Env: []keys.EnvVar{{Name: "PATH", Value: "/bin"}}})
	if want := []string{"PATH=/bin", "C=", "A=2", "B=x=y", "with space=v"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Environ(nil, keys.Context{}); len(got) != 0 {
		t.Errorf("without a base: %q", got)
	}
}
