package spec

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"unicode"
)

// Check validates a spec, parsed or made by a program, for a target operating system ("linux", "windows", ...):
// scoping of builds, destinations, sources, networks, users, names. Its error is an ErrorList. Parse has checked
// the grammar only; Check does all that does not depend on files.
func (s *Spec) Check(os string) error {
	c := &checker{spec: s, windows: os == "windows"}
	c.stage(&s.Stage, nil)
	return c.errs.err()
}

// Warnings lists what is allowed, but most likely not meant as it is written. None of it changes what a build does.
func (s *Spec) Warnings() ErrorList {
	c := &checker{spec: s}
	for st := range s.Stages() {
		for _, op := range st.Ops {
			if o, ok := op.(*Copy); ok {
				c.op = op
				c.excludes(o)
			}
		}
	}
	c.errs.sort()
	return c.errs
}

func (c *checker) excludes(o *Copy) {
	for i, name := range o.Exclude {
		switch pos := c.arg(o, "exclude", i); {
		case strings.Contains(name, "/"):
			c.errorf(pos, "exclude %s excludes nothing: names are matched, at any depth, and no name has a /", quote(name))
		case strings.ContainsAny(name, "*?["):
			c.errorf(pos, "exclude %s excludes only what has that very name: there are no patterns", quote(name))
		}
	}
}

type checker struct {
	spec    *Spec
	windows bool
	op      Op // the one in hand, or nil
	errs    ErrorList
}

// errorf names the operation in words when it has no place in a file.
func (c *checker) errorf(pos Pos, format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if pos == (Pos{}) && c.op != nil {
		msg += " in " + shorten(strings.Join(strings.Fields(Heading(c.op)), " "), 80)
	}
	c.errs = append(c.errs, &Error{c.spec.File, pos, msg})
}

// missing is errorf for what a spec leaves empty, unless that is what its grammar has a mistake in.
func (c *checker) missing(pos Pos, format string, args ...any) {
	if !c.spec.partial {
		c.errorf(pos, format, args...)
	}
}

// stage checks a stage. The builds in scope are those of the stages around it that come earlier.
func (c *checker) stage(st *Stage, scope []string) {
	for _, b := range st.Builds {
		c.op = nil
		switch {
		case b.Name == "":
			c.missing(b.Pos, "empty build name")
		case strings.ContainsRune(b.Name, 0):
			c.errorf(b.Pos, "NUL byte in the name of build %s", quote(b.Name))
		}
		if b.Stage == nil {
			c.errorf(b.Pos, "build %s without a stage", quote(b.Name))
		} else {
			c.stage(b.Stage, slices.Clip(scope))
		}
		scope = append(scope, b.Name)
	}
	c.op = nil
	switch image := st.From.Image; {
	case image == "":
		c.missing(st.From.Pos, "empty image name in (from IMAGE)")
	case strings.ContainsFunc(image, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		c.errorf(st.From.Pos, "space or control character in the image name %s", quote(image))
	}
	state := &stageState{dir: "/", env: map[string]int{}}
	for _, op := range st.Ops {
		c.op = op
		c.operation(op, scope)
		c.limits(op, state)
	}
}

func (c *checker) operation(op Op, scope []string) {
	switch o := op.(type) {
	case *Comment:
		c.text(op, "comment", o.Text)
	case *Workdir:
		c.text(op, "workdir", o.Dir)
	case *Shell:
		for i, arg := range o.Argv {
			c.nul(c.arg(op, "", i), "shell", arg)
		}
	case *Env:
		switch pos := c.arg(op, "", 0); {
		case o.Name == "":
			c.errorf(pos, "empty variable name")
		case strings.Contains(o.Name, "="):
			c.errorf(pos, "= in the variable name %s: write (env NAME VALUE)", quote(o.Name))
		default:
			c.nul(pos, "env", o.Name)
		}
		c.nul(c.arg(op, "", 1), "env", o.Value)
	case *User:
		c.user(o)
	case *Run:
		c.run(o)
	case *Copy:
		c.copy(o, scope)
	default:
		c.op = nil
		c.errorf(Pos{}, "operation of type %T", op)
	}
}

func (c *checker) text(op Op, name, s string) { c.nul(c.arg(op, "", 0), name, s) }

func (c *checker) nul(pos Pos, where, s string) {
	if strings.ContainsRune(s, 0) {
		c.errorf(pos, "NUL byte in %s", where)
	}
}

// maxID is the largest user or group: the one after it means "none" to the kernel.
const maxID = math.MaxUint32 - 1

// A uid on Windows is let pass: OCaml-CI emits one there, and OBuilder's Windows backends take it for their default user.
func (c *checker) user(o *User) {
	if o.Name != "" {
		if !c.windows {
			c.errorf(c.field(o, "name"), "a user by name is for Windows only: expected (user (uid N) (gid N))")
		}
		c.nul(c.arg(o, "name", 0), "user", o.Name)
		return
	}
	for _, id := range []struct {
		field string
		value int
	}{{"uid", o.UID}, {"gid", o.GID}} {
		if id.value < 0 || uint64(id.value) > maxID {
			c.errorf(c.arg(o, id.field, 0), "%s %d is not between 0 and %d", id.field, id.value, uint64(maxID))
		}
	}
}

func (c *checker) run(o *Run) {
	c.nul(c.arg(o, "shell", 0), "shell", o.Command)
	const networks = "(network host) is the host's, without a network field there is none"
	switch {
	case len(o.Network) > 1:
		c.errorf(c.field(o, "network"), "%d networks in one run: %s", len(o.Network), networks)
	case len(o.Network) == 1 && !c.network(o.Network[0]):
		c.errorf(c.arg(o, "network", 0), "unknown network %s: %s", quote(o.Network[0]), networks)
	}
	taken := map[string]bool{}
	for _, m := range o.Caches {
		c.mount(o, "cache", m, taken)
		c.sharing(o, m)
	}
	for _, m := range o.Secrets {
		c.mount(o, "secret", m, taken)
	}
}

// network tells whether a network exists. Specs for Windows name Docker's default one there.
func (c *checker) network(name string) bool {
	return name == "host" || c.windows && name == "nat"
}

func (c *checker) mount(o *Run, kind string, m Mount, taken map[string]bool) {
	if m.ID == "" {
		c.errorf(m.Pos, "empty name of a %s", kind)
	}
	c.nul(m.Pos, "the name of a "+kind, m.ID)
	pos := m.Pos
	if f := c.find(o, m.Pos).get("target"); f != nil {
		pos = f.pos
	}
	target := m.Target
	if c.windows {
		// Case and the kind of slash make no difference there.
		target = strings.ToLower(strings.ReplaceAll(target, `\`, "/"))
	}
	switch {
	case target == "":
		c.missing(pos, "empty target of %s %s", kind, quote(m.ID))
		return
	case strings.ContainsRune(target, 0):
		c.errorf(pos, "NUL byte in the target of %s %s", kind, quote(m.ID))
		return
	case !c.absolute(target):
		// OBuilder's runtimes take one below / with a warning, whatever the working directory is.
		c.errorf(pos, "target %s of %s %s is not an absolute path", quote(m.Target), kind, quote(m.ID))
		return
	}
	target = path.Clean(target)
	if target == "/" {
		c.errorf(pos, "%s %s would hide the whole root directory", kind, quote(m.ID))
	}
	if taken[target] {
		c.errorf(pos, "another mount of this run has the target %s too", quote(m.Target))
	}
	taken[target] = true
}

// absolute tells whether a path starts at a root; slashes are forward ones.
func (c *checker) absolute(p string) bool {
	if c.windows && len(p) >= 3 && 'a' <= p[0] && p[0] <= 'z' && p[1] == ':' {
		p = p[2:]
	}
	return strings.HasPrefix(p, "/")
}

// sharing checks the one option that means something here; the others are for BuildKit.
func (c *checker) sharing(o *Run, m Mount) {
	known := []string{"shared", "locked", "private"}
	seen := false
	for _, opt := range m.Options {
		if opt.Key != "sharing" {
			continue
		}
		pos := m.Pos
		if f := c.find(o, m.Pos).get("buildkit_options"); f != nil {
			pos = f.pos
		}
		if seen {
			c.errorf(pos, "repeated option sharing of cache %s", quote(m.ID))
		}
		seen = true
		if !slices.Contains(known, opt.Value) {
			c.errorf(pos, "unknown sharing %s of cache %s: expected %s", quote(opt.Value), quote(m.ID), alternatives(known))
		}
	}
	for _, opt := range m.Options {
		c.nul(m.Pos, "buildkit_options", opt.Key+opt.Value)
	}
}

func (c *checker) copy(o *Copy, scope []string) {
	if o.From != "" && !slices.Contains(scope, o.From) {
		c.errorf(c.arg(o, "from", 0), "unknown build %s%s", quote(o.From), c.elsewhere(o.From, scope))
	}
	if len(o.Src) == 0 {
		c.missing(c.field(o, "src"), "copy without a source")
	}
	for i, src := range o.Src {
		pos := c.arg(o, "src", i)
		if c.climbs(src) {
			c.errorf(pos, ".. in the source %s: a copy cannot leave %s", quote(src), c.tree(o))
		}
		c.nul(pos, "src", src)
	}
	switch pos := c.arg(o, "dst", 0); {
	case c.climbs(o.Dst):
		c.errorf(pos, ".. in the destination %s", quote(o.Dst))
	case len(o.Src) > 1 && o.Dst != "" && !strings.HasSuffix(o.Dst, "/"):
		c.errorf(pos, "several sources need a destination that ends with /: did you mean %s?", quote(o.Dst+"/"))
	default:
		c.nul(pos, "dst", o.Dst)
	}
	for i, name := range o.Exclude {
		c.nul(c.arg(o, "exclude", i), "exclude", name)
	}
}

func (c *checker) tree(o *Copy) string {
	if o.From == "" {
		return "the source directory"
	}
	return "the build's files"
}

func (c *checker) climbs(p string) bool {
	if c.windows {
		p = strings.ReplaceAll(p, `\`, "/")
	}
	return slices.Contains(strings.Split(p, "/"), "..")
}

// elsewhere says what a copy may have meant by the name of a build that is not in scope.
func (c *checker) elsewhere(name string, scope []string) string {
	var names []string // latest first, each once
	for _, n := range slices.Backward(scope) {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	if b := find(&c.spec.Stage, name); b != nil {
		at := ""
		if b.Pos != (Pos{}) {
			at = " at " + b.Pos.String()
		}
		return fmt.Sprintf(": the one%s is not in scope, a copy sees the builds of its own stage and earlier ones of the stages around it", at)
	}
	if hint := Suggest(name, names); hint != "" {
		return hint
	}
	switch len(names) {
	case 0:
		return ": there is no build here"
	case 1:
		return ": there is only " + quote(names[0])
	}
	for i := range names {
		names[i] = quote(names[i])
	}
	slices.Reverse(names)
	return ": there are " + strings.Join(names, ", ")
}

// find looks for a build of any depth.
func find(st *Stage, name string) *Build {
	for i, b := range st.Builds {
		if b.Name == name {
			return &st.Builds[i]
		}
		if b.Stage != nil {
			if inner := find(b.Stage, name); inner != nil {
				return inner
			}
		}
	}
	return nil
}

// field is the place of an operation's field, or of the operation itself when that is not known.
func (c *checker) field(op Op, name string) Pos { return c.spec.FieldPos(op, name) }

// FieldPos is the place of an operation's field, as "network" of a run, or of the operation itself when that is not known.
func (s *Spec) FieldPos(op Op, name string) Pos {
	if f := s.source[op.Position()].get(name); f != nil {
		return f.pos
	}
	return op.Position()
}

// arg is the place of an argument of an operation's field, or with "" of the operation.
func (c *checker) arg(op Op, field string, i int) Pos {
	n := c.find(op, op.Position())
	if field != "" {
		n = n.get(field)
	}
	if n == nil || i+1 >= len(n.kids) {
		return op.Position()
	}
	return n.kids[i+1].pos
}

// find looks for the node at a place within an operation: nil if a program made or moved it.
func (c *checker) find(op Op, pos Pos) *node {
	n := c.spec.source[op.Position()]
	if n == nil || n.pos == pos {
		return n
	}
	for _, field := range n.kids {
		for _, item := range field.kids {
			if item.pos == pos {
				return item
			}
		}
	}
	return nil
}

// get is the field of a list that has a name, or nil.
func (n *node) get(name string) *node {
	if n == nil {
		return nil
	}
	for _, kid := range n.kids {
		if kid.head() == name {
			return kid
		}
	}
	return nil
}
