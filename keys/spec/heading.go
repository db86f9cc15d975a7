package spec

import (
	"fmt"
	"strconv"
	"strings"
)

// Heading prints an operation as OBuilder's log does: the sexp broken over lines by width 80 (no newline at the end).
func Heading(op Op) string {
	return format(operation(op)...)
}

// HeadingIn is the line of OBuilder's log for an operation, WORKDIR: OP. The working directory is the one before the
// operation; as it stands on the same line, its length decides where lines break and how far the next ones are indented.
func HeadingIn(workdir string, op Op) string {
	return format(&box{kind: vertical, indent: 2, parts: append([]any{workdir, ": "}, operation(op)...)})
}

// HeadingFrom is `(from IMAGE)` as the log prints it.
func HeadingFrom(from From) string {
	return format("(from ", atomParts(from.Image), ")")
}

// Quote prints an atom, quoted where the language needs it (OCaml's escapes, non-ASCII as \ddd).
func Quote(s string) string {
	if !mustQuote(s) {
		return s
	}
	return `"` + escape(s) + `"`
}

// sexp is the S-expression of an operation, as OBuilder writes it: fields in its order, without those that are empty.
func sexp(op Op) *node {
	switch o := op.(type) {
	case *Comment:
		return list("comment", o.Text)
	case *Workdir:
		return list("workdir", o.Dir)
	case *Shell:
		return list("shell", o.Argv)
	case *Env:
		return list("env", o.Name, o.Value)
	case *User:
		if o.Name != "" {
			return list("user", list("name", o.Name))
		}
		return list("user", list("uid", strconv.Itoa(o.UID)), list("gid", strconv.Itoa(o.GID)))
	case *Run:
		n := list("run")
		if len(o.Caches) > 0 {
			n.add(list("cache", mounts(o.Caches)))
		}
		if len(o.Network) > 0 {
			n.add(list("network", o.Network))
		}
		if len(o.Secrets) > 0 {
			n.add(list("secrets", mounts(o.Secrets)))
		}
		n.add(list("shell", o.Command))
		return n
	case *Copy:
		n := list("copy")
		if o.From != "" {
			n.add(list("from", list("build", o.From)))
		}
		n.add(list("src", o.Src))
		n.add(list("dst", o.Dst))
		if len(o.Exclude) > 0 {
			n.add(list("exclude", o.Exclude))
		}
		return n
	}
	return list(fmt.Sprintf("%T", op)) // a nil: Check refuses it
}

func mounts(ms []Mount) []*node {
	var items []*node
	for _, m := range ms {
		item := list(m.ID, list("target", m.Target))
		if len(m.Options) > 0 {
			pairs := &node{list: true}
			for _, o := range m.Options {
				pairs.add(list(o.Key, o.Value))
			}
			item.add(list("buildkit_options", pairs))
		}
		items = append(items, item)
	}
	return items
}

// list makes a list of words and nodes.
func list(parts ...any) *node {
	n := &node{list: true}
	for _, part := range parts {
		switch part := part.(type) {
		case string:
			n.add(atom(part))
		case []string:
			for _, s := range part {
				n.add(atom(s))
			}
		case *node:
			n.add(part)
		case []*node:
			n.kids = append(n.kids, part...)
		}
	}
	return n
}

func (n *node) add(kid *node) { n.kids = append(n.kids, kid) }

func atom(s string) *node { return &node{text: s, quoted: mustQuote(s)} }

// mustQuote is sexplib's rule for what cannot be a bare word.
func mustQuote(s string) bool {
	return s == "" || strings.Contains(s, "#|") || strings.Contains(s, "|#") ||
		strings.ContainsAny(s, `"();\`) || strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) >= 0
}

// escape is OCaml's: only printable ASCII stays as it is.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\b':
			b.WriteString(`\b`)
		case ' ' <= c && c <= '~':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\%03d`, c)
		}
	}
	return b.String()
}

// operation lays an operation out as OBuilder's pp_op does.
func operation(op Op) []any {
	n := sexp(op)
	fields := &box{}
	switch op.(type) {
	case *Copy:
		fields.kind = either
	case *Run:
		fields.kind = vertical
	default:
		return []any{oneLine(n)}
	}
	for i, field := range n.kids[1:] {
		if i > 0 {
			fields.parts = append(fields.parts, space{})
		}
		fields.parts = append(fields.parts, oneLine(field))
	}
	return []any{"(" + n.kids[0].text + " ", fields, ")"}
}

func oneLine(n *node) *box {
	b := &box{kind: horizontal}
	var add func(n *node)
	add = func(n *node) {
		if !n.list {
			b.parts = append(b.parts, atomParts(n.text))
			return
		}
		b.parts = append(b.parts, "(")
		for i, kid := range n.kids {
			if i > 0 {
				b.parts = append(b.parts, space{})
			}
			add(kid)
		}
		b.parts = append(b.parts, ")")
	}
	add(n)
	return b
}

// atomParts prints an atom as sexplib does for people: each line of a string on its own.
func atomParts(s string) any {
	i := strings.IndexByte(s, '\n')
	if i < 0 || i == len(s)-1 {
		return Quote(s)
	}
	b := &box{kind: structural, parts: []any{` "`}}
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			b.parts = append(b.parts, `\`, newline{}, `\n`)
		}
		b.parts = append(b.parts, escape(line))
	}
	b.parts = append(b.parts, `"`)
	return b
}

// The rest is what those layouts need of OCaml's Format: its boxes, with its margin and its rules for boxes that open too
// far to the right. (https://ocaml.org/manual/api/Format.html; margin and limit are those of format.ml.)

const (
	margin    = 78
	maxIndent = margin - 10
)

type kind int

const (
	horizontal kind = iota // never breaks
	vertical               // breaks at each space
	either                 // vertical if it does not fit
	structural             // has no spaces here, only forced newlines
)

type (
	box struct {
		kind   kind
		indent int
		parts  []any // string, space, newline or *box
	}
	space   struct{}
	newline struct{}
)

// size is the box's length on one line; forced newlines count for nothing.
func (b *box) size() int {
	n := 0
	for _, part := range b.parts {
		switch part := part.(type) {
		case string:
			n += len(part)
		case space:
			n++
		case *box:
			n += part.size()
		}
	}
	return n
}

type formatter struct {
	out  strings.Builder
	room int // on this line
	open []open
}

type open struct {
	breaks bool // at each space
	forced bool // at a box that opens too far to the right
	room   int  // on a new line
}

func format(parts ...any) string {
	f := &formatter{room: margin, open: []open{{room: margin}}}
	for _, part := range parts {
		f.print(part)
	}
	return f.out.String()
}

func (f *formatter) print(part any) {
	top := f.open[len(f.open)-1]
	switch part := part.(type) {
	case string:
		f.out.WriteString(part)
		f.room -= len(part)
	case space:
		if top.breaks {
			f.newline(top.room)
			return
		}
		f.out.WriteByte(' ')
		f.room--
	case newline:
		f.newline(top.room)
	case *box:
		// Format decides while the text streams in, with the room that was before the line is broken.
		fits := part.size() < f.room
		if margin-f.room > maxIndent && top.forced && top.room > f.room {
			f.newline(top.room)
		}
		o := open{room: f.room - part.indent}
		if part.kind == vertical || !fits {
			o.breaks = part.kind == vertical || part.kind == either
			o.forced = part.kind != horizontal
		}
		f.open = append(f.open, o)
		for _, p := range part.parts {
			f.print(p)
		}
		f.open = f.open[:len(f.open)-1]
	}
}

func (f *formatter) newline(room int) {
	indent := min(margin-room, maxIndent)
	f.room = margin - indent
	f.out.WriteByte('\n')
	f.out.WriteString(strings.Repeat(" ", indent))
}
