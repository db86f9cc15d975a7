package keys_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// resolver knows every image, by a digest of its name; two names in it have a digest of their own.
type resolver map[string]keys.Base

func (r resolver) Resolve(_ context.Context, ref string, p ocispec.Platform) (keys.Base, error) {
	if b, ok := r[ref]; ok {
		return b, nil
	}
	if ref == "scratch" {
		return keys.Base{Ref: ref, Platform: p}, nil
	}
	return keys.Base{Ref: ref, Digest: digest.FromString(ref), Platform: p}, nil
}

var (
	linux   = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	windows = ocispec.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.2113"}
)

// files makes a source directory: names that end in / are directories, contents that begin with -> are links, and
// those that begin with x: are executable.
func files(pairs ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		name, data := pairs[i], pairs[i+1]
		switch target, isLink := strings.CutPrefix(data, "->"); {
		case strings.HasSuffix(name, "/"):
			m[strings.TrimSuffix(name, "/")] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
		case isLink:
			m[name] = &fstest.MapFile{Mode: fs.ModeSymlink | 0o777, Data: []byte(target)}
		case strings.HasPrefix(data, "x:"):
			m[name] = &fstest.MapFile{Mode: 0o755, Data: []byte(data[2:])}
		default:
			m[name] = &fstest.MapFile{Mode: 0o644, Data: []byte(data)}
		}
	}
	return m
}

func options(fsys fs.FS) keys.Options {
	return keys.Options{Platform: linux, Context: fsys, Resolver: resolver{}}
}

func parse(t testing.TB, text string) *spec.Spec {
	t.Helper()
	s, err := spec.Parse("build.spec", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func plan(t testing.TB, text string, o keys.Options) *keys.Plan {
	t.Helper()
	p, err := keys.New(context.Background(), parse(t, text), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A build is one side of a comparison.
type build struct {
	spec  string
	files fstest.MapFS
	edit  func(*keys.Options)
}

func (b build) key(t *testing.T) keys.ID {
	t.Helper()
	o := options(b.files)
	if b.edit != nil {
		b.edit(&o)
	}
	return plan(t, b.spec, o).Key()
}

// on gives a stage on busybox with the operations.
func on(ops string) build { return build{spec: "((from busybox) " + ops + ")"} }

func (b build) opt(edit func(*keys.Options)) build { b.edit = edit; return b }

func (b build) onPlatform(p ocispec.Platform) build {
	return b.opt(func(o *keys.Options) { o.Platform = p })
}

// TestInKey has a row for each thing that a key must tell apart.
func TestInKey(t *testing.T) {
	run := `(run (shell "make"))`
	arm := func(variant string) ocispec.Platform {
		return ocispec.Platform{OS: "linux", Architecture: "arm", Variant: variant}
	}
	abc := files("a", "A", "b", "B", "d/one", "1", "d/sub/two", "2", "d/empty/", "", "l", "->a", "run.sh", "echo")
	cp := func(op string) build { b := on(op); b.files = abc; return b }
	edited := func(op string, pairs ...string) build {
		b := cp(op)
		b.files = files(pairs...)
		for name, f := range abc {
			if _, ok := b.files[name]; !ok {
				b.files[name] = f
			}
		}
		return b
	}
	without := func(b build, name string) build {
		m := fstest.MapFS{}
		for n, f := range b.files {
			if n != name {
				m[n] = f
			}
		}
		b.files = m
		return b
	}
	chmod := func(b build, name string, mode fs.FileMode) build {
		m := fstest.MapFS{}
		for n, f := range b.files {
			m[n] = f
		}
		m[name] = &fstest.MapFile{Data: m[name].Data, Mode: mode}
		b.files = m
		return b
	}
	from := func(command, op string) build {
		return build{spec: `((build dev ((from busybox) (run (shell "` + command + `")))) (from busybox) ` + op + `)`}
	}

	for _, row := range []struct {
		name string
		a, b build
	}{
		{"the digest of the base", on(run), build{spec: `((from debian) ` + run + `)`}},
		{"the platform's operating system", on("").onPlatform(linux), on("").onPlatform(ocispec.Platform{OS: "freebsd", Architecture: "amd64"})},
		{"the platform's architecture", on("").onPlatform(linux), on("").onPlatform(ocispec.Platform{OS: "linux", Architecture: "arm64"})},
		{"the platform's variant", on("").onPlatform(arm("v6")), on("").onPlatform(arm("v7"))},
		{
			"the os.version on Windows",
			on("").onPlatform(windows),
			on("").onPlatform(ocispec.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.26100.1"}),
		},
		{"the salt", on(run), on(run).opt(func(o *keys.Options) { o.Salt = "x" })},
		{"the step before", on(run), on(`(run (shell "true")) ` + run)},
		{"how often a step is done", on(run), on(run + run)},
		{"the command", on(run), on(`(run (shell "make all"))`)},
		{"blanks in the command", on(run), on(`(run (shell "make "))`)},
		{"the shell", on(run), on(`(shell /bin/sh -c) ` + run)},
		{"an empty shell", on(run), on(`(shell) ` + run)},
		{"how the shell is split into words", on(`(shell a b) ` + run), on(`(shell "a b") ` + run)},
		{"the workdir", on(run), on(`(workdir /src) ` + run)},
		{"how the workdir is spelled", on(`(workdir /tmp) ` + run), on(`(workdir /tmp/) ` + run)},
		{"dots in the workdir", on(`(workdir /tmp) ` + run), on(`(workdir /tmp/.) ` + run)},
		{"the user id of a run", on(run), on(`(user (uid 1) (gid 0)) ` + run)},
		{"the group id of a run", on(run), on(`(user (uid 0) (gid 1)) ` + run)},
		{"the user's name on Windows", on(run).onPlatform(windows), on(`(user (name opam)) ` + run).onPlatform(windows)},
		{"a variable, even if it is not used", on(run), on(`(env A 1) ` + run)},
		{"a variable's value", on(`(env A 1) ` + run), on(`(env A 2) ` + run)},
		{"a variable's name", on(`(env A 1) ` + run), on(`(env B 1) ` + run)},
		{"an empty variable", on(run), on(`(env A "") ` + run)},
		{"the case of a variable's name", on(`(env PATH 1) ` + run).onPlatform(windows), on(`(env Path 1) ` + run).onPlatform(windows)},
		{"the network", on(run), on(`(run (network host) (shell "make"))`)},
		{"a secret", on(run), on(`(run (secrets (k (target /k))) (shell "make"))`)},
		{"the id of a secret", on(`(run (secrets (k (target /k))) (shell "make"))`), on(`(run (secrets (j (target /k))) (shell "make"))`)},
		{"the target of a secret", on(`(run (secrets (k (target /k))) (shell "make"))`), on(`(run (secrets (k (target /j))) (shell "make"))`)},
		{
			"the order of secrets",
			on(`(run (secrets (a (target /a)) (b (target /b))) (shell "make"))`),
			on(`(run (secrets (b (target /b)) (a (target /a))) (shell "make"))`),
		},
		{"a cache mount", on(run), on(`(run (cache (k (target /k))) (shell "make"))`)},
		{"the id of a cache mount", on(`(run (cache (k (target /k))) (shell "make"))`), on(`(run (cache (j (target /k))) (shell "make"))`)},
		{"the target of a cache mount", on(`(run (cache (k (target /k))) (shell "make"))`), on(`(run (cache (k (target /j))) (shell "make"))`)},
		{"whether a mount is a cache or a secret", on(`(run (cache (k (target /k))) (shell "make"))`), on(`(run (secrets (k (target /k))) (shell "make"))`)},

		{"the step before a copy", cp(`(copy (src a) (dst /x))`), cp(run + `(copy (src a) (dst /x))`)},
		{"the user of a copy", cp(`(copy (src a) (dst /x))`), cp(`(user (uid 1) (gid 1)) (copy (src a) (dst /x))`)},
		{"the destination", cp(`(copy (src a) (dst /x))`), cp(`(copy (src a) (dst /y))`)},
		{"the destination's trailing slash", cp(`(copy (src d) (dst /x))`), cp(`(copy (src d) (dst /x/))`)},
		{"the trailing slash of the root", cp(`(copy (src d) (dst /))`), cp(`(copy (src d) (dst /.))`)},
		{"what the workdir makes of a relative destination", cp(`(copy (src a) (dst x))`), cp(`(workdir /w) (copy (src a) (dst x))`)},
		{"the content of a file", cp(`(copy (src a) (dst /x))`), edited(`(copy (src a) (dst /x))`, "a", "B")},
		{"the content of a file in a directory", cp(`(copy (src d) (dst /x))`), edited(`(copy (src d) (dst /x))`, "d/sub/two", "3")},
		{"the base name of a source, whatever the destination", edited(`(copy (src a) (dst /x))`, "b", "A"), edited(`(copy (src b) (dst /x))`, "b", "A")},
		{"the kind of a source", cp(`(copy (src a) (dst /x))`), edited(`(copy (src a) (dst /x))`, "a", "->A")},
		{"an executable bit", cp(`(copy (src run.sh) (dst /x))`), chmod(cp(`(copy (src run.sh) (dst /x))`), "run.sh", 0o744)},
		{"an executable bit for the group only", cp(`(copy (src .) (dst /x))`), chmod(cp(`(copy (src .) (dst /x))`), "d/one", 0o654)},
		{"the target of a link", cp(`(copy (src l) (dst /x))`), edited(`(copy (src l) (dst /x))`, "l", "->b")},
		{"the target of a link in a directory", cp(`(copy (src .) (dst /x))`), edited(`(copy (src .) (dst /x))`, "l", "->b")},
		{"a new file in a directory", cp(`(copy (src d) (dst /x))`), edited(`(copy (src d) (dst /x))`, "d/new", "")},
		{"an empty directory", cp(`(copy (src d) (dst /x))`), without(cp(`(copy (src d) (dst /x))`), "d/empty")},
		{"the order of sources", cp(`(copy (src a b) (dst /x/))`), cp(`(copy (src b a) (dst /x/))`)},
		{"a source given twice", cp(`(copy (src a) (dst /x/))`), cp(`(copy (src a a) (dst /x/))`)},
		{"two copies are not one of both", cp(`(copy (src a b) (dst /x/))`), cp(`(copy (src a) (dst /x/)) (copy (src b) (dst /x/))`)},
		{
			"all of a directory is not that directory",
			cp(`(copy (src .) (dst /x/))`),
			build{spec: `((from busybox) (copy (src w) (dst /x/)))`, files: files("w/a", "A")},
		},
		{"what exclude leaves", cp(`(copy (src .) (dst /x))`), cp(`(copy (src .) (dst /x) (exclude sub))`)},

		{
			"the key of the build that is copied from",
			from("make", `(copy (from (build dev)) (src /out) (dst /x))`),
			from("make all", `(copy (from (build dev)) (src /out) (dst /x))`),
		},
		{
			"the path in a build, all of it",
			from("make", `(copy (from (build dev)) (src /a/out) (dst /x))`),
			from("make", `(copy (from (build dev)) (src /b/out) (dst /x))`),
		},
		{
			"the exclusions of a copy from a build",
			from("make", `(copy (from (build dev)) (src /out) (dst /x))`),
			from("make", `(copy (from (build dev)) (src /out) (dst /x) (exclude a))`),
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if a, b := row.a.key(t), row.b.key(t); a == b {
				t.Errorf("the key of\n%s is that of\n%s", row.a.spec, row.b.spec)
			}
		})
	}
}

// TestNotInKey has a row for each thing that changes no key.
func TestNotInKey(t *testing.T) {
	run := `(run (shell "make"))`
	abc := files("a", "A", "b", "B", "d/one", "1", "d/sub/two", "2", ".git/config", "cfg")
	cp := func(op string) build { b := on(op); b.files = abc; return b }
	with := func(op string, change func(fstest.MapFS)) build {
		b := on(op)
		b.files = fstest.MapFS{}
		for n, f := range abc {
			c := *f
			b.files[n] = &c
		}
		change(b.files)
		return b
	}
	busybox := func(refs ...string) func(*keys.Options) {
		r := resolver{}
		for _, ref := range refs {
			r[ref] = keys.Base{Ref: "docker.io/library/busybox:latest", Digest: digest.FromString("x"), Platform: linux}
		}
		return func(o *keys.Options) { o.Resolver = r }
	}
	nested := func(inner, outer string) build {
		return build{spec: `((build dev ((from busybox) ` + inner + `)) (from busybox) ` + outer + `)`, files: abc}
	}

	for _, row := range []struct {
		name string
		a, b build
	}{
		{"the name of the base", on(run).opt(busybox("busybox")), build{spec: `((from busybox:latest) ` + run + `)`}.opt(busybox("busybox:latest"))},
		{
			"how the platform is spelled",
			on(run).onPlatform(ocispec.Platform{OS: "linux", Architecture: "arm64"}),
			on(run).onPlatform(ocispec.Platform{OS: "Linux", Architecture: "aarch64", Variant: "v8"}),
		},
		{"the os.version outside Windows", on(run).onPlatform(linux), on(run).onPlatform(ocispec.Platform{OS: "linux", Architecture: "amd64", OSVersion: "6.1"})},
		{"a comment operation", on(run), on(`(comment "hello") ` + run)},
		{"comments and formatting", on(run), on("; hello\n #| block |#\n (run\n\t(shell make))")},
		{"how an atom is quoted", on(run), on(`(run (shell "\109ak\x65"))`)},
		{"the order of a run's fields", on(`(run (network host) (shell "make"))`), on(`(run (shell "make") (network host))`)},
		{"an empty list of networks", on(run), on(`(run (network) (shell "make"))`)},
		{"the default shell, spelled out", on(run), on(`(shell /usr/bin/env bash -c) ` + run)},
		{"the default workdir, spelled out", on(run), on(`(workdir /) ` + run)},
		{"the default user, spelled out", on(run), on(`(user (uid 0) (gid 0)) ` + run)},
		{"the default user, spelled out for Windows", on(run).onPlatform(windows), on(`(user (name ContainerAdministrator)) ` + run).onPlatform(windows)},
		{"how a workdir came about", on(`(workdir /a) (workdir b) ` + run), on(`(workdir /a/b) ` + run)},
		{"the order of variables", on(`(env A 1) (env B 2) ` + run), on(`(env B 2) (env A 1) ` + run)},
		{"a value that was replaced", on(`(env A 2) ` + run), on(`(env A 1) (env A 2) ` + run)},
		{"what is set after a step", on(run), on(run + ` (env A 1) (workdir /x) (user (uid 1) (gid 1)) (shell sh)`)},
		{
			"buildkit_options of a cache",
			on(`(run (cache (k (target /k))) (shell "make"))`),
			on(`(run (cache (k (target /k) (buildkit_options ((sharing locked))))) (shell "make"))`),
		},
		{
			"how many jobs hash",
			cp(`(copy (src .) (dst /x))`).opt(func(o *keys.Options) { o.Jobs = 1 }),
			cp(`(copy (src .) (dst /x))`).opt(func(o *keys.Options) { o.Jobs = 9 }),
		},

		{"the time of a file", cp(`(copy (src .) (dst /x))`), with(`(copy (src .) (dst /x))`, func(m fstest.MapFS) { m["a"].ModTime = time.Unix(1, 0) })},
		{
			"the permissions of a file, but for execution",
			cp(`(copy (src .) (dst /x))`),
			with(`(copy (src .) (dst /x))`, func(m fstest.MapFS) { m["a"].Mode = 0o600 | fs.ModeSetuid }),
		},
		{
			"which execute bit is set",
			with(`(copy (src .) (dst /x))`, func(m fstest.MapFS) { m["a"].Mode = 0o700 }),
			with(`(copy (src .) (dst /x))`, func(m fstest.MapFS) { m["a"].Mode = 0o645 }),
		},
		{
			"the permissions of a directory",
			cp(`(copy (src .) (dst /x))`),
			with(`(copy (src .) (dst /x))`, func(m fstest.MapFS) { m["d"] = &fstest.MapFile{Mode: fs.ModeDir | 0o700} }),
		},
		{
			"an executable bit for Windows",
			cp(`(copy (src .) (dst /x))`).onPlatform(windows),
			with(`(copy (src .) (dst /x))`, func(m fstest.MapFS) { m["a"].Mode = 0o755 }).onPlatform(windows),
		},
		{"files that are not copied", cp(`(copy (src a) (dst /x))`), with(`(copy (src a) (dst /x))`, func(m fstest.MapFS) { m["new"] = m["a"] })},
		{
			"files that are excluded",
			cp(`(copy (src .) (dst /x) (exclude .git))`),
			with(`(copy (src .) (dst /x) (exclude .git))`, func(m fstest.MapFS) { m[".git/HEAD"] = m["a"] }),
		},
		{"exclusions without effect", cp(`(copy (src d) (dst /x))`), cp(`(copy (src d) (dst /x) (exclude .git d/one *))`)},
		{"how a source is spelled", cp(`(copy (src a d) (dst /x/))`), cp(`(copy (src .//a /d/) (dst /x/))`)},
		{"how all of the source directory is spelled", cp(`(copy (src .) (dst /x/))`), cp(`(copy (src "") (dst /x/))`)},
		{
			"the directory that a source is in",
			with(`(copy (src a) (dst /x))`, func(m fstest.MapFS) { m["d/a"] = m["a"] }),
			with(`(copy (src d/a) (dst /x))`, func(m fstest.MapFS) { m["d/a"] = m["a"] }),
		},
		{"repeated slashes in the destination", cp(`(copy (src a) (dst /x/y/))`), cp(`(copy (src a) (dst //x///y//))`)},
		{"dots in the destination", cp(`(copy (src a) (dst /x/y))`), cp(`(copy (src a) (dst /./x/./y/.))`)},
		{"whether the destination is relative", cp(`(copy (src a) (dst /w/x))`), cp(`(workdir /w) (copy (src a) (dst ./x))`)},
		{"an empty destination is the workdir", cp(`(copy (src a) (dst /w/))`), cp(`(workdir /w) (copy (src a) (dst ""))`)},
		{"slashes of a Windows destination", cp(`(copy (src a) (dst "C:/x/y/"))`).onPlatform(windows), cp(`(copy (src a) (dst "c:\\x\\y\\"))`).onPlatform(windows)},
		{"env, shell and workdir of a copy", cp(`(copy (src a) (dst /x))`), cp(`(env A 1) (shell sh) (workdir /w) (copy (src a) (dst /x))`)},

		{"the name of a build", nested(run, `(copy (from (build dev)) (src /out) (dst /x))`),
			build{spec: `((build prod ((from busybox) ` + run + `)) (from busybox) (copy (from (build prod)) (src /out) (dst /x)))`}},
		{"a build that is not used", on(run), nested(`(run (shell "other"))`, run)},
		{
			"how a path in a build is spelled",
			nested(run, `(copy (from (build dev)) (src /out) (dst /x))`),
			nested(run, `(copy (from (build dev)) (src ./out/) (dst /x))`),
		},
		{
			"the order of exclusions",
			nested(run, `(copy (from (build dev)) (src /out) (dst /x) (exclude a b))`),
			nested(run, `(copy (from (build dev)) (src /out) (dst /x) (exclude b a b))`),
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if a, b := row.a.key(t), row.b.key(t); a != b {
				t.Errorf("keys differ:\n%s\n%s", row.a.spec, row.b.spec)
			}
		})
	}
}

// TestWaysIn lists all that New is given. Secret values, contents of cache mounts, limits, time-outs, compression and the
// executor are not in a key because they have no way in; whoever adds one must decide about it here.
func TestWaysIn(t *testing.T) {
	for _, row := range []struct {
		of   any
		want string
	}{
		{keys.Options{}, "Platform Context Resolver Hasher Salt Jobs ContextName"},
		{spec.Run{}, "Pos Command Caches Network Secrets"},
		{spec.Mount{}, "Pos ID Target Options"},
		{spec.Copy{}, "Pos From Src Dst Exclude"},
		{spec.Workdir{}, "Pos Dir"},
		{spec.Shell{}, "Pos Argv"},
		{spec.Env{}, "Pos Name Value"},
		{spec.User{}, "Pos UID GID Name"},
	} {
		typ := reflect.TypeOf(row.of)
		var got []string
		for i := range typ.NumField() {
			got = append(got, typ.Field(i).Name)
		}
		if strings.Join(got, " ") != row.want {
			t.Errorf("%s has the fields %q, this test knows of %q", typ, got, row.want)
		}
	}
}

func TestNestedAndTopLevelStepsShareKeys(t *testing.T) {
	ops := `(run (shell "make")) (copy (src a) (dst /x))`
	p := plan(t, `((build dev ((from busybox) `+ops+`)) (from busybox) `+ops+`)`, options(files("a", "A")))
	if p.Steps[0].Key != p.Steps[2].Key || p.Steps[1].Key != p.Steps[3].Key {
		t.Error("steps of a nested build have other keys than the same steps at the top")
	}
}

func TestOrderAndScope(t *testing.T) {
	p := plan(t, `
((build a ((from one) (run (shell a1))))
 (build b ((build a ((from two) (run (shell inner))))
           (build c ((from three) (copy (from (build a)) (src x) (dst /x))))
           (from four)
           (copy (from (build a)) (src x) (dst /x))
           (copy (from (build c)) (src x) (dst /x))))
 (build d ((from five) (copy (from (build a)) (src x) (dst /x)) (copy (from (build b)) (src x) (dst /x))))
 (build a ((from six) (copy (from (build a)) (src x) (dst /x))))
 (from seven)
 (copy (from (build a)) (src x) (dst /x)))`, options(nil))
	var got []string
	for _, st := range p.Stages {
		got = append(got, fmt.Sprintf("%s %s users=%d", st.Name, st.Base.Ref, st.Users))
	}
	want := []string{
		"a one users=2", "a two users=2", "c three users=1", "b four users=1", "d five users=0", "a six users=1", " seven users=0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("stages:\n%q\nwant\n%q", got, want)
	}
	from := ""
	for i, step := range p.Steps {
		if step.Number != i+1 || step.Stage.Steps[step.Index] != step || step.Stage.Spec.Ops[step.OpIndex] != step.Op {
			t.Errorf("step %d is numbered %d, %d, %d", i+1, step.Number, step.Index, step.OpIndex)
		}
		if step.From != nil {
			from += " " + step.From.Base.Ref
		}
	}
	// c sees the a beside it; d the first a; the second a the first; the outermost stage the second.
	if want := " two two three one four one six"; from != want {
		t.Errorf("copies are from%s, want%s", from, want)
	}
	if outer := p.Stages[6]; p.Stages[1].Parent != p.Stages[3] || p.Stages[3].Parent != outer || outer.Parent != nil {
		t.Error("wrong parents")
	}
	if p.Key() != p.Stages[6].Key() || p.Stages[6].Key() != p.Steps[len(p.Steps)-1].Key {
		t.Error("the key of the plan is not that of its last step")
	}
}

func TestContexts(t *testing.T) {
	p := plan(t, `((from busybox)
 (workdir /tmp) (workdir a) (workdir b/c) (workdir ..) (run (shell x))
 (workdir /x/) (workdir y) (workdir "") (workdir /) (workdir "") (workdir ~)
 (env B 2) (env A 1) (env B 3) (shell sh -c) (user (uid 1) (gid 2)) (run (shell x)))`, options(nil))
	st := p.Stages[0]
	var dirs []string
	for _, c := range st.Contexts {
		dirs = append(dirs, c.Workdir)
	}
	want := []string{"/", "/tmp", "/tmp/a", "/tmp/a/b/c", "/tmp/a/b/c/..", "/tmp/a/b/c/..",
		"/x/", "/x/y", "/x/y/", "/", "/", "/~", "/~", "/~", "/~", "/~", "/~", "/~"}
	if !slices.Equal(dirs, want) {
		t.Errorf("workdirs %q, want %q", dirs, want)
	}
	first, last := p.Steps[0].Env, p.Steps[1].Env
	if !slices.Equal(first.Shell, []string{"/usr/bin/env", "bash", "-c"}) || first.User != (spec.User{}) || first.Env != nil {
		t.Errorf("default context %+v", first)
	}
	if !slices.Equal(last.Env, []keys.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "3"}}) {
		t.Errorf("env %v", last.Env)
	}
	if !slices.Equal(last.Shell, []string{"sh", "-c"}) || last.User != (spec.User{UID: 1, GID: 2}) {
		t.Errorf("shell %q, user %+v", last.Shell, last.User)
	}
}

func TestWindowsContexts(t *testing.T) {
	o := options(files("a", ""))
	o.Platform = windows
	p := plan(t, `((from servercore)
 (workdir src) (workdir "c:\\x") (workdir y) (workdir "C:\\x\\") (workdir z) (workdir /cygdrive/c)
 (env Path 1) (env PATH 2) (copy (src a) (dst "sub\\")))`, o)
	var dirs []string
	for _, c := range p.Stages[0].Contexts[:7] {
		dirs = append(dirs, c.Workdir)
	}
	want := []string{"C:/", "C:/src", `c:\x`, `c:\x/y`, `C:\x\`, `C:\x\z`, "/cygdrive/c"}
	if !slices.Equal(dirs, want) {
		t.Errorf("workdirs %q, want %q", dirs, want)
	}
	step := p.Steps[0]
	if !slices.Equal(step.Env.Env, []keys.EnvVar{{Name: "PATH", Value: "2"}}) {
		t.Errorf("env %v", step.Env.Env)
	}
	if step.Dst != "/cygdrive/c/sub/" {
		t.Errorf("dst %q", step.Dst)
	}
	if c := p.Stages[0].Contexts[0]; c.User.Name != "ContainerAdministrator" || !slices.Equal(c.Shell, []string{"cmd", "/S", "/C"}) {
		t.Errorf("default context %+v", c)
	}
}

func TestDestination(t *testing.T) {
	for _, row := range []struct{ workdir, dst, want string }{
		{"/", "/x", "/x"},
		{"/", "/", "/"},
		{"/", "", "/"},
		{"/", ".", "/."},
		{"/w", ".", "/w"},
		{"/w", "./", "/w/"},
		{"/w", "", "/w/"},
		{"/w/", "", "/w/"},
		{"/w", "a//b/./c/", "/w/a/b/c/"},
		{"/w/..", "a", "/w/../a"},
		{"/w", "C:/x", "/w/C:/x"},
	} {
		p := plan(t, fmt.Sprintf(`((from busybox) (workdir %q) (copy (src a) (dst %q)))`, row.workdir, row.dst), options(files("a", "")))
		if got := p.Steps[0].Dst; got != row.want {
			t.Errorf("workdir %q, dst %q: %q, want %q", row.workdir, row.dst, got, row.want)
		}
	}
}

func TestContentKeys(t *testing.T) {
	text := func(command string) string {
		return `((build dev ((from busybox) (run (shell "` + command + `"))))
 (from busybox)
 (run (shell "before"))
 (copy (from (build dev)) (src /out) (dst /x/) (exclude log))
 (run (shell "after")))`
	}
	out := files("out/bin", "x:binary", "out/log", "noise", "etc/passwd", "root")
	type steps struct{ before, copy, after keys.ID }
	content := func(command string, tree fstest.MapFS) (input, byContent steps) {
		p := plan(t, text(command), options(nil))
		st := p.Stages[1]
		input = steps{st.Steps[0].Key, st.Steps[1].Key, st.Steps[2].Key}
		sources, err := keys.HashSources(context.Background(), tree, st.Steps[1].Op.(*spec.Copy), options(nil))
		if err != nil {
			t.Fatal(err)
		}
		parent, ids := st.BaseKey, []keys.ID(nil)
		for _, step := range st.Steps {
			var preimage []byte
			parent, preimage = step.ContentKey(parent, sources)
			if sum, err := keys.Sum(preimage); err != nil || sum != parent {
				t.Errorf("Sum gives %v, %v", sum, err)
			}
			ids = append(ids, parent)
		}
		return input, steps{ids[0], ids[1], ids[2]}
	}
	in1, c1 := content("make", out)
	in2, c2 := content("make all", out)
	if in1.before != c1.before {
		t.Error("a step before the copy has two keys")
	}
	if in1.copy == in2.copy || in1.after == in2.after {
		t.Error("input keys do not tell what the build does")
	}
	if in1.copy == c1.copy || in1.after == c1.after {
		t.Error("content keys are input keys")
	}
	if c1 != c2 {
		t.Error("the same files have two content keys")
	}
	other := files("out/bin", "x:other", "out/log", "noise")
	if _, c3 := content("make", other); c3.copy == c1.copy || c3.after == c1.after {
		t.Error("other files have the same content key")
	}
	// The excluded log changes nothing, nor does what is not copied.
	if _, c4 := content("make", files("out/bin", "x:binary", "out/log", "more")); c4 != c1 {
		t.Error("excluded files are in the content key")
	}
	p := plan(t, `((from busybox) (run (shell "before")) (copy (src out) (dst /x/) (exclude log)) (run (shell "after")))`, options(out))
	if p.Steps[1].Key != c1.copy || p.Key() != c1.after {
		t.Error("a copy of the same files from the source directory has another key")
	}
	if id, _ := p.Steps[1].ContentKey(p.Steps[0].Key, nil); id != p.Steps[1].Key {
		t.Error("the content key of a copy from the source directory is not its key")
	}
}

func TestResolve(t *testing.T) {
	count := map[string]int{}
	lock := make(chan struct{}, 1)
	r := resolverFunc(func(ref string, p ocispec.Platform) (keys.Base, error) {
		lock <- struct{}{}
		count[ref]++
		<-lock
		return resolver{}.Resolve(context.Background(), ref, p)
	})
	o := options(nil)
	o.Resolver = r
	plan(t, `((build x ((from a))) (build y ((from b))) (build z ((from a))) (from scratch))`, o)
	if fmt.Sprint(count) != "map[a:1 b:1 scratch:1]" {
		t.Errorf("resolved %v", count)
	}

	gone := errors.New("gone")
	for name, row := range map[string]struct {
		base keys.Base
		err  error
		want string
	}{
		"an error":        {err: gone, want: "resolve base image a: gone"},
		"no digest":       {base: keys.Base{Ref: "a"}, want: "resolve base image a: it has no digest"},
		"a broken digest": {base: keys.Base{Ref: "a", Digest: "x"}, want: `resolve base image a: digest "x"`},
		"another system": {base: keys.Base{Ref: "a", Digest: digest.FromString(""), Platform: windows},
			want: "base image a is for windows, and this build is for linux"},
	} {
		t.Run(name, func(t *testing.T) {
			o.Resolver = resolverFunc(func(string, ocispec.Platform) (keys.Base, error) { return row.base, row.err })
			_, err := keys.New(context.Background(), parse(t, `((from a))`), o)
			if err == nil || !strings.HasPrefix(err.Error(), row.want) {
				t.Errorf("error %v, want %s", err, row.want)
			}
			if list := (spec.ErrorList)(nil); errors.As(err, &list) {
				t.Error("it is told as a mistake in the spec")
			}
			if row.err != nil && !errors.Is(err, row.err) {
				t.Error("the cause is not wrapped")
			}
		})
	}
}

type resolverFunc func(string, ocispec.Platform) (keys.Base, error)

func (f resolverFunc) Resolve(_ context.Context, ref string, p ocispec.Platform) (keys.Base, error) {
	return f(ref, p)
}

func TestPlanIsTheSameWhateverTheTiming(t *testing.T) {
	fsys := files()
	for i := range 1000 {
		fsys[fmt.Sprintf("d%d/f%d", i%7, i)] = &fstest.MapFile{Data: fmt.Append(nil, i), Mode: 0o644}
	}
	text := `((from busybox) (copy (src .) (dst /a)) (copy (src d1 d2) (dst /b/)))`
	want := plan(t, text, options(fsys))
	for jobs := 1; jobs < 20; jobs++ {
		o := options(fsys)
		o.Jobs = jobs
		got := plan(t, text, o)
		for i := range got.Steps {
			if string(got.Steps[i].Preimage) != string(want.Steps[i].Preimage) {
				t.Fatalf("%d jobs give another preimage", jobs)
			}
		}
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := keys.New(ctx, parse(t, `((from busybox) (copy (src .) (dst /a)))`), options(files("a", "A")))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestID(t *testing.T) {
	id := plan(t, `((from busybox))`, options(nil)).Key()
	back, err := keys.ParseID(id.String())
	if err != nil || back != id || id.IsZero() || !(keys.ID{}).IsZero() {
		t.Errorf("%v becomes %v, %v", id, back, err)
	}
	for _, s := range []string{"", "x", id.String() + "0", strings.ToUpper(id.String()), id.String()[1:] + "g"} {
		if _, err := keys.ParseID(s); err == nil {
			t.Errorf("ParseID(%q) succeeds", s)
		}
	}
}
