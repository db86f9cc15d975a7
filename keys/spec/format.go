package spec

import (
	"cmp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// width is where Format breaks lines, if it can.
const width = 80

// longHead is how long the word at the head of a list may be for the others to stand below each other right of it.
const longHead = 20

// Format prints a spec in obx's canonical layout; the result parses to the same tree, and comments are kept.
//
// An operation stands on one line if it fits there; else its fields stand below each other, and long strings are
// broken at spaces. Of blank lines between operations, one is kept. Words stay quoted or bare as they were written,
// and fields in their order. What a program changed after Parse is printed anew, with the comments around it.
func (s *Spec) Format() []byte {
	doc := &node{list: true}
	root := s.stageNode(&s.Stage)
	doc.add(root)
	if s.doc != nil {
		doc.last = s.doc.last
	}
	p := &printer{}
	p.elements(doc.elements(), 0, 0, 0)
	p.out.WriteByte('\n')
	return []byte(p.out.String())
}

// stageNode is what a stage says now, with the comments that it had.
func (s *Spec) stageNode(st *Stage) *node {
	n := s.renew(st.Pos, &node{list: true})
	for i := range st.Builds {
		n.add(s.buildNode(&st.Builds[i]))
	}
	if old := s.source[st.From.Pos]; old != nil && old.same(st.From) {
		n.add(old)
	} else {
		n.add(s.renew(st.From.Pos, list("from", st.From.Image)))
	}
	for _, op := range st.Ops {
		if op == nil {
			continue // Check refuses it
		}
		if old := s.source[op.Position()]; old != nil && old.same(op) {
			n.add(old)
		} else {
			n.add(s.renew(op.Position(), sexp(op)))
		}
	}
	return n
}

func (s *Spec) buildNode(b *Build) *node {
	stage := &node{list: true}
	if b.Stage != nil {
		stage = s.stageNode(b.Stage)
	}
	old := s.source[b.Pos]
	if old == nil {
		return list("build", b.Name, stage)
	}
	n := *old
	n.kids = []*node{old.kids[0], old.kids[1], stage}
	if name := *old.kids[1]; name.text != b.Name {
		name.text, name.quoted = b.Name, mustQuote(b.Name)
		n.kids[1] = &name
	}
	return &n
}

// renew gives a node the comments of the one that Parse found at a place: those inside come before it.
func (s *Spec) renew(pos Pos, n *node) *node {
	old := s.source[pos]
	if old == nil {
		return n
	}
	n.blank, n.before, n.after = old.blank, old.before, old.after
	if isStage(old) {
		n.last = old.last
		return n
	}
	n.before = append([]comment{}, n.before...)
	old.inside(func(c comment) {
		c.inline = false
		n.before = append(n.before, c)
	})
	return n
}

// inside visits the comments in a list.
func (n *node) inside(visit func(comment)) {
	for _, kid := range n.kids {
		for _, c := range kid.before {
			visit(c)
		}
		kid.inside(visit)
		for _, c := range kid.after {
			visit(c)
		}
	}
	for _, c := range n.last {
		visit(c)
	}
}

// isStage tells a spec's list of builds, from and operations by its looks.
func isStage(n *node) bool {
	if !n.list || len(n.kids) == 0 {
		return false
	}
	h := n.kids[0].head()
	return h == "from" || h == "build"
}

// An element is a comment or a node in a list, as the printer sees them: one after the other.
type element struct {
	node    *node
	comment comment
	blank   bool // a blank line before it, if it starts a line
	glued   bool // to the line of the one before it
}

// ends tells whether nothing but another glued comment may follow on the line.
func (e element) ends() bool { return e.node == nil && e.comment.ends() }

func (n *node) elements() []element {
	var es []element
	for _, kid := range n.kids {
		glue := false
		for _, c := range kid.before {
			es = append(es, element{comment: c, blank: c.blank, glued: glue})
			glue = c.inline
		}
		es = append(es, element{node: kid, blank: kid.blank, glued: glue})
		for _, c := range kid.after {
			es = append(es, element{comment: c, glued: true})
		}
	}
	for _, c := range n.last {
		es = append(es, element{comment: c, blank: c.blank})
	}
	return es
}

// A printer lays nodes out.
type printer struct {
	out strings.Builder
	col int
}

func (p *printer) write(s string) {
	p.out.WriteString(s)
	if i := strings.LastIndexByte(s, '\n'); i >= 0 {
		p.col = 0
		s = s[i+1:]
	}
	p.col += utf8.RuneCountInString(s)
}

func (p *printer) newline(indent int, blank bool) {
	if blank {
		p.out.WriteByte('\n')
	}
	p.write("\n" + strings.Repeat(" ", indent))
}

// room is what is left of the line when tail closing parentheses follow.
func (p *printer) room(tail int) int { return width - p.col - tail }

// elements prints a list's elements, all but the glued ones on lines of their own. The first starts where the printer
// is, and so many after it are kept beside it.
func (p *printer) elements(es []element, beside, indent, tail int) {
	for i, e := range es {
		switch {
		case i == 0:
		case e.glued || i <= beside && !es[i-1].ends():
			p.write(" ")
		default:
			p.newline(indent, e.blank)
		}
		if e.node == nil {
			p.comment(e.comment)
			continue
		}
		t := 0
		if i == len(es)-1 {
			t = tail
		}
		p.node(e.node, t)
	}
}

func (p *printer) comment(c comment) {
	if c.datum == nil {
		p.write(c.text)
		return
	}
	p.write("#; ")
	p.node(c.datum, 0)
}

// node prints a node at the present column, with tail closing parentheses to follow.
func (p *printer) node(n *node, tail int) {
	if s, ok := flat(n, p.room(tail)); ok {
		p.write(s)
		return
	}
	if !n.list {
		p.atom(n, tail)
		return
	}
	start := p.col
	p.write("(")
	es := n.elements()
	// A line comment cannot have the closing parenthesis on its line.
	closes := len(es) > 0 && es[len(es)-1].ends()
	if !closes {
		tail++
	} else {
		tail = 0
	}
	switch indent, beside := start+1, 0; {
	case !n.headed() || isStage(n):
		p.elements(es, beside, indent, tail)
	case n.plain():
		p.words(n, start, tail)
	case len(es) > 1 && es[1].node != nil && !n.kids[0].quoted && n.lists(1) && len(n.head()) <= longHead:
		p.elements(es, 1, indent+utf8.RuneCountInString(n.head())+1, tail)
	default:
		for beside+1 < len(es) && es[beside+1].node != nil && !es[beside+1].node.list {
			beside++ // (build NAME
		}
		p.elements(es, beside, indent, tail)
	}
	if closes {
		p.newline(start, false)
	}
	p.write(")")
}

// plain tells whether a list has neither lists nor comments in it.
func (n *node) plain() bool {
	for _, kid := range n.kids {
		if kid.list || len(kid.before)+len(kid.after) > 0 {
			return false
		}
	}
	return len(n.last) == 0
}

// lists tells whether all kids of a node from one on are lists.
func (n *node) lists(from int) bool {
	for _, kid := range n.kids[from:] {
		if !kid.list {
			return false
		}
	}
	return true
}

// words fills lines with the words of a list; a string that must be broken starts a line near the left.
func (p *printer) words(n *node, start, tail int) {
	indent := start + 1
	if head := n.kids[0]; !head.quoted && len(head.text) <= longHead {
		indent += utf8.RuneCountInString(head.text) + 1
	}
	broken := false
	for i, kid := range n.kids {
		t := 0
		if i == len(n.kids)-1 {
			t = tail
		}
		s, ok := flat(kid, p.room(t)-1)
		if i > 0 && !broken && (ok || i == 1 && !kid.quoted) {
			p.write(" " + cmp.Or(s, kid.text)) // a bare first argument would gain nothing from a new line
			continue
		}
		if i > 0 && kid.quoted {
			p.newline(start+1, false)
		} else if i > 0 {
			p.newline(indent, false)
		}
		if s, ok = flat(kid, p.room(t)); ok {
			p.write(s)
		} else {
			p.atom(kid, t)
		}
		broken = !ok
	}
}

// flat prints a node on one line, if the layout wants it so and there is room.
func flat(n *node, room int) (string, bool) {
	var b strings.Builder
	if !flatten(&b, n, room) || utf8.RuneCountInString(b.String()) > room {
		return "", false
	}
	return b.String(), true
}

func flatten(b *strings.Builder, n *node, room int) bool {
	if !n.list {
		if !n.quoted {
			b.WriteString(n.text)
			return true
		}
		if strings.Contains(strings.TrimRight(n.text, "\n"), "\n") {
			return false
		}
		b.WriteString(`"` + readable(n.text) + `"`)
		return true
	}
	if isStage(n) && len(n.kids) > 1 {
		return false
	}
	b.WriteByte('(')
	es := n.elements()
	for i, e := range es {
		if b.Len() > room*utf8.UTFMax {
			return false
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		switch {
		case e.node != nil:
			if !flatten(b, e.node, room) {
				return false
			}
		case e.ends() || strings.Contains(e.comment.text, "\n"):
			return false
		case i+1 < len(es) && !es[i+1].glued:
			return false // it stands at the end of a line, or on its own
		case i+1 == len(es) && !e.glued:
			return false
		case e.comment.datum != nil:
			b.WriteString("#; ")
			if !flatten(b, e.comment.datum, room) {
				return false
			}
		default:
			b.WriteString(e.comment.text)
		}
	}
	b.WriteByte(')')
	return true
}

// atom prints a string that does not fit, or that holds several lines: a backslash ends each line but the last.
func (p *printer) atom(n *node, tail int) {
	if !n.quoted {
		p.write(n.text)
		return
	}
	indent := p.col + 1
	p.write(`"`)
	for i, line := range breakString(n.text, max(width-indent-tail-1, 20)) {
		if i > 0 {
			p.write(`\`)
			p.newline(indent+line.indent, false)
		}
		p.write(line.text)
	}
	p.write(`"`)
}

// A stringLine is one line of a string's broken form: escaped, and how much further right it starts.
type stringLine struct {
	text   string
	indent int
}

// breakString cuts a string into lines of some length where it can. Each of the string's own lines starts with \n on a
// new one. In one that is too long, commands joined by && or || get a line each, and what is still too long is filled.
// The language skips blanks at the start of a line: what follows a cut can be indented, and is never a blank.
func breakString(s string, room int) []stringLine {
	const step = 2
	body := strings.TrimRight(s, "\n")
	var lines []stringLine
	own := strings.SplitAfter(body, "\n")
	for i, line := range own {
		line = strings.TrimSuffix(line, "\n")
		if i > 0 {
			line = "\n" + line
		}
		if length(line) <= room {
			lines = append(lines, stringLine{readable(line), 0})
			continue
		}
		commands := cutCommands(line)
		for j, command := range commands {
			indent := 0
			if len(own) > 1 && j > 0 {
				indent = step
			}
			filled := ""
			for _, word := range fillers(command, room-indent) {
				if filled != "" && length(filled)+length(word) > room-indent {
					lines = append(lines, stringLine{readable(filled), indent})
					if filled = ""; len(own) > 1 || len(commands) > 1 {
						indent = step
						if j > 0 && len(own) > 1 {
							indent = 2 * step
						}
					}
				}
				filled += word
			}
			lines = append(lines, stringLine{readable(filled), indent})
		}
	}
	lines[len(lines)-1].text += readable(s[len(body):])
	return lines
}

// cutCommands cuts a line before each && and || that is not in parentheses.
func cutCommands(line string) []string {
	depth := 0
	return cut(line, func(i int) bool {
		depth = max(0, depth+strings.Count(line[i-1:i], "(")-strings.Count(line[i-1:i], ")"))
		return depth == 0 && operator(line[i:])
	})
}

func operator(s string) bool { return strings.HasPrefix(s, "&& ") || strings.HasPrefix(s, "|| ") }

// fillers cuts a command before each operator, and where that is not enough, before each word.
func fillers(command string, room int) []string {
	var parts []string
	operands := cut(command, func(i int) bool { return operator(command[i:]) || strings.HasPrefix(command[i:], "| ") })
	for _, operand := range operands {
		if length(operand) <= room {
			parts = append(parts, operand)
		} else {
			parts = append(parts, cut(operand, func(int) bool { return true })...)
		}
	}
	return parts
}

// cut cuts a line at the places that are good, but only between a blank and something else. It asks about each place.
func cut(line string, good func(i int) bool) []string {
	var parts []string
	start := 0
	for i := 1; i < len(line); i++ {
		if good(i) && blank(line[i-1]) && !blank(line[i]) && strings.TrimLeft(line[start:i], " \t\n") != "" {
			parts = append(parts, line[start:i])
			start = i
		}
	}
	return append(parts, line[start:])
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

func length(s string) int { return utf8.RuneCountInString(readable(s)) }

// readable escapes what a string cannot hold as it is, or what cannot be seen.
func readable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r < utf8.RuneSelf || r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) {
			b.WriteString(escape(s[i : i+n]))
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}
