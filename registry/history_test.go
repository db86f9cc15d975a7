package registry

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/internal/oci"
)

// A history has an entry that is not empty for each layer, whatever the base image's was. In the table, small letters are entries, capitals
// those that are empty, and ? is one that was missing.
func TestFitHistory(t *testing.T) {
	t.Parallel()
	parse := func(s string) (hs []ocispec.History) {
		for _, r := range s {
			hs = append(hs, ocispec.History{CreatedBy: strings.ToLower(string(r)), EmptyLayer: r < 'a'})
		}
		return hs
	}
	format := func(hs []ocispec.History) (s string) {
		for _, h := range hs {
			switch {
			case h.Comment == oci.UnknownEntry && !h.EmptyLayer:
				s += "?"
			case h.EmptyLayer:
				s += strings.ToUpper(h.CreatedBy)
			default:
				s += h.CreatedBy
			}
		}
		return s
	}
	for _, c := range []struct {
		name, history string
		layers        int
		want          string
	}{
		{"fits", "aBc", 2, "aBc"},
		{"none", "", 2, "??"},
		{"no layers", "", 0, ""},
		{"shorter", "xY", 3, "??xY"},
		{"longer", "abCd", 2, "AbCd"},
		{"only empty ones", "AB", 1, "?AB"},
		{"all too many", "ab", 0, "AB"},
	} {
		hs := parse(c.history)
		if got := format(oci.FitHistory(hs, c.layers)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
		if got := format(hs); got != c.history {
			t.Errorf("%s: the history that was given is now %s", c.name, got)
		}
		var counts []int // as arrange gives where nothing is merged
		for i := range c.layers + 1 {
			counts = append(counts, i)
		}
		if got := format(mergedHistory(hs, counts)); got != c.want {
			t.Errorf("%s, pushed: got %s, want %s", c.name, got, c.want)
		}
	}
	// The second and third layer are one.
	if got := format(mergedHistory(parse("bcd"), []int{0, 1, -1, 2, 3})); got != "?Bcd" {
		t.Errorf("merged: %s", got)
	}
}
