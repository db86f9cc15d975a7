package words

import (
	"strings"
	"testing"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"as it is, ü":            "as it is, ü",
		"two\nlines\tand a tab":  "two lines and a tab",
		"\x1b]0;title\a\x1b[31m": "]0;title[31m",
		"\xff":                   "\uFFFD",
		strings.Repeat("x", 5e3): strings.Repeat("x", maxWords) + "...",
	} {
		if got := Printable(in); got != want {
			t.Errorf("%.40q became %.40q", in, got)
		}
	}
}
