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
	if len(s) <= width || columns(s) <= width {
		return s
	}
	used, rest, state := 0, s, -1
	for len(rest) > 0 {
		cluster, tail, _, next := uniseg.FirstGraphemeClusterInString(rest, state)
		w := columns(cluster)
		if used+w > width-1 {
			break
		}
		used, rest, state = used+w, tail, next
	}
	return s[:len(s)-len(rest)] + "…"
}

// pad fills a line that fits with spaces.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-columns(s)))
}

// columns is how many columns a line has on the terminal that shows it widest: many show each character of a joined one, and a line that is
// wider than thought is broken into rows that begin with what a step printed.
func columns(s string) int {
	alone := 0
	for _, r := range s {
		alone += uniseg.StringWidth(string(r))
	}
	return max(alone, uniseg.StringWidth(s))
}
