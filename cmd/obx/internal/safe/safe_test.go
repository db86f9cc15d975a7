package safe

import (
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"plain text", "plain text"},
		{"10%\r50%\r100%\r\n", "100%"},
		{"\x1b[1;31mred\x1b[0m", "red"},
		{"\x1b]0;title\adone", "done"},
		{"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"},
		{"\x1bPdcs\x1b\\x", "x"},
		{"\x1b(Bascii\x1bcreset\x1b7", "asciireset"},
		{"cut \x1b[3", "cut "},
		{"cut \x1b", "cut "},
		{"cut \x1b]0;t", "cut "},
		{"a\tb", "a       b"},
		{"中\tb", "中      b"},
		{strings.Repeat("\t", 128<<10), strings.Repeat(" ", 1<<20)}, // in time
		{"1234567\t\t12345678\tx", "1234567         12345678        x"},
		{"bell\a back\b nul\x00", "bell back nul"},
		{"c1 \u009b31mred", "c1 31mred"},
		{"bytes \xff\xc3", "bytes \ufffd\ufffd"},
		{"evil \u202ereversed", "evil reversed"},
	} {
		if got := Line(test.in); got != test.want {
			t.Errorf("%q: got %q, want %q", test.in, got, test.want)
		}
	}
}

func TestMessage(t *testing.T) {
	for in, want := range map[string]string{
		"plain, with é, 中 and 🙂":                       "plain, with é, 中 and 🙂",
		"first\nobx: done\n  indented\n":               "first\n  obx: done\n  indented",
		"a\tb\rc\x00":                                  "a\tb\\x0dc\\x00",
		"\x1b]52;c;aGk=\a \x1b[2J \x7f":                `\x1b]52;c;aGk=\x07 \x1b[2J \u007f`,
		"\u009b2J \u202eevil\u202c \u2066x\u2069":      `\u009b2J \u202eevil\u202c \u2066x\u2069`,
		"\x1b[31mno colours\x1b[0m \xff\x9b2J \ufffd.": `\x1b[31mno colours\x1b[0m \xff\x9b2J ` + "\ufffd.",
	} {
		if got := Message(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestEscaper(t *testing.T) {
	const red, off = "\x1b[1;31m", "\x1b[0m"
	for _, test := range []struct{ in, want string }{
		{"plain\n", "plain\n"},
		{red + "red" + off + " no\n", red + "red" + off + " no\n"},
		{red + "to the end\nnext\n", red + "to the end" + off + "\nnext\n"},
		{"\x1b[8mhidden", "\x1b[8mhidden" + off + "\n"},
		{"10%\r50%\r\r100%\r\nnext\r\n\r\n", "10%\n50%\n100%\nnext\n\n"},
		{"\rstart\r", "start\n"},
		{"\x1b[2J\x1b[1A\x1b]0;t\a", `\x1b[2J\x1b[1A\x1b]0;t\x07` + "\n"},
		{"\x1b]52;c;aGk=\x1b\\\x1b]8;;http://x\x1b\\", `\x1b]52;c;aGk=\x1b\\x1b]8;;http://x\x1b\` + "\n"},
		{"\x1b[>4;1m\x1b[?25l", `\x1b[>4;1m\x1b[?25l` + "\n"},
		{"\x1b[" + strings.Repeat("1", 80) + "m", `\x1b[` + strings.Repeat("1", 80) + "m\n"},
		{"a\bb\x0e\x05\x00\x7f", `a\x08b\x0e\x05\x00\u007f` + "\n"},
		{"\u009b2J \xc2\x9b \x9b2J é \u202e", `\u009b2J \u009b \x9b2J é \u202e` + "\n"},
		{"cut \x1b[3", `cut \x1b[3` + "\n"},
		{"cut \xe4\xb8", `cut \xe4\xb8` + "\n"},
		{"", ""},
	} {
		for size := 1; size <= len(test.in)+1; size++ {
			var e Escaper
			var got []byte
			for rest := test.in; rest != ""; rest = rest[min(size, len(rest)):] {
				got = e.Append(got, []byte(rest[:min(size, len(rest))]))
			}
			if got = e.End(got); string(got) != test.want {
				t.Errorf("%q in pieces of %d: got %q, want %q", test.in, size, got, test.want)
			}
		}
	}

	// With a prefix, no row of the terminal begins with what the stream says.
	e := Escaper{Prefix: "  | ", Width: func() int { return 31 }}
	in := "Got: forged\n\n" + strings.Repeat(" ", 27) + "Got: forged\r---> saved\r\n" + strings.Repeat("中", 20) + "x\tGot: forged"
	want := "  | Got: forged\n  | \n  | " + strings.Repeat(" ", 26) + "\n  |  Got: forged\n  | ---> saved\n  | " +
		strings.Repeat("中", 13) + "\n  | " + strings.Repeat("中", 7) + "x\tGot: f\n  | orged\n"
	if got := string(e.End(e.Append(nil, []byte(in)))); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

var colour = regexp.MustCompile("\x1b\\[[0-9;:]*m")

// harmless fails if a terminal does anything else with s than to show it, in colours.
func harmless(t *testing.T, s string) {
	t.Helper()
	if !utf8.ValidString(s) {
		t.Fatalf("%q is not UTF-8", s)
	}
	for _, r := range colour.ReplaceAllString(s, "") {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			t.Fatalf("%q has %q", s, r)
		}
	}
}

func FuzzSafe(f *testing.F) {
	f.Add([]byte("\x1b[1;31mred\x1b[0m\t中\r\x1b]0;x\a\x1b[2J\u009b\x9b\u202e\x1b"), 3)
	f.Add([]byte("\x1b["+strings.Repeat("0;", 50)+"m\r\n\xf0\x9f\x99"), 1)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if line := Line(string(in)); strings.ContainsAny(line, "\n\t\x1b") {
			t.Fatalf("%q is no line", line)
		} else {
			harmless(t, line)
		}
		msg := Message(string(in))
		harmless(t, msg)
		for i, line := range strings.Split(msg, "\n") {
			if i > 0 && line != "" && line[0] != ' ' {
				t.Fatalf("%q begins a line as obx does", msg)
			}
		}
		size = min(max(size, 1), 100)
		width := 30 + size
		e := Escaper{Prefix: "| ", Rest: "..", Width: func() int { return width }}
		var out []byte
		for rest := in; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			out = e.Append(out, rest[:min(size, len(rest))])
		}
		out = e.End(out)
		harmless(t, string(out))
		if len(out) > 0 && out[len(out)-1] != '\n' {
			t.Fatalf("%q does not end its last line", out)
		}
		for line := range strings.Lines(string(out)) {
			text, ok := strings.CutPrefix(line, "| ")
			if !ok {
				t.Fatalf("%q has a line without the prefix", out)
			}
			if all := colour.FindAllString(text, -1); len(all) > 0 && all[len(all)-1] != reset && all[len(all)-1] != "\x1b[m" {
				t.Fatalf("%q has colours that do not end with their line", out)
			}
			if n := utf8.RuneCountInString(colour.ReplaceAllString(line, "")); n > width {
				t.Fatalf("%q has %d characters in a row of %d", line, n, width)
			}
		}
		// How the stream is cut makes no difference.
		whole := Escaper{Prefix: e.Prefix, Rest: e.Rest, Width: e.Width}
		if got := whole.End(whole.Append(nil, in)); string(got) != string(out) {
			t.Fatalf("%q in pieces of %d: got %q, and %q at once", in, size, out, got)
		}
	})
}
