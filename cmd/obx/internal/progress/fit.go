package progress

import (
	"strings"

	"github.com/rivo/uniseg"
)

// fit cuts a line to so many columns, with an ellipsis where something is cut. It counts what a terminal shows: wide
// characters as two, combining ones as none.
func fit(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if len(s) <= width || uniseg.StringWidth(s) <= width {
		return s
	}
	used, rest, state := 0, s, -1
	for len(rest) > 0 {
		_, tail, w, next := uniseg.FirstGraphemeClusterInString(rest, state)
		if used+w > width-1 {
			break
		}
		used, rest, state = used+w, tail, next
	}
	return s[:len(s)-len(rest)] + "…"
}

// pad fills a line that fits with spaces.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-uniseg.StringWidth(s)))
}
