package spec

import (
	"cmp"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Parse reads one spec. Its error, if any, is an ErrorList with every mistake found, in order of position.
func Parse(file string, text []byte) (*Spec, error) {
	s, errs := ParsePartial(file, text)
	if len(errs) > 0 {
		return nil, errs
	}
	return s, nil
}

// ParsePartial is Parse that gives what could be understood of a spec with mistakes too. That is good for one thing: Check finds
// more mistakes in it, which ErrorList.Merge adds.
func ParsePartial(file string, text []byte) (*Spec, ErrorList) {
	r, doc := readDocument(file, string(text))
	p := &parser{file: file, source: map[Pos]*node{}}
	s := &Spec{File: file, source: p.source, doc: doc}
	switch name, pos := instruction(string(text)); {
	case name != "":
		r.errs = ErrorList{{file, pos, "this is a Dockerfile (" + name + "), and no spec: obx help spec shows how the same is written"}}
	case r.broken: // what the grammar says of half a tree would only confuse
	case len(doc.kids) == 0:
		p.errorf(r.pos(), "no spec here: expected ((from IMAGE) OPERATION...)")
	default:
		s.Stage = p.stage(p.whole(doc))
	}
	errs := r.errs.Merge(p.errs)
	s.partial = len(errs) > 0
	return s, errs
}

// instruction finds the first instruction of a text that is a Dockerfile.
func instruction(text string) (name string, pos Pos) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch strings.ToUpper(word) {
		case "":
			continue
		case "FROM", "ARG", "RUN", "COPY", "ADD", "ENV", "WORKDIR", "LABEL", "USER", "CMD", "ENTRYPOINT":
			return strings.ToUpper(word), Pos{n, 1}
		}
		if !strings.HasPrefix(word, "#") || strings.HasPrefix(word, "#|") || strings.HasPrefix(word, "#;") {
			return "", Pos{}
		}
	}
	return "", Pos{}
}

// whole is the node of a document's one stage. If there are several, it is what they were most likely meant to be together.
func (p *parser) whole(doc *node) *node {
	first := doc.kids[0]
	if len(doc.kids) == 1 {
		return first
	}
	p.errorf(doc.kids[1].pos, "a second S-expression: a spec is one, ((from IMAGE) OPERATION...) with parentheses around all of it")
	if first.head() != "" {
		return doc
	}
	all := &node{list: first.list, pos: first.pos, text: first.text, kids: slices.Clone(first.kids)}
	for _, n := range doc.kids[1:] {
		if n.head() != "" { // not another spec
			all.kids = append(all.kids, n)
		}
	}
	return all
}

// A parser turns nodes into a spec, and goes on after mistakes.
type parser struct {
	file   string
	errs   ErrorList
	source map[Pos]*node
}

func (p *parser) errorf(pos Pos, format string, args ...any) {
	p.errs = append(p.errs, &Error{p.file, pos, fmt.Sprintf(format, args...)})
}

// keep remembers what the node of a stage, build, from or operation looks like.
func (p *parser) keep(n *node) { p.source[n.pos] = n }

func (p *parser) stage(n *node) Stage {
	st := Stage{Pos: n.pos}
	if !n.list {
		p.errorf(n.pos, "expected a list ((from IMAGE) OPERATION...), found %s", describe(n))
		return st
	}
	if n.head() == "from" {
		p.errorf(n.pos, "expected ((from IMAGE) OPERATION...), found %s: put another pair of parentheses around it", describe(n))
		return st
	}
	p.keep(n)
	var early *node // the first operation before from
	for _, item := range n.kids {
		known := st.From.Pos != (Pos{})
		switch p.kind(item) {
		case "from":
			if known {
				p.errorf(item.pos, "a second from in this stage: the first is at %s", st.From.Pos)
				continue
			}
			st.From = p.from(item)
		case "build":
			b := p.build(item)
			if known {
				p.errorf(item.pos, "build after from: nested builds come before (from ...) at %s", st.From.Pos)
			}
			st.Builds = append(st.Builds, b)
		default:
			if !known && early == nil {
				early = item
			}
			if op := p.op(item); op != nil {
				st.Ops = append(st.Ops, op)
			}
		}
	}
	switch known := st.From.Pos != (Pos{}); {
	case !known:
		p.errorf(n.pos, "a stage without (from IMAGE)")
	case early != nil:
		p.errorf(early.pos, "%s before (from ...) at %s", describe(early), st.From.Pos)
	}
	return st
}

// kind is the head of a stage's item. A from or build that is misspelt is told, and taken for what it is.
func (p *parser) kind(n *node) string {
	name := n.head()
	if name == "" || name == "from" || name == "build" || slices.Contains(operations, name) {
		return name
	}
	k := nearest(name, append(operations, "from", "build"))
	if len(n.kids) == 3 && !n.kids[1].list && n.kids[2].list && len(n.kids[2].kids) > 0 && n.kids[2].kids[0].list && n.kids[2].kids[0].head() != "" {
		switch n.kids[2].kids[0].head() {
		case "from", "build":
			k = []string{"build"} // nothing else has a stage in it
		}
	}
	if len(k) == 1 && (k[0] == "from" || k[0] == "build") {
		p.errorf(n.kids[0].pos, "unknown operation %s: did you mean %s?", quote(name), k[0])
		return k[0]
	}
	return name
}

func (p *parser) from(n *node) From {
	p.keep(n)
	image, _ := p.one(n, "(from IMAGE)")
	return From{Pos: n.pos, Image: image}
}

func (p *parser) build(n *node) Build {
	p.keep(n)
	b := Build{Pos: n.pos, Stage: &Stage{}}
	const form = "(build NAME ((from IMAGE) OPERATION...))"
	args := n.kids[1:]
	switch {
	case len(args) == 1 && args[0].list:
		p.errorf(n.pos, "build without a name: expected %s", form)
		*b.Stage = p.stage(args[0])
	case len(args) != 2:
		p.errorf(n.pos, "expected %s, found %s", form, arguments(n))
	case args[0].list:
		p.errorf(args[0].pos, "expected a name in %s, found %s", form, describe(args[0]))
	default:
		b.Name = args[0].text
		*b.Stage = p.stage(args[1])
	}
	return b
}

var operations = []string{"comment", "workdir", "shell", "env", "user", "run", "copy"}

// op gives nil for what cannot be understood.
func (p *parser) op(n *node) Op {
	if !n.list {
		p.errorf(n.pos, "expected an operation in parentheses, found %s", describe(n))
		return nil
	}
	if len(n.kids) == 0 || n.kids[0].list {
		p.errorf(n.pos, "expected an operation, found %s", describe(n))
		return nil
	}
	p.keep(n)
	switch name := n.head(); name {
	case "comment":
		text, _ := p.one(n, "(comment TEXT)")
		return &Comment{Pos: n.pos, Text: text}
	case "workdir":
		dir, _ := p.one(n, "(workdir DIR)")
		return &Workdir{Pos: n.pos, Dir: dir}
	case "shell":
		return &Shell{Pos: n.pos, Argv: p.atoms(n)}
	case "env":
		const form = "(env NAME VALUE)"
		if len(n.kids) == 2 && !n.kids[1].list && strings.Contains(n.kids[1].text, "=") {
			name, value, _ := strings.Cut(n.kids[1].text, "=")
			p.errorf(n.pos, "expected %s, found 1 argument: did you mean (env %s %s)?", form, Quote(name), shorten(Quote(value), 40))
			return nil
		}
		if len(n.kids) != 3 {
			p.errorf(n.pos, "expected %s, found %s", form, arguments(n))
			return nil
		}
		kv := p.atoms(n)
		if len(kv) != 2 {
			return nil
		}
		return &Env{Pos: n.pos, Name: kv[0], Value: kv[1]}
	case "user":
		return p.user(n)
	case "run":
		return p.run(n)
	case "copy":
		return p.copy(n)
	default:
		p.errorf(n.kids[0].pos, "unknown operation %s%s", quote(name), cmp.Or(
			Suggest(name, append(operations, "from", "build")), dockerOperation(name), ": there are "+strings.Join(operations, ", ")))
		return nil
	}
}

// dockerOperation says what stands for an instruction of a Dockerfile that a spec does not have.
func dockerOperation(name string) string {
	switch strings.ToLower(name) {
	case "add":
		return ": (copy (src PATH...) (dst PATH)) copies files, (run ...) fetches or unpacks them"
	case "arg":
		return ": a spec has no arguments, (env NAME VALUE) sets a variable"
	case "volume":
		return ": a directory that outlives a step is a cache, (run (cache (ID (target DIR))) (shell COMMAND))"
	case "cmd", "entrypoint", "expose", "label", "stopsignal", "healthcheck", "maintainer":
		return ": a spec makes files; what else an image says is for --output"
	}
	return ""
}

func (p *parser) user(n *node) Op {
	const form = "expected (user (uid N) (gid N)), or (user (name NAME)) for Windows"
	if len(n.kids) == 1 || !n.kids[1].list {
		p.errorf(n.pos, "%s", form)
		return nil
	}
	fields := p.fields(n, n.kids[1:], "uid", "gid", "name")
	u := &User{Pos: n.pos}
	name, uid, gid := fields["name"], fields["uid"], fields["gid"]
	switch {
	case name != nil && (uid != nil || gid != nil):
		p.errorf(name.pos, "name beside uid and gid: %s", form)
	case name != nil:
		if u.Name, _ = p.one(name, "(name NAME)"); u.Name == "" {
			p.errorf(name.pos, "empty user name")
		}
	case len(fields) == 0: // said above
	case uid == nil:
		p.errorf(n.pos, "user without (uid N)")
	case gid == nil:
		p.errorf(n.pos, "user without (gid N)")
	}
	if uid != nil {
		u.UID = p.integer(uid, "(uid N)")
	}
	if gid != nil {
		u.GID = p.integer(gid, "(gid N)")
	}
	return u
}

func (p *parser) run(n *node) Op {
	o := &Run{Pos: n.pos}
	for _, item := range n.kids[1:] {
		if !item.list { // (run "make") is a likely slip: one message is enough
			p.errorf(item.pos, "expected a field of run in parentheses, found %s: a command is written (run (shell COMMAND))", describe(item))
			return o
		}
	}
	fields := p.fields(n, n.kids[1:], "shell", "cache", "network", "secrets")
	if f := fields["shell"]; f == nil {
		p.errorf(n.pos, "run without (shell COMMAND)")
	} else if len(f.kids) > 2 {
		p.errorf(f.pos, "expected (shell COMMAND) with one argument, found %d: put the command in double quotes", len(f.kids)-1)
	} else {
		o.Command, _ = p.one(f, "(shell COMMAND)")
	}
	if f := fields["network"]; f != nil {
		o.Network = p.atoms(f)
	}
	if f := fields["cache"]; f != nil {
		o.Caches = p.mounts(f, "")
	}
	if f := fields["secrets"]; f != nil {
		o.Secrets = p.mounts(f, "/run/secrets/")
	}
	return o
}

// mounts reads the items of a cache or secrets field. The ID below dir is a missing target; if dir is "", it is a mistake.
func (p *parser) mounts(field *node, dir string) []Mount {
	var mounts []Mount
	for _, item := range field.kids[1:] {
		if !item.headed() {
			p.errorf(item.pos, "expected (ID (target PATH)), found %s", describe(item))
			if !item.list {
				return mounts // (cache c1 (target /c)): the rest belongs to this
			}
			continue
		}
		m := Mount{Pos: item.pos, ID: item.head()}
		fields := p.fields(item, item.kids[1:], "target", "buildkit_options")
		if f := fields["target"]; f != nil {
			m.Target, _ = p.one(f, "(target PATH)")
		} else if dir != "" {
			m.Target = dir + m.ID
		} else {
			p.errorf(item.pos, "cache %s without (target DIR)", quote(m.ID))
		}
		if f := fields["buildkit_options"]; f != nil {
			m.Options = p.options(f)
		}
		mounts = append(mounts, m)
	}
	return mounts
}

func (p *parser) options(field *node) []Option {
	const form = "(buildkit_options ((KEY VALUE)...))"
	if len(field.kids) != 2 || !field.kids[1].list || field.kids[1].headed() {
		p.errorf(field.pos, "expected %s with two pairs of parentheses", form)
		return nil
	}
	var options []Option
	for _, pair := range field.kids[1].kids {
		if !pair.list || len(pair.kids) != 2 || pair.kids[0].list || pair.kids[1].list {
			p.errorf(pair.pos, "expected (KEY VALUE) in %s, found %s", form, describe(pair))
			continue
		}
		options = append(options, Option{Key: pair.kids[0].text, Value: pair.kids[1].text})
	}
	return options
}

func (p *parser) copy(n *node) Op {
	fields := p.fields(n, n.kids[1:], "src", "dst", "from", "exclude")
	o := &Copy{Pos: n.pos}
	if f := fields["src"]; f == nil {
		p.errorf(n.pos, "copy without (src PATH...)")
	} else {
		o.Src = p.atoms(f)
	}
	if f := fields["dst"]; f == nil {
		p.errorf(n.pos, "copy without (dst PATH)")
	} else {
		o.Dst, _ = p.one(f, "(dst PATH)")
	}
	if f := fields["exclude"]; f != nil {
		o.Exclude = p.atoms(f)
	}
	if f := fields["from"]; f != nil {
		o.From = p.origin(f)
	}
	return o
}

// origin reads the from field of a copy: "" for the context.
func (p *parser) origin(field *node) string {
	const form = "(from context) or (from (build NAME))"
	if len(field.kids) != 2 {
		p.errorf(field.pos, "expected %s, found %s", form, arguments(field))
		return ""
	}
	arg := field.kids[1]
	switch {
	case !arg.list && arg.text == "context":
		return ""
	case !arg.list:
		p.errorf(arg.pos, "expected %s, found %s: did you mean (from (build %s))?", form, describe(arg), quote(arg.text))
		return ""
	case arg.head() != "build":
		p.errorf(arg.pos, "expected %s, found %s", form, describe(arg))
		return ""
	}
	name, ok := p.one(arg, "(build NAME)")
	if ok && name == "" {
		p.errorf(arg.pos, "empty build name")
	}
	return name
}

// fields sorts the (NAME ...) items of an operation or mount by name.
func (p *parser) fields(n *node, items []*node, names ...string) map[string]*node {
	fields := map[string]*node{}
	for _, f := range items {
		if !f.headed() {
			p.errorf(f.pos, "expected a field of %s in parentheses (%s), found %s", quote(n.head()), alternatives(names), describe(f))
			continue
		}
		name := f.head()
		if !slices.Contains(names, name) {
			p.errorf(f.kids[0].pos, "unknown field %s of %s%s", quote(name), quote(n.head()),
				cmp.Or(Suggest(name, names), ": there are "+strings.Join(names, ", ")))
			continue
		}
		if first := fields[name]; first != nil {
			p.errorf(f.pos, "repeated field %s: the first is at %s", name, first.pos)
			continue
		}
		fields[name] = f
	}
	return fields
}

// one gives the only argument of an operation or field.
func (p *parser) one(n *node, form string) (string, bool) {
	if len(n.kids) != 2 {
		p.errorf(n.pos, "expected %s, found %s", form, arguments(n))
		return "", false
	}
	if n.kids[1].list {
		p.errorf(n.kids[1].pos, "expected a word or string in %s, found %s", form, describe(n.kids[1]))
		return "", false
	}
	return n.kids[1].text, true
}

// atoms gives the arguments of an operation or field.
func (p *parser) atoms(n *node) []string {
	var words []string
	for _, arg := range n.kids[1:] {
		if arg.list {
			p.errorf(arg.pos, "expected a word or string in %s, found %s", quote(n.head()), describe(arg))
			continue
		}
		words = append(words, arg.text)
	}
	return words
}

// integer gives the only argument of a field as OCaml reads it: 0x, 0o and 0b are prefixes, 010 is ten, _ separates digits.
func (p *parser) integer(n *node, form string) int {
	word, ok := p.one(n, form)
	if !ok {
		return 0
	}
	i, ok := parseInt(word)
	if !ok {
		p.errorf(n.kids[1].pos, "expected a number in %s, found %s", form, describe(n.kids[1]))
	}
	return i
}

func parseInt(word string) (int, bool) {
	digits, negative := strings.CutPrefix(word, "-")
	if !negative {
		digits = strings.TrimPrefix(digits, "+")
	}
	base := 10
	if len(digits) > 1 && digits[0] == '0' {
		switch digits[1] {
		case 'x', 'X':
			base = 16
		case 'o', 'O':
			base = 8
		case 'b', 'B':
			base = 2
		case 'u', 'U':
		default:
			digits = "0d" + digits
		}
		digits = digits[2:]
	}
	if strings.HasPrefix(digits, "_") {
		return 0, false
	}
	u, err := strconv.ParseUint(strings.ReplaceAll(digits, "_", ""), base, 64)
	if err != nil || u > math.MaxInt {
		return 0, false
	}
	if negative {
		return -int(u), true
	}
	return int(u), true
}

// headed tells whether a node is a list that starts with an atom.
func (n *node) headed() bool { return n.list && len(n.kids) > 0 && !n.kids[0].list }

// head is the atom that a list starts with, or "".
func (n *node) head() string {
	if !n.headed() {
		return ""
	}
	return n.kids[0].text
}

// same tells whether a node still says what an operation or from does.
func (n *node) same(x any) bool {
	p := &parser{source: map[Pos]*node{}}
	switch x := x.(type) {
	case Op:
		return reflect.DeepEqual(p.op(n), x)
	case From:
		return n.head() == "from" && p.from(n) == x
	}
	return false
}

// describe names a node in a message.
func describe(n *node) string {
	switch {
	case !n.list && n.quoted:
		return "the string " + quote(shorten(n.text, 40))
	case !n.list:
		return "the word " + quote(shorten(n.text, 40))
	case len(n.kids) == 0:
		return "()"
	case n.headed():
		return "(" + quote(shorten(n.head(), 40)) + " ...)"
	}
	return "a list of lists"
}

func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// quote prints a name in a message.
func quote(s string) string {
	if s == "" {
		return `""`
	}
	if q := strconv.Quote(s); strings.ContainsAny(s, " ()\";") || q != `"`+s+`"` {
		return q
	}
	return s
}

// arguments counts what stands behind the head of a list.
func arguments(n *node) string {
	if len(n.kids) == 2 {
		return "1 argument"
	}
	return fmt.Sprintf("%d arguments", len(n.kids)-1)
}
