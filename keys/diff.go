package keys

import (
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
)

// maxPaths is how many files of a copy Diff names.
const maxPaths = 10

// Diff compares two preimages, and says in words which fields differ, one sentence each: "env CC: gcc, was clang",
// "source src/a.ml: content differs", "digest: sha256:..., was sha256:...". Equal ones give nothing.
func Diff(now, was []byte) ([]string, error) {
	changes, err := compare(now, was)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range changes {
		out = append(out, c.text)
	}
	return out, nil
}

// IsParent reports a sentence of Diff about the step before: it says only that something earlier differs.
func IsParent(sentence string) bool { return strings.HasPrefix(sentence, parentLabel+": ") }

// parentLabel is what Diff calls the field parent.
const parentLabel = "step before"

// Distance says how much two preimages differ: 0 if they are equal, little if they are likely to be one step before and
// after an edit, math.MaxInt if one cannot be read. It looks for the recorded step that is nearest to one that misses.
func Distance(a, b []byte) int {
	changes, err := compare(a, b)
	if err != nil {
		return math.MaxInt
	}
	sum := 0
	for _, c := range changes {
		sum += c.weight
	}
	return sum
}

// Unrelated is the least Distance of two steps of different kinds.
const Unrelated = 1000

// A change is one field, or one part of a field, that differs.
type change struct {
	text   string
	weight int
}

// Weights: an edit seldom changes what kind of step it is, or all of a command. A new parent says only that
// something before has changed.
const (
	weightOp      = Unrelated
	weightField   = 2
	weightPart    = 1
	weightParent  = 3
	weightCommand = 6
)

func compare(now, was []byte) ([]change, error) {
	n, err := read(now)
	if err != nil {
		return nil, err
	}
	w, err := read(was)
	if err != nil {
		return nil, err
	}
	d := differ{now: n, was: w}
	if n.op != w.op {
		weight := weightOp
		if kind, _, _ := strings.Cut(n.op, "/"); strings.HasPrefix(w.op, kind+"/") {
			weight = weightField
		}
		d.add(weight, "operation: %s, was %s", n.op, w.op)
		if weight == weightOp {
			return d.changes, nil // nothing else is comparable
		}
	}
	for _, f := range n.fields {
		old, had := w.field(f.list[0].atom)
		d.field(f.list[0].atom, f.list[1:], old, true, had)
	}
	for _, f := range w.fields {
		if _, has := n.field(f.list[0].atom); !has {
			d.field(f.list[0].atom, nil, f.list[1:], false, true)
		}
	}
	switch {
	case n.hasFiles && w.hasFiles:
		d.files(n.files, w.files)
	case n.hasFiles:
		d.add(weightField, "sources: known by their content, were paths of a build")
	case w.hasFiles:
		d.add(weightField, "sources: paths of a build, were known by their content")
	}
	if len(d.changes) == 0 && !bytes.Equal(n.print(0), w.print(0)) { // not two that New makes
		d.add(weightPart, "fields: in another order")
	}
	return d.changes, nil
}

type differ struct {
	now, was *parsed
	changes  []change
}

func (d *differ) add(weight int, format string, args ...any) {
	d.changes = append(d.changes, change{fmt.Sprintf(format, args...), weight})
}

// field compares the arguments of one field, which now or then may be missing.
func (d *differ) field(name string, now, was []sexp, has, had bool) {
	nowText, wasText := words(now), words(was)
	if has == had && nowText == wasText {
		return
	}
	switch name {
	case "env":
		d.env(now, was)
		return
	case "secrets", "caches":
		d.mounts(strings.TrimSuffix(name, "s"), now, was)
		return
	case "from", "src", "exclude":
		if d.now.hasFiles != d.was.hasFiles {
			return // one sentence about the sources says it all
		}
	}
	label, weight, missing := name, weightField, "none"
	switch name {
	case "parent":
		label, weight = parentLabel, weightParent
	case "dst":
		label = "destination"
	case "from":
		label = "build"
	case "src":
		label = "sources"
	case "exclude":
		label = "exclusions"
	case "os.version":
		label = "os version"
	case "shell", "workdir", "user":
		missing = "the default"
	case "command":
		weight = weightCommand
		if len(now) == 1 && len(was) == 1 {
			var same int
			nowText, wasText, same = excerpts(now[0].atom, was[0].atom)
			weight = 1 + (weightCommand-1)*(100-same)/100
		}
	}
	if !has {
		nowText = missing
	}
	if !had {
		wasText = missing
	}
	d.add(weight, "%s: %s, was %s", label, nowText, wasText)
}

// env compares lists of (NAME VALUE).
func (d *differ) env(now, was []sexp) {
	value := func(list []sexp, name string) (string, bool) {
		for _, v := range list {
			if len(v.list) > 1 && words(v.list[:1]) == name {
				return words(v.list[1:]), true
			}
		}
		return "", false
	}
	before := len(d.changes)
	for _, v := range now {
		if len(v.list) < 2 {
			continue
		}
		name := words(v.list[:1])
		old, had := value(was, name)
		switch val := words(v.list[1:]); {
		case !had:
			d.add(weightPart, "env %s: %s, was not set", name, val)
		case val != old:
			d.add(weightPart, "env %s: %s, was %s", name, val, old)
		}
	}
	for _, v := range was {
		if len(v.list) < 2 {
			continue
		}
		name := words(v.list[:1])
		if _, has := value(now, name); !has {
			d.add(weightPart, "env %s: not set, was %s", name, words(v.list[1:]))
		}
	}
	if len(d.changes) == before { // no preimage of New gets here
		d.add(weightPart, "env: %s, was %s", words(now), words(was))
	}
}

// mounts compares lists of (ID TARGET), in which an id may occur twice.
func (d *differ) mounts(kind string, now, was []sexp) {
	missing := func(from, in []sexp, verb string) {
		for _, m := range from {
			if !slices.ContainsFunc(in, func(o sexp) bool { return o.String() == m.String() }) {
				d.add(weightPart, "%s %s: %s", kind, words(m.list), verb)
			}
		}
	}
	before := len(d.changes)
	missing(now, was, "added")
	missing(was, now, "removed")
	if len(d.changes) == before {
		d.add(weightPart, "%ss: %s, was %s", kind, words(now), words(was))
	}
}

// files compares the sources of copies by content.
func (d *differ) files(now, was []Node) {
	t := treeDiff{}
	if names(now) == names(was) {
		for i := range now {
			t.node(now[i].Name, &now[i], &was[i])
		}
	} else {
		// Sources have an order, and may repeat a name: pair equal names in order.
		rest := slices.Clone(was)
		for i := range now {
			j := slices.IndexFunc(rest, func(o Node) bool { return o.Name == now[i].Name })
			if j < 0 {
				t.add(now[i].Name, "added")
				continue
			}
			t.node(now[i].Name, &now[i], &rest[j])
			rest = slices.Delete(rest, j, j+1)
		}
		for i := range rest {
			t.add(rest[i].Name, "removed")
		}
		if len(t.found) == 0 {
			d.add(weightPart, "sources: in the order %s, was %s", names(now), names(was))
		}
	}
	for _, text := range t.found {
		d.add(weightPart, "source %s", text)
	}
	if more := t.count - len(t.found); more > 0 {
		d.add(weightPart, "and %d more paths differ", more)
	}
}

// treeDiff collects the paths that differ: the first few, and a count of all.
type treeDiff struct {
	found []string
	count int
}

func (t *treeDiff) add(name, format string, args ...any) {
	t.count++
	if len(t.found) < maxPaths {
		if name == "" {
			name = "."
		}
		t.found = append(t.found, quoted(name)+": "+fmt.Sprintf(format, args...))
	}
}

func (t *treeDiff) node(name string, now, was *Node) {
	switch {
	case now.Kind != was.Kind:
		t.add(name, "%s, was %s", kindName(now.Kind), kindName(was.Kind))
	case now.Kind == fs.ModeSymlink:
		if now.Link != was.Link {
			t.add(name, "a link to %s, was to %s", quoted(now.Link), quoted(was.Link))
		}
	case now.Kind == 0:
		if now.Digest != was.Digest {
			t.add(name, "content differs")
		} else if now.Exec != was.Exec {
			t.add(name, "%s", map[bool]string{true: "executable, was not", false: "not executable, was"}[now.Exec])
		}
	case now.Digest != "" || was.Digest != "":
		if contentDigest(now) != contentDigest(was) {
			t.add(name, "something in it differs")
		}
	default:
		t.children(name, now.Children, was.Children)
	}
}

// children walks two sorted listings side by side.
func (t *treeDiff) children(dir string, now, was []Node) {
	for len(now) > 0 || len(was) > 0 {
		switch {
		case len(was) == 0 || len(now) > 0 && now[0].Name < was[0].Name:
			t.add(path.Join(dir, now[0].Name), "added")
			now = now[1:]
		case len(now) == 0 || was[0].Name < now[0].Name:
			t.add(path.Join(dir, was[0].Name), "removed")
			was = was[1:]
		default:
			t.node(path.Join(dir, now[0].Name), &now[0], &was[0])
			now, was = now[1:], was[1:]
		}
	}
}

// names prints the names of sources.
func names(nodes []Node) string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = "."
		if n.Name != "" {
			out[i] = quoted(n.Name)
		}
	}
	return strings.Join(out, " ")
}

// words prints the arguments of a field.
func words(args []sexp) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a.String()
	}
	return strings.Join(out, " ")
}

func quoted(s string) string { return string(appendAtom(nil, s)) }

// excerptLen is how much of a long text is shown where it differs from another.
const excerptLen = 80

// excerpts quotes two texts, both cut to where they begin to differ, and tells how many per cent of them are the same.
func excerpts(a, b string) (ea, eb string, same int) {
	shorter, longer := min(len(a), len(b)), max(len(a), len(b))
	head := 0
	for head < shorter && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < shorter-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	cut := func(s string) string {
		from, to := 0, len(s)
		if len(s) > excerptLen {
			from = max(0, head-excerptLen/4)
			to = min(len(s), from+excerptLen)
		}
		text := quoted(s[from:to])
		if from > 0 {
			text = "…" + text
		}
		if to < len(s) {
			text += "…"
		}
		return text
	}
	if longer > 0 {
		same = 100 * (head + tail) / longer
	}
	return cut(a), cut(b), same
}
