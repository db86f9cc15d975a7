package progress

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// tabStop is how far apart tab stops are.
const tabStop = 8

// Sanitize makes one line of a program's output safe to show in a line of a display: control sequences are dropped, so
// that output cannot move the cursor, set a title or answer a query; a carriage return starts the line again, as
// progress bars want it; tabs become spaces, and bytes that are no character U+FFFD.
func Sanitize(line []byte) string {
	if i := bytes.LastIndexByte(bytes.TrimRight(line, "\r\n"), '\r'); i >= 0 {
		line = line[i+1:]
	}
	var b strings.Builder
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		switch {
		case r == '\x1b':
			n = escape(line)
		case r == '\t':
			b.WriteString(strings.Repeat(" ", tabStop-uniseg.StringWidth(b.String())%tabStop))
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
		default:
			b.WriteRune(r)
		}
		line = line[n:]
	}
	return b.String()
}

// escape is the length of the escape sequence that b starts with (ECMA-48). One that is cut ends with b.
func escape(b []byte) int {
	if len(b) < 2 {
		return len(b)
	}
	switch c := b[1]; {
	case c == '[': // CSI: parameters, then a final byte
		for i := 2; i < len(b); i++ {
			if b[i] >= 0x40 && b[i] <= 0x7e {
				return i + 1
			}
		}
		return len(b)
	case strings.IndexByte("]PX^_", c) >= 0: // strings: until ST, or BEL
		for i := 2; i < len(b); i++ {
			if b[i] == '\a' {
				return i + 1
			}
			if b[i] == '\x1b' && i+1 < len(b) && b[i+1] == '\\' {
				return i + 2
			}
		}
		return len(b)
	case c >= 0x20 && c <= 0x2f: // intermediate bytes, then a final byte
		for i := 2; i < len(b); i++ {
			if b[i] >= 0x30 && b[i] <= 0x7e {
				return i + 1
			}
		}
		return len(b)
	case c >= 0x30 && c <= 0x7e:
		return 2
	}
	return 1
}

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
