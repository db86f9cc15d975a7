package spec

import (
	"fmt"
	"strings"
)

// maxDepth bounds nesting, and with it the recursion of all that walks a tree. A nested build takes two levels.
const maxDepth = 500

// A node is one S-expression, with what a printer needs to give it back as it was written.
type node struct {
	pos    Pos
	list   bool
	kids   []*node // of a list
	text   string  // of an atom: its value
	quoted bool    // an atom in double quotes

	blank  bool      // a blank line stands before it
	before []comment // since the node before it
	after  []comment // on its last line, with nothing but a closing parenthesis behind them
	last   []comment // of a list: behind its last kid
}

// A comment is anything that the language skips.
type comment struct {
	text   string // as written, with its ; or #| and |#
	datum  *node  // what a #; takes out
	blank  bool   // a blank line stands before it
	inline bool   // what follows it stands on the same line

	start, end int // lines
}

// ends tells whether a comment takes the rest of its line.
func (c comment) ends() bool { return c.datum == nil && c.text[0] == ';' }

// A reader turns text into nodes, by the rules of OCaml's sexplib.
type reader struct {
	file string
	text string
	off  int
	line int
	bol  int // where the line starts
	ink  int // where the first thing on it starts that is no space

	depth  int
	broken bool // by a mistake that makes the shape of the tree doubtful
	errs   ErrorList
	spread []int // where strings begin that go over several lines, or to the end

	// A second reading guesses where a mistake in the shape is.
	guess bool // trust the indentation
	final int  // where the last list begins
	cut   int  // if not 0, the string that begins before this offset ends on its line
	ended bool // what is open at the end of the text has been told
}

// maxGuess bounds what is read up to 31 times. Nobody types as much.
const maxGuess = 1 << 20

// readDocument reads a text as a list without parentheses. If parentheses or quotes are not in pairs, it looks for the place where the
// layout says that one is missing or too many, so that the rest can be read as it was meant.
func readDocument(file, text string) (*reader, *node) {
	first := newReader(file, text)
	doc := first.document()
	if !first.broken || len(text) > maxGuess {
		return first, doc
	}
	const tries = 30 // strings over several lines, any of which may be the one whose quote is missing
	best, final := first, lastList(text)
	for _, cut := range append([]int{0}, first.spread[:min(len(first.spread), tries)]...) {
		r := newReader(file, text)
		r.guess, r.final, r.cut = true, final, cut
		if d := r.document(); !r.broken && (best.broken || len(r.errs) < len(best.errs)) {
			best, doc = r, d
		}
	}
	return best, doc
}

func newReader(file, text string) *reader {
	r := &reader{file: file, text: text, line: 1}
	if strings.HasPrefix(text, "\ufeff") {
		r.off = len("\ufeff")
	}
	r.begin()
	return r
}

// begin notes that a line starts at off.
func (r *reader) begin() {
	r.bol = r.off
	r.ink = len(r.text) - len(strings.TrimLeft(r.text[r.off:], " \t\f\r"))
}

func (r *reader) pos() Pos { return Pos{Line: r.line, Col: r.off - r.bol + 1} }

func (r *reader) errorf(pos Pos, format string, args ...any) {
	r.errs = append(r.errs, &Error{r.file, pos, fmt.Sprintf(format, args...)})
}

// fail is errorf for a mistake behind which nothing can be read.
func (r *reader) fail(pos Pos, format string, args ...any) {
	r.errorf(pos, format, args...)
	r.broken = true
	r.off = len(r.text)
}

func (r *reader) eof() bool { return r.off >= len(r.text) }

func (r *reader) at(prefix string) bool { return strings.HasPrefix(r.text[r.off:], prefix) }

// newline steps over the line feed at off.
func (r *reader) newline() {
	r.off++
	r.line++
	r.begin()
}

// space skips white space, and tells whether that held a blank line.
func (r *reader) space() (blank bool) {
	line := r.line
	for !r.eof() {
		switch r.text[r.off] {
		case ' ', '\t', '\f':
			r.off++
		case '\r':
			r.carriageReturn()
		case '\n':
			r.newline()
		default:
			return r.line > line+1
		}
	}
	return r.line > line+1
}

// carriageReturn steps over a carriage return, which must belong to the end of a line.
func (r *reader) carriageReturn() {
	if !r.at("\r\n") {
		r.errorf(r.pos(), "carriage return that does not end a line")
	}
	r.off++
}

// document reads the whole text as a list without parentheses.
func (r *reader) document() *node {
	doc := &node{list: true, pos: r.pos()}
	stray := false
	for {
		r.items(doc)
		if stray && len(doc.kids) > 1 {
			r.broken = true // another one has closed what goes on
		}
		if r.eof() {
			return doc
		}
		r.errorf(r.pos(), "closing parenthesis without an opening one")
		stray = true
		r.off++
	}
}

// leaves tells, in a second reading, whether what comes next is out of a list by its indentation, so that the list should have ended. The
// outermost list may have its items at the margin.
func (r *reader) leaves(list *node) bool {
	if !r.guess || r.depth < 2 || r.eof() || r.off > r.ink {
		return false
	}
	if r.text[r.off] == ')' {
		return r.pos().Col < list.pos.Col
	}
	return r.pos().Col <= list.pos.Col
}

// early tells, in a second reading, whether the parenthesis at off closes the outermost list although more comes.
func (r *reader) early() bool { return r.guess && r.depth == 1 && r.off < r.final }

// lastList is where the last list of a text begins: the last opening parenthesis that is in no comment of a line.
func lastList(text string) int {
	for {
		i := strings.LastIndexByte(text, '(')
		line := strings.LastIndexByte(text[:max(i, 0)], '\n') + 1
		if i < 0 || !strings.Contains(text[line:i], ";") {
			return i
		}
		text = text[:line]
	}
}

// items adds to a list what stands before the next closing parenthesis or the end of the text.
func (r *reader) items(list *node) {
	var pending []comment // since the last kid
	var trailing int      // so many of them began on the line where that kid, or the comment before, ended
	line := 0             // where it ended
	attach := func() {
		if n := len(list.kids); n > 0 {
			kid := list.kids[n-1]
			kid.after = append(kid.after, pending[:trailing]...)
			pending = pending[trailing:]
		}
	}
	if len(list.kids) > 0 { // a document goes on behind a stray parenthesis
		line = r.line
	}
	for {
		blank := r.space()
		if comments := r.comments(blank); comments != nil {
			for _, c := range comments {
				if len(pending) == trailing && c.start == line && len(list.kids) > 0 {
					trailing++
					line = c.end
				}
				pending = append(pending, c)
			}
			continue
		}
		if !r.eof() && r.text[r.off] == ')' && r.early() {
			r.errorf(r.pos(), "closing parenthesis without an opening one: more follows")
			r.off++
			continue
		}
		if r.eof() || r.text[r.off] == ')' || r.leaves(list) {
			attach()
			list.last = append(list.last, pending...)
			inline(list.last, 0)
			return
		}
		start := r.line
		n := len(pending)
		if n == 0 || trailing < n || pending[n-1].ends() || pending[n-1].end != start {
			attach()
		}
		inline(pending, start)
		kid := r.sexp()
		kid.blank = blank
		kid.before = pending
		list.kids = append(list.kids, kid)
		pending, trailing, line = nil, 0, r.line
	}
}

// inline marks the comments that have the next one, or a node that starts at a line, on their line.
func inline(comments []comment, start int) {
	for i := range comments {
		next := start
		if i+1 < len(comments) {
			next = comments[i+1].start
		}
		comments[i].inline = !comments[i].ends() && comments[i].end == next
	}
}

// comments reads the comment at off, if there is one: with #; also those before the node that it takes out.
func (r *reader) comments(blank bool) []comment {
	if r.eof() {
		return nil
	}
	c := comment{start: r.line, blank: blank}
	from := r.off
	switch {
	case r.text[r.off] == ';':
		for !r.eof() && r.text[r.off] != '\n' {
			if r.text[r.off] == '\r' {
				r.carriageReturn()
				continue
			}
			r.off++
		}
		c.text = strings.TrimRight(r.text[from:r.off], " \t\f\r")
	case r.at("#|"):
		r.block()
		c.text = strings.ReplaceAll(r.text[from:r.off], "\r\n", "\n")
	case r.at("#;"):
		return r.discard(blank)
	default:
		return nil
	}
	c.end = r.line
	return []comment{c}
}

// block skips a block comment. Strings in it hide its end, as in OCaml.
func (r *reader) block() {
	start := r.pos()
	depth := 0
	for !r.eof() {
		switch {
		case r.at("#|"):
			depth++
			r.off += 2
		case r.at("|#"):
			depth--
			r.off += 2
			if depth == 0 {
				return
			}
		case r.text[r.off] == '\n':
			r.newline()
		case r.text[r.off] == '"':
			if !r.skipString() {
				r.errorf(start, "block comment without an end: a double quote in it opens a string that does not end")
				r.broken = r.depth > 0
				return
			}
		default:
			r.off++
		}
	}
	r.errorf(start, "block comment without an end")
	r.broken = r.depth > 0
}

func (r *reader) skipString() bool {
	for r.off++; !r.eof(); {
		switch r.text[r.off] {
		case '"':
			r.off++
			return true
		case '\n':
			r.newline()
		case '\\':
			r.off++
			if !r.eof() && r.text[r.off] != '\n' {
				r.off++
			}
		default:
			r.off++
		}
	}
	return false
}

// discard reads a #; and the node that it takes out. Comments between the two come before it, and
// #; #; A B is the same as #; A #; B.
func (r *reader) discard(blank bool) []comment {
	start := r.pos()
	if r.depth++; r.depth > maxDepth {
		r.fail(start, "nested deeper than %d levels", maxDepth)
		return []comment{}
	}
	defer func() { r.depth-- }()
	r.off += len("#;")
	var comments []comment
	for {
		more := r.comments(r.space() && len(comments) > 0)
		if more == nil {
			break
		}
		comments = append(comments, more...)
	}
	if r.eof() || r.text[r.off] == ')' {
		if !r.broken {
			r.errorf(start, "#; with no S-expression behind it")
		}
		return append([]comment{}, comments...)
	}
	c := comment{start: start.Line}
	if len(comments) > 0 {
		comments[0].blank = blank
		c.start = r.line
	} else {
		c.blank = blank
	}
	c.datum = r.sexp()
	c.end = r.line
	return append(comments, c)
}

// sexp reads the atom or list at off.
func (r *reader) sexp() *node {
	n := &node{pos: r.pos()}
	switch r.text[r.off] {
	case '"':
		n.quoted = true
		n.text = r.quoted()
	case '(':
		n.list = true
		if r.depth++; r.depth > maxDepth {
			r.fail(n.pos, "nested deeper than %d levels", maxDepth)
			return n
		}
		r.off++
		r.items(n)
		r.close(n)
		r.depth--
	default:
		from := r.off
		for !r.eof() && !strings.ContainsRune("();\" \t\f\r\n", rune(r.text[r.off])) {
			r.off++
		}
		n.text = r.text[from:r.off]
		for _, mark := range []string{"#|", "|#"} {
			if strings.Contains(n.text, mark) {
				r.errorf(n.pos, "%s in the bare word %s: put the word in double quotes, or a space before the comment", mark, n.text)
				break
			}
		}
	}
	return n
}

// close ends a list, where it has a closing parenthesis or should have one.
func (r *reader) close(n *node) {
	switch {
	case r.leaves(n):
		r.errorf(n.pos, "opening parenthesis without a closing one before line %d", r.line)
	case !r.eof():
		r.off++
	case r.broken || r.ended:
	case r.guess:
		r.errorf(n.pos, "opening parenthesis without a closing one")
		r.ended = true
	default:
		r.fail(n.pos, "opening parenthesis without a closing one")
	}
}

// quoted reads a string.
func (r *reader) quoted() string {
	start := r.pos()
	var b strings.Builder
	r.off++
	if r.off == r.cut {
		return r.cutString(start)
	}
	from := r.off
	for !r.eof() {
		switch c := r.text[r.off]; c {
		case '"':
			r.off++
			if r.line > start.Line {
				r.spread = append(r.spread, from)
			}
			return b.String()
		case '\\':
			r.escape(&b)
		case '\n':
			b.WriteByte(c)
			r.newline()
		default:
			b.WriteByte(c)
			r.off++
		}
	}
	r.spread = append(r.spread, from)
	r.fail(start, "string without an end")
	return ""
}

// cutString takes a string without an end for one that ends on its line, before the parentheses there.
func (r *reader) cutString(start Pos) string {
	r.errorf(start, "string without an end")
	line, _, more := strings.Cut(r.text[r.off:], "\n")
	text := strings.TrimRight(line, ") \t\r")
	r.off += len(text)
	if text == line && !more {
		r.ended = true // the missing parentheses were in the string, or come after it
	}
	return text
}

// escape reads what a backslash in a string begins.
func (r *reader) escape(b *strings.Builder) {
	start := r.pos()
	r.off++
	if r.eof() {
		return // a string without an end
	}
	c := r.text[r.off]
	switch c {
	case '\n', '\r':
		if c == '\r' {
			r.off++
			if r.eof() || r.text[r.off] != '\n' {
				b.WriteByte(c)
				return
			}
		}
		r.newline()
		for !r.eof() && (r.text[r.off] == ' ' || r.text[r.off] == '\t') {
			r.off++
		}
		return
	case 'n':
		b.WriteByte('\n')
	case 't':
		b.WriteByte('\t')
	case 'r':
		b.WriteByte('\r')
	case 'b':
		b.WriteByte('\b')
	case '\\', '"', '\'':
		b.WriteByte(c)
	case 'x':
		r.off++
		r.numeric(b, start, 16, 2)
		return
	case '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		r.numeric(b, start, 10, 3)
		return
	default:
		b.WriteByte('\\')
		b.WriteByte(c)
	}
	r.off++
}

// numeric reads the digits of an escape.
func (r *reader) numeric(b *strings.Builder, start Pos, base, digits int) {
	value := 0
	for range digits {
		d := -1
		if !r.eof() {
			c := r.text[r.off]
			if 'A' <= c && c <= 'F' {
				c += 'a' - 'A'
			}
			d = strings.IndexByte("0123456789abcdef"[:base], c)
		}
		if d < 0 {
			r.errorf(start, `bad escape in a string: write \ with three decimal digits, \x with two hexadecimal ones, or \\ for a backslash`)
			return
		}
		value = value*base + d
		r.off++
	}
	if value > 255 {
		r.errorf(start, `bad escape in a string: \%d is more than \255`, value)
		return
	}
	b.WriteByte(byte(value))
}
