package safe

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// tabStop is how far apart tab stops are.
const tabStop = 8

// Line makes one line of a program's output safe to show in a line of a display or table: control sequences are dropped,
// so that output cannot move the cursor, set a title or answer a query; a carriage return starts the line again, as
// progress bars want it; tabs become spaces, and bytes that are no character U+FFFD.
func Line(s string) string {
	line := []byte(s)
	if i := bytes.LastIndexByte(bytes.TrimRight(line, "\r\n"), '\r'); i >= 0 {
		line = line[i+1:]
	}
	var b strings.Builder
	stop := 0 // where the last tab ended: what is before it is not measured again
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		switch {
		case r == '\x1b':
			n = escape(line)
		case r == '\t':
			b.WriteString("        "[uniseg.StringWidth(b.String()[stop:])%tabStop:])
			stop = b.Len()
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
