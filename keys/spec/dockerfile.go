package spec

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// DockerfileOptions chooses the form of a Dockerfile.
type DockerfileOptions struct {
	BuildKit bool   // RUN --mount for caches and secrets, COPY --exclude
	Escape   string // "unix" (the default) or "windows"
	Source   fs.FS  // the source directory, to see which sources are directories; may be nil, or lack some
}

// Dockerfile converts a spec for a reader who wants to reproduce a build with docker.
//
// It is OBuilder's conversion, but for copies: a directory that is copied into another keeps its name, which COPY does only if it is told to, and
// excluded names are excluded, or a comment says that they are not. Networks are left out, a command of several lines becomes one, its lines joined by
// spaces, and working directories stand as they are, so that Docker expands a $ in one. What a Dockerfile cannot say, as a variable of several lines,
// is an error.
func (s *Spec) Dockerfile(o DockerfileOptions) (string, error) {
	d := &dockerfile{file: s.File, buildkit: o.BuildKit, source: o.Source, escape: `\`, taken: map[string]int{}}
	if o.BuildKit && s.excludes() {
		d.out.WriteString("# syntax=docker/dockerfile:1.19\n") // the first that has COPY --exclude
	}
	switch o.Escape {
	case "", "unix":
	case "windows":
		d.escape = "`"
		d.root.Name = "ContainerAdministrator"
		d.out.WriteString("#escape=`\n")
	default:
		return "", fmt.Errorf("unknown escape %q of a Dockerfile: expected unix or windows", o.Escape)
	}
	for st := range s.Stages() {
		d.taken[strings.ToLower(st.From.Image)] = 1 // FROM prefers a stage of the same name
	}
	d.stage("", &s.Stage, map[string]string{})
	if err := d.errs.err(); err != nil {
		return "", err
	}
	return d.out.String(), nil
}

type dockerfile struct {
	file     string
	buildkit bool
	source   fs.FS
	escape   string
	root     User
	taken    map[string]int // names that no further stage may have, and how often they were asked for
	out      strings.Builder
	errs     ErrorList
}

// stage writes the nested builds of a stage, then the stage itself. Scope maps the builds before it to their stages'
// names.
func (d *dockerfile) stage(name string, st *Stage, scope map[string]string) {
	scope = maps.Clone(scope)
	for _, b := range st.Builds {
		stage := d.name(b.Name)
		if b.Stage != nil {
			d.stage(stage, b.Stage, scope)
		}
		scope[b.Name] = stage
	}
	from := "FROM " + st.From.Image
	if name != "" {
		from += " as " + name
	}
	d.line(st.From.Pos, from)
	user := d.root
	for _, op := range st.Ops {
		switch o := op.(type) {
		case *Comment:
			for _, line := range strings.Split(o.Text, "\n") {
				d.line(o.Pos, "# "+strings.TrimSuffix(line, "\r"))
			}
		case *Workdir:
			d.line(o.Pos, "WORKDIR "+o.Dir)
		case *Shell:
			d.line(o.Pos, "SHELL "+words(o.Argv))
		case *Env:
			d.line(o.Pos, "ENV "+o.Name+`="`+d.literal(o.Value)+`"`)
		case *User:
			user = *o
			if o.Name != "" {
				d.line(o.Pos, "USER "+o.Name)
			} else {
				d.line(o.Pos, fmt.Sprintf("USER %d:%d", o.UID, o.GID))
			}
		case *Run:
			d.run(o, user)
		case *Copy:
			d.copy(o, user, scope)
		}
	}
	d.out.WriteByte('\n')
}

// line writes an instruction of one line.
func (d *dockerfile) line(pos Pos, text string) {
	d.write(pos, text)
	d.out.WriteByte('\n')
}

// write writes a part of a line.
func (d *dockerfile) write(pos Pos, text string) {
	if strings.Contains(text, "\n") {
		d.errs = append(d.errs, &Error{d.file, pos, "a Dockerfile cannot hold a line break in " + text[:strings.IndexAny(text, " =\n")]})
	}
	d.out.WriteString(text)
}

// name makes a stage's name: the build's, unless that is not one for Docker or is taken. Docker does not nest scopes.
func (d *dockerfile) name(build string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("._-", r):
			return r
		}
		return '-'
	}, build)
	if name == "" || !('a' <= name[0]|0x20 && name[0]|0x20 <= 'z') {
		name = "build-" + name
	}
	free := name
	for d.taken[strings.ToLower(free)] > 0 {
		key := strings.ToLower(name)
		d.taken[key]++
		free = fmt.Sprintf("%s-%d", name, d.taken[key])
	}
	d.taken[strings.ToLower(free)] = 1
	return free
}

func (d *dockerfile) run(o *Run, user User) {
	d.write(o.Pos, "RUN ")
	if d.buildkit {
		for _, m := range o.Secrets {
			d.write(o.Pos, d.mount("secret", m, user))
		}
		for _, m := range o.Caches {
			d.write(o.Pos, d.mount("cache", m, user))
		}
	}
	lines := strings.Split(o.Command, "\n")
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if i < len(lines)-1 && d.escape == `\` {
			line = joined(line)
		}
		lines[i] = line
	}
	d.out.WriteString(strings.Join(lines, " "+d.escape+"\n    ") + "\n")
}

// joined drops the backslash by which the shell would have joined a line to the next: the Dockerfile joins them.
func joined(line string) string {
	text := strings.TrimRight(line, `\`)
	if (len(line)-len(text))%2 == 0 {
		return line
	}
	return strings.TrimRight(line[:len(line)-1], " \t")
}

// mount writes a --mount flag and a space.
func (d *dockerfile) mount(kind string, m Mount, user User) string {
	fields := []Option{{"type", kind}, {"id", m.ID}, {"target", m.Target}}
	if user.Name == "" {
		fields = append(fields, Option{"uid", strconv.Itoa(user.UID)})
	}
	fields = append(fields, m.Options...)
	odd := slices.ContainsFunc(fields, func(f Option) bool { return strings.ContainsAny(f.Value, " \t,$'\"") })
	list := make([]string, len(fields))
	for i, f := range fields {
		if odd {
			f.Value = d.path(f.Value)
		}
		list[i] = f.Key + "=" + f.Value
		if strings.ContainsAny(f.Value, ",\"") {
			list[i] = `"` + strings.ReplaceAll(list[i], `"`, `""`) + `"` // CSV
		}
	}
	flag := strings.Join(list, ",")
	if odd {
		flag = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(flag) + `"`
	}
	return "--mount=" + flag + " "
}

// copy writes instructions for a copy: one, but for sources that need one each.
func (d *dockerfile) copy(o *Copy, user User, scope map[string]string) {
	if len(o.Exclude) > 0 && !d.buildkit {
		hint := "Write it into .dockerignore, or convert with --buildkit"
		if o.From != "" {
			hint = "Convert with --buildkit"
		}
		d.line(o.Pos, "# Not said below: (exclude "+strings.Join(quoted(o.Exclude), " ")+"). "+hint)
	}
	// Sources that are alike have one instruction together.
	var plain []string
	var files bool
	flush := func() {
		if len(plain) > 0 {
			d.copyTo(o, plain, o.Dst, !files, user, scope)
		}
		plain = nil
	}
	for _, src := range o.Src {
		name := path.Base(path.Clean("/" + d.slashes(src)))
		kind := d.kind(o, src)
		if kind == fs.ModeSymlink {
			flush()
			d.line(o.Pos, "# "+src+" is a symbolic link: COPY copies what it leads to instead")
		}
		isFile := kind == 0 || kind == fs.ModeIrregular && path.Ext(strings.TrimPrefix(name, ".")) != ""
		if !isFile && kind != fs.ModeSymlink && name != "/" && d.isInto(o.Dst) {
			flush()
			d.copyTo(o, []string{src}, o.Dst+name, true, user, scope) // right for a file, too
			continue
		}
		if len(o.Exclude) > 0 && isFile != files { // what is named itself is not excluded
			flush()
		}
		files = isFile
		plain = append(plain, src)
	}
	if flush(); len(o.Src) == 0 {
		d.copyTo(o, nil, o.Dst, true, user, scope) // Check refuses it
	}
}

// kind says what a source is: 0 for a file, fs.ModeDir, fs.ModeSymlink, or fs.ModeIrregular where nobody can know.
func (d *dockerfile) kind(o *Copy, src string) fs.FileMode {
	if d.source == nil || o.From != "" {
		return fs.ModeIrregular
	}
	info, err := fs.Lstat(d.source, cmp.Or(strings.TrimPrefix(path.Clean("/"+d.slashes(src)), "/"), "."))
	if err != nil {
		return fs.ModeIrregular
	}
	return info.Mode().Type()
}

// isInto reports whether a destination is the directory that sources go into.
func (d *dockerfile) isInto(dst string) bool { return strings.HasSuffix(d.slashes(dst), "/") }

// slashes makes a path one with slashes.
func (d *dockerfile) slashes(p string) string {
	if d.escape == "`" {
		return strings.ReplaceAll(p, `\`, "/")
	}
	return p
}

// excludes reports whether a copy of a spec excludes names.
func (s *Spec) excludes() bool {
	for st := range s.Stages() {
		if slices.ContainsFunc(st.Ops, func(op Op) bool { c, ok := op.(*Copy); return ok && len(c.Exclude) > 0 }) {
			return true
		}
	}
	return false
}

// quoted spells words as a spec would.
func quoted(ws []string) []string {
	var all []string
	for _, w := range ws {
		all = append(all, strings.ReplaceAll(Quote(w), "\n", `\n`))
	}
	return all
}

// copyTo writes one COPY.
func (d *dockerfile) copyTo(o *Copy, srcs []string, dst string, exclude bool, user User, scope map[string]string) {
	parts := []string{"COPY"}
	if user.Name == "" && (user.UID != 0 || user.GID != 0) {
		parts = append(parts, fmt.Sprintf("--chown=%d:%d", user.UID, user.GID))
	}
	if o.From != "" {
		stage, ok := scope[o.From]
		if !ok {
			stage = o.From // Check refuses it
		}
		parts = append(parts, "--from="+stage)
	}
	if d.buildkit && exclude {
		for _, name := range o.Exclude {
			flag := "--exclude=" + d.path("**/"+unglob(name)) // a name alone would be one at the top
			if strings.ContainsAny(name, " \t\"'") {
				flag = `"` + flag + `"`
			}
			parts = append(parts, flag)
		}
	}
	paths := make([]string, 0, len(srcs)+1)
	for _, src := range srcs {
		if src == "" || strings.HasPrefix(src, "--") {
			src = "./" + src
		}
		paths = append(paths, d.path(unglob(src)))
	}
	paths = append(paths, d.path(dst))
	if slices.ContainsFunc(paths, func(p string) bool { return strings.ContainsAny(p, " \t\r\n\f\v") }) {
		paths = []string{words(paths)}
	}
	d.line(o.Pos, strings.Join(append(parts, paths...), " "))
}

// unglob makes a path match itself only: to Docker, a source is a pattern.
func unglob(p string) string {
	return strings.NewReplacer("*", "[*]", "?", "[?]", "[", "[[]").Replace(p)
}

// path keeps Docker from reading quotes and variables into a path.
func (d *dockerfile) path(p string) string {
	return strings.NewReplacer(`"`, d.escape+`"`, `'`, d.escape+`'`, `$`, d.escape+`$`, d.escape, d.escape+d.escape).Replace(p)
}

// literal keeps Docker from reading an end, an escape or a variable into a value in double quotes.
func (d *dockerfile) literal(v string) string {
	return strings.NewReplacer(`"`, d.escape+`"`, `$`, d.escape+`$`, d.escape, d.escape+d.escape).Replace(v)
}

// words is a JSON list as Dockerfiles have them.
func words(ws []string) string {
	quoted := make([]string, len(ws))
	for i, w := range ws {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(w); err != nil {
			panic(err) // a string always encodes
		}
		quoted[i] = strings.TrimSuffix(b.String(), "\n")
	}
	return "[ " + strings.Join(quoted, ", ") + " ]"
}
