package oci

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestFitHistory looks for an entry that is not empty for each layer, whatever the base image's history was. In the table, small letters are entries, capitals
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
			case h.Comment == unknownEntry && !h.EmptyLayer:
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
		if got := format(FitHistory(hs, c.layers)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
		if got := format(hs); got != c.history {
			t.Errorf("%s: the history that was given is now %s", c.name, got)
		}
	}
}
