// Package safe makes text from outside harmless for a terminal: what steps print, and what specs, images, registries and
// caches have put into names, operations and errors. Nothing that it gives moves the cursor, hides or recolours what obx
// itself says, sets a title, fills the clipboard or asks the terminal for an answer. What is no such thing stays as it is.
//
// It is used in three forms, by who writes what:
//
//   - Writer stands before each terminal that obx writes to, so that nothing passes by. It shows a control character as an
//     escape, as \x1b, and lets colours pass, to the end of their line.
//   - Message is for errors and warnings, wherever they go: no line of one can pass for another message.
//   - Line is for one line in a display or a table: it drops what cannot be shown.
//
// An Escaper with a prefix is for the output of steps among lines of obx: each of its lines, and each row that the terminal
// would make of one, begins with the prefix.
package safe

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Message makes the text of an error or warning fit to be printed. Line breaks stay, but a line after the first is indented:
// so that no name and no server's answer in it can begin a line as obx does.
func Message(s string) string {
	var b strings.Builder
	s = strings.TrimRight(s, "\n")
	for i, r := range s {
		switch {
		case r == '\n' && i+1 < len(s) && s[i+1] != ' ' && s[i+1] != '\n':
			b.WriteString("\n  ")
		case r == '\n':
			b.WriteByte('\n')
		case r == utf8.RuneError:
			_, n := utf8.DecodeRuneInString(s[i:])
			b.WriteString(visible(r, s[i:i+n]))
		case acts(r):
			b.WriteString(visible(r, ""))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// acts reports a character that does something else on a terminal than to stand there.
func acts(r rune) bool {
	return r != '\t' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
}

// visible writes a character as an escape; bytes are those of one that is none.
func visible(r rune, bytes string) string {
	switch {
	case r == utf8.RuneError && len(bytes) == 1:
		return fmt.Sprintf(`\x%02x`, bytes[0])
	case r < 0x7f && acts(r):
		return fmt.Sprintf(`\x%02x`, r)
	case acts(r):
		return fmt.Sprintf(`\u%04x`, r) // in JSON, too
	}
	return string(r)
}

// An Escaper makes a stream harmless piece by piece, however it is cut. The zero Escaper is ready to use.
//
// A carriage return ends a line: a progress bar becomes a line for each of its states, and nothing is written over.
type Escaper struct {
	Prefix string     // of each line
	Rest   string     // of each row of a line but the first, beside the prefix
	Width  func() int // columns of the terminal; nil: lines are not broken

	partial  []byte // of a character or of a colour
	returned bool   // the last byte was a carriage return
	begun    bool   // something stands on the line
	colored  bool
	column   int
}

const (
	reset       = "\x1b[0m"
	longestSGR  = 64
	smallestRow = 20 // columns that a line has beside its prefix, however narrow the terminal is
)

// Append adds what is harmless of the next bytes of the stream to dst.
func (e *Escaper) Append(dst, p []byte) []byte {
	width := e.width()
	b := p
	if len(e.partial) > 0 {
		b = append(e.partial, p...)
		e.partial = nil
	}
	for len(b) > 0 {
		if e.returned {
			if e.returned = b[0] == '\r'; e.returned {
				b = b[1:]
				continue
			}
			if e.begun && b[0] != '\n' {
				dst = e.end(dst)
			}
		}
		n := 1
		switch c := b[0]; {
		case c == '\r':
			e.returned = true
		case c == '\n':
			dst = e.end(e.begin(dst))
		case c == '\x1b':
			seq, whole := sgr(b)
			if seq == len(b) && !whole {
				e.partial = bytes.Clone(b)
				return dst
			}
			if whole {
				n = seq
				dst = append(e.begin(dst), b[:n]...)
				e.colored = string(b[:n]) != "\x1b[m" && string(b[:n]) != reset
			} else {
				dst = e.put(dst, visible('\x1b', ""), width)
			}
		case !utf8.FullRune(b):
			e.partial = bytes.Clone(b)
			return dst
		default:
			var r rune
			r, n = utf8.DecodeRune(b)
			dst = e.put(dst, visible(r, string(b[:n])), width)
		}
		b = b[n:]
	}
	return dst
}

// End adds what is still to be said of a line that the stream has not ended. What comes next begins a new one.
func (e *Escaper) End(dst []byte) []byte {
	width := e.width()
	for _, c := range e.partial {
		if c < utf8.RuneSelf {
			dst = e.put(dst, visible(rune(c), ""), width)
		} else {
			dst = e.put(dst, visible(utf8.RuneError, string([]byte{c})), width)
		}
	}
	e.partial, e.returned = nil, false
	if e.begun {
		dst = e.end(dst)
	}
	return dst
}

// width is how many columns of a row are used; 0: all.
func (e *Escaper) width() int {
	if e.Width == nil {
		return 0
	}
	return max(e.Width()-1, len(e.Prefix)+len(e.Rest)+smallestRow)
}

// begin writes the prefix of a line.
func (e *Escaper) begin(dst []byte) []byte {
	if e.begun {
		return dst
	}
	e.begun, e.column = true, len(e.Prefix)
	return append(dst, e.Prefix...)
}

// end ends a line, and its colours.
func (e *Escaper) end(dst []byte) []byte {
	if e.colored {
		dst = append(dst, reset...)
	}
	e.begun, e.colored = false, false
	return append(dst, '\n')
}

// put writes one character, or its escape. How many columns one takes is the terminal's to say, and terminals disagree:
// what is no ASCII counts two.
func (e *Escaper) put(dst []byte, s string, width int) []byte {
	dst = e.begin(dst)
	columns := len(s)
	switch {
	case s == "\t":
		columns = tabStop - e.column%tabStop
	case s[0] >= utf8.RuneSelf:
		columns = 2
	}
	if width > 0 && e.column+columns > width {
		dst = append(e.begin(e.end(dst)), e.Rest...)
		e.column += len(e.Rest)
	}
	e.column += columns
	return append(dst, s...)
}

// sgr gives the length of the colour (ECMA-48: select graphic rendition) that b begins with, and whether it is whole. If it is not, n
// is len(b) if it may yet become one.
func sgr(b []byte) (n int, whole bool) {
	for n = 1; n < len(b) && n < longestSGR; n++ {
		switch c := b[n]; {
		case n == 1 && c == '[', n > 1 && (c >= '0' && c <= ';'): // digits, colon, semicolon
		case n > 1 && c == 'm':
			return n + 1, true
		default:
			return 0, false
		}
	}
	if n == longestSGR {
		return 0, false
	}
	return n, false
}

// A Writer makes all harmless that is written to a terminal. It may be used concurrently.
type Writer struct {
	Terminal *os.File

	mu  sync.Mutex
	esc Escaper
}

// Write writes to the terminal.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.Terminal.Write(w.esc.Append(nil, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

var _ io.Writer = (*Writer)(nil)
