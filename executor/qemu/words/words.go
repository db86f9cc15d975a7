// Package words makes what a machine, or a program that obx runs for one, has said fit for an error of obx. Words of a machine are hostile: they may be
// endless, and may be written for a terminal. The package refuses to know who speaks.
package words

import (
	"bytes"
	"strings"
	"sync"
	"unicode"
)

// maxWords is how much of a machine's words is in an error, in bytes.
const maxWords = 2 << 10

// Printable makes words of a machine fit for an error that is printed: printable characters on one line, and not too many.
func Printable(s string) string {
	if len(s) > maxWords {
		s = s[:maxWords] + "..."
	}
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case unicode.IsSpace(r):
			return ' '
		}
		return -1
	}, s)
}

// Last is the last n lines, as one line that is Printable.
func Last(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return Printable(strings.Join(lines, "; "))
}

// A Tail keeps the end of what is written to it, 16 to 32 KiB. The zero Tail is empty. Its methods may be called at the same time.
type Tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailSize = 16 << 10

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if t.buf.Len() > 2*tailSize {
		t.buf.Next(t.buf.Len() - tailSize)
	}
	return len(p), nil
}

func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
