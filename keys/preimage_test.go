package keys

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys/spec"
)

// hex64 stands for a digest in preimages made by hand.
func hex64(c string) string { return strings.Repeat(c, 64) }

func runPreimage(fields string) string {
	return "(obx/1 run/1 (parent " + hex64("a") + ")" + fields + ")"
}

func copyPreimage(files string) string {
	return "(obx/1 copy/1 (parent " + hex64("a") + ") (dst /x/) (files" + files + "))"
}

func file(name, c string) string { return "(file " + name + " " + hex64(c) + ")" }

func TestDiff(t *testing.T) {
	many := func(c string) string {
		var s []string
		for i := range 25 {
			s = append(s, file(fmt.Sprintf("f%02d", i), c))
		}
		return " (dir src (" + strings.Join(s, " ") + "))"
	}
	long := strings.Repeat("0123456789", 30)
	for _, row := range []struct {
		name, now, was string
		want           []string
	}{
		{"equal", runPreimage(" (command make)"), runPreimage(" (command make)"), nil},
		{"command", runPreimage(" (command make)"), runPreimage(` (command "make all")`), []string{`command: make, was "make all"`}},
		{"long commands", runPreimage(" (command " + long + "X" + long + ")"), runPreimage(" (command " + long + "Y" + long + ")"), []string{
			"command: …01234567890123456789X01234567890123456789012345678901234567890123456789012345678…, " +
				"was …01234567890123456789Y01234567890123456789012345678901234567890123456789012345678…"}},
		{"a default", runPreimage(" (shell sh -c) (command x) (workdir /w) (user 1 2)"), runPreimage(" (command x)"), []string{
			"shell: sh -c, was the default", "workdir: /w, was the default", "user: 1 2, was the default"}},
		{"back to a default", runPreimage(" (command x)"), runPreimage(" (command x) (workdir /w) (network host)"), []string{
			"workdir: the default, was /w", "network: none, was host"}},
		{"env", runPreimage(` (command x) (env (CC gcc) (NEW "") (SAME 1))`), runPreimage(" (command x) (env (CC clang) (OLD 1) (SAME 1))"), []string{
			"env CC: gcc, was clang", `env NEW: "", was not set`, "env OLD: not set, was 1"}},
		{"the first env", runPreimage(" (command x) (env (CC gcc))"), runPreimage(" (command x)"), []string{"env CC: gcc, was not set"}},
		{"mounts", runPreimage(" (command x) (secrets (a /a) (b /b)) (caches (c /d))"), runPreimage(" (command x) (secrets (a /a)) (caches (c /c))"), []string{
			"secret b /b: added", "cache c /d: added", "cache c /c: removed"}},
		{"order of mounts", runPreimage(" (command x) (secrets (a /a) (b /b))"), runPreimage(" (command x) (secrets (b /b) (a /a))"), []string{
			"secrets: (a /a) (b /b), was (b /b) (a /a)"}},
		{"parent", "(obx/1 run/1 (parent " + hex64("b") + ") (command x))", runPreimage(" (command x)"), []string{
			"step before: " + hex64("b") + ", was " + hex64("a")}},
		{"operation", runPreimage(" (command x)"), copyPreimage(""), []string{"operation: run/1, was copy/1"}},
		{"semantics", runPreimage(" (command x)"), strings.Replace(runPreimage(" (command y)"), "run/1", "run/2", 1), []string{
			"operation: run/1, was run/2", "command: x, was y"}},
		{"base", "(obx/1 base/1 (digest sha256:1) (os linux) (arch arm) (variant v7))", "(obx/1 base/1 (digest sha256:2) (os linux) (arch amd64) (salt x))", []string{
			"digest: sha256:1, was sha256:2", "arch: arm, was amd64", "variant: v7, was none", "salt: none, was x"}},
		{"unknown field", runPreimage(" (command x) (cpu 2)"), runPreimage(" (command x)"), []string{"cpu: 2, was none"}},

		{"one file", copyPreimage(" (dir src (" + file("a", "1") + " (dir lib (" + file("b", "1") + "))))"),
			copyPreimage(" (dir src (" + file("a", "1") + " (dir lib (" + file("b", "2") + "))))"), []string{"source src/lib/b: content differs"}},
		{"all kinds of change", copyPreimage(` (dir "" (` + strings.Join([]string{file("a", "1"), "(link k t)", "(link l t)", "(file x " + hex64("1") + " x)", file("y", "1")}, " ") + "))"),
			copyPreimage(` (dir "" (` + strings.Join([]string{"(dir a ())", "(dir gone ())", file("k", "1"), "(link l u)", file("x", "1"), "(file y " + hex64("1") + " x)"}, " ") + "))"),
			[]string{"source a: a file, was a directory", "source gone: removed", "source k: a link, was a file", "source l: a link to t, was to u",
				"source x: executable, was not", "source y: not executable, was"}},
		{"a new directory is one change", copyPreimage(` (dir "" ((dir d (` + file("a", "1") + "))))"), copyPreimage(` (dir "" ())`), []string{"source d: added"}},
		{"a file", copyPreimage(" " + file("a.ml", "1")), copyPreimage(" " + file("a.ml", "2")), []string{"source a.ml: content differs"}},
		{"all of it", copyPreimage(` (dir "" ` + hex64("1") + ")"), copyPreimage(` (dir "" ` + hex64("2") + ")"), []string{"source .: something in it differs"}},
		{"odd names", copyPreimage(` (file "a b" ` + hex64("1") + ")"), copyPreimage(` (file "a b" ` + hex64("2") + ")"), []string{`source "a b": content differs`}},
		{"another source", copyPreimage(" " + file("a", "1") + " " + file("b", "1")), copyPreimage(" " + file("b", "2") + " " + file("c", "1")), []string{
			"source a: added", "source b: content differs", "source c: removed"}},
		{"order of sources", copyPreimage(" " + file("a", "1") + " " + file("b", "1")), copyPreimage(" " + file("b", "1") + " " + file("a", "1")), []string{
			"sources: in the order a b, was b a"}},
		{"many files", copyPreimage(many("1")), copyPreimage(many("2")), append(func() (s []string) {
			for i := range 10 {
				s = append(s, fmt.Sprintf("source src/f%02d: content differs", i))
			}
			return s
		}(), "and 15 more paths differ")},
		{"destination and user", strings.Replace(copyPreimage(""), "(dst /x/)", "(user 1 1) (dst /y/)", 1), copyPreimage(""), []string{
			"user: 1 1, was the default", "destination: /y/, was /x/"}},
		{"by build and by content", "(obx/1 copy/1 (parent " + hex64("a") + ") (dst /x/) (from " + hex64("b") + ") (src a) (exclude b))", copyPreimage(" " + file("a", "1")), []string{
			"sources: paths of a build, were known by their content"}},
		{"by build", "(obx/1 copy/1 (parent " + hex64("a") + ") (dst /x/) (from " + hex64("b") + ") (src a))",
			"(obx/1 copy/1 (parent " + hex64("a") + ") (dst /x/) (from " + hex64("c") + ") (src a b) (exclude x))", []string{
				"build: " + hex64("b") + ", was " + hex64("c"), "sources: a, was a b", "exclusions: none, was x"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := Diff([]byte(row.now), []byte(row.was))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(row.want, "\n\t"))
			}
			d, back := Distance([]byte(row.now), []byte(row.was)), Distance([]byte(row.was), []byte(row.now))
			if d != back || (d == 0) != (len(got) == 0) {
				t.Errorf("distance %d, and back %d", d, back)
			}
		})
	}
}

func TestDistancePrefersTheEditedStep(t *testing.T) {
	missing := []byte(runPreimage(` (command "make install PREFIX=/usr") (env (CC gcc))`))
	nearest := func(recorded ...string) string {
		return slices.MinFunc(recorded, func(a, b string) int {
			return Distance(missing, []byte(a)) - Distance(missing, []byte(b))
		})
	}
	edited := runPreimage(` (command "make install PREFIX=/opt") (env (CC gcc))`)
	if got := nearest(copyPreimage(""), runPreimage(" (command id)"), edited, "garbage"); got != edited {
		t.Error("an edited command is not the nearest:", got)
	}
	env := runPreimage(` (command "make install PREFIX=/usr") (env (CC clang))`)
	if got := nearest(runPreimage(" (command id) (env (CC gcc))"), env); got != env {
		t.Error("a changed variable is not the nearest:", got)
	}
	if Distance(missing, []byte("garbage")) != math.MaxInt {
		t.Error("garbage is near")
	}
}

func TestReadRefuses(t *testing.T) {
	for _, row := range []struct{ name, in string }{
		{"nothing", ""},
		{"an atom", "obx/1"},
		{"another format", "(obx/2 run/1)"},
		{"no operation", "(obx/1)"},
		{"a list for an operation", "(obx/1 (run/1))"},
		{"an end too early", "(obx/1 run/1"},
		{"something after the end", "(obx/1 run/1)\n"},
		{"two spaces", "(obx/1  run/1)"},
		{"a space before the end", "(obx/1 run/1 )"},
		{"a newline", "(obx/1\nrun/1)"},
		{"no space", "(obx/1 run/1(command x))"},
		{"needless quotes", `(obx/1 run/1 (command "x"))`},
		{"a needless escape", `(obx/1 run/1 (command "\x20"))`},
		{"upper-case hex", `(obx/1 run/1 (command "\xAB"))`},
		{"an unknown escape", `(obx/1 run/1 (command "\q"))`},
		{"a raw newline", "(obx/1 run/1 (command \"a\nb\"))"},
		{"a raw byte", "(obx/1 run/1 (command \xff))"},
		{"a field twice", "(obx/1 run/1 (command x) (command y))"},
		{"a field without a name", "(obx/1 run/1 ())"},
		{"an atom for a field", "(obx/1 run/1 x)"},
		{"files before another field", "(obx/1 copy/1 (files) (dst /x))"},
		{"an unknown kind", copyPreimage(" (pipe a b)")},
		{"a short digest", copyPreimage(" (file a 00)")},
		{"an unknown flag", copyPreimage(" (file a " + hex64("1") + " y)")},
		{"too much", copyPreimage(" (link a b c)")},
		{"a slash in a name", copyPreimage(" " + file("a/b", "1"))},
		{"a dot as a name", copyPreimage(" " + file("..", "1"))},
		{"a file without a name", copyPreimage(` (file "" ` + hex64("1") + ")")},
		{"a nested directory without a name", copyPreimage(` (dir d ((dir "" ())))`)},
		{"a wrong order", copyPreimage(" (dir d (" + file("b", "1") + " " + file("a", "1") + "))")},
		{"a name twice", copyPreimage(" (dir d (" + file("a", "1") + " " + file("a", "1") + "))")},
		{"deep nesting", strings.Repeat("(", 1<<20)},
	} {
		t.Run(row.name, func(t *testing.T) {
			if id, err := Sum([]byte(row.in)); err == nil {
				t.Errorf("Sum gives %s", id)
			}
		})
	}
}

func TestParent(t *testing.T) {
	id, ok, err := Parent([]byte(runPreimage(" (command x)")))
	if err != nil || !ok || id.String() != hex64("a") {
		t.Error(id, ok, err)
	}
	if _, ok, err := Parent([]byte("(obx/1 base/1 (os linux))")); ok || err != nil {
		t.Error(ok, err)
	}
	for _, in := range []string{"(obx/1 run/1 (parent x))", "(obx/1 run/1 (parent))", "(obx/1 run/1 (parent (x)))", "x"} {
		if _, ok, err := Parent([]byte(in)); ok || err == nil {
			t.Error(in, "has a parent")
		}
	}
}

// nested makes a tree with a directory of so many files on each of so many levels.
func nested(levels, files int) Node {
	n := Node{Name: fmt.Sprintf("dir%d", levels), Kind: fs.ModeDir}
	for i := range files {
		n.Children = append(n.Children, Node{Name: fmt.Sprintf("f%03d", i), Digest: digest.FromString(fmt.Sprint(levels, i))})
	}
	if levels > 1 {
		n.Children = append([]Node{nested(levels-1, files)}, n.Children...)
	}
	return n
}

func copyStep(t testing.TB, c *spec.Copy, p ocispec.Platform) *Step {
	t.Helper()
	c.From, c.Dst = "x", "/x/"
	s := &spec.Spec{Stage: spec.Stage{
		Builds: []spec.Build{{Name: "x", Stage: &spec.Stage{From: spec.From{Image: "busybox"}}}},
		From:   spec.From{Image: "busybox"},
		Ops:    []spec.Op{c},
	}}
	plan, err := New(context.Background(), s, Options{Platform: p, Resolver: fakeResolver{}})
	if err != nil {
		t.Fatal(err)
	}
	return plan.Steps[0]
}

func TestCollapse(t *testing.T) {
	step := copyStep(t, &spec.Copy{Src: []string{"d"}}, ocispec.Platform{OS: "linux", Architecture: "amd64"})
	id, full := step.ContentKey(ID{}, []Source{{Src: "d", Node: nested(6, 20)}})
	_, changed := step.ContentKey(ID{}, []Source{{Src: "d", Node: nested(6, 21)}})
	last := math.MaxInt
	for _, limit := range []int{1 << 20, len(full), len(full) - 1, 8000, 4000, 2500, 1000, 0} {
		short, err := Collapse(full, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(short) > max(limit, 300) || len(short) > last {
			t.Errorf("limit %d gives %d bytes of %d", limit, len(short), len(full))
		}
		if limit >= len(full) && !bytes.Equal(short, full) {
			t.Errorf("limit %d collapses %d bytes", limit, len(full))
		}
		if limit == len(full)-1 && len(short) < len(full)/2 {
			t.Errorf("limit %d collapses too much: %d bytes left", limit, len(short))
		}
		last = len(short)
		if sum, err := Sum(short); err != nil || sum != id {
			t.Errorf("limit %d changes the key: %v, %v", limit, sum, err)
		}
		if diff, err := Diff(full, short); err != nil || len(diff) > 0 {
			t.Errorf("limit %d differs: %v, %v", limit, diff, err)
		}
		if diff, err := Diff(changed, short); err != nil || len(diff) == 0 {
			t.Errorf("limit %d: a changed tree does not differ: %v", limit, err)
		}
	}
	if _, err := Collapse([]byte("garbage"), 1); err == nil {
		t.Error("garbage is collapsed")
	}
}

func FuzzPreimage(f *testing.F) {
	vectors, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		f.Fatal(err)
	}
	var seeds [][]byte
	for line := range bytes.Lines(vectors) {
		if bytes.HasPrefix(line, []byte("\t("+format)) {
			seeds = append(seeds, bytes.TrimSpace(line))
		}
	}
	for i := range seeds {
		f.Add(seeds[i], seeds[(i+1)%len(seeds)])
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		_, _, _ = Parent(a)
		diff, err := Diff(a, b)
		d := Distance(a, b)
		id, errA := Sum(a)
		other, errB := Sum(b)
		if errA == nil && errB == nil {
			if err != nil {
				t.Fatalf("Diff: %v", err)
			}
			if same := id == other; same != (len(diff) == 0) || same != (d == 0) {
				t.Fatalf("same key: %v, distance %d, differences %q", same, d, diff)
			}
		}
		if errA == nil {
			short, err := Collapse(a, len(a)/2)
			if err != nil {
				t.Fatal(err)
			}
			if sum, err := Sum(short); err != nil || sum != id {
				t.Fatalf("collapsed to %q: %v, %v", short, sum, err)
			}
		}
	})
}

// FuzzInjective makes two steps from arbitrary bytes: they have one preimage only if they are one step.
func FuzzInjective(f *testing.F) {
	f.Add([]byte("make\x00sh\x00/\x00A\x001"), []byte("make\x00sh\x00/\x00A\x002"))
	f.Add([]byte(`a"b\c (d) é`), []byte(`a" "b\c (d) é`))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 10})
	linux := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	copied := copyStep(f, &spec.Copy{Src: []string{"d"}}, linux)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		runA, runB := arbitraryRun(a), arbitraryRun(b)
		keyA, preA := runA.ContentKey(ID{}, nil)
		keyB, preB := runB.ContentKey(ID{}, nil)
		same := reflect.DeepEqual(runA.Env, runB.Env) && reflect.DeepEqual(runA.Op, runB.Op)
		if same != bytes.Equal(preA, preB) || same != (keyA == keyB) {
			t.Fatalf("the same run: %v\n%s\n%s", same, preA, preB)
		}
		treeA, treeB := arbitraryTree(a), arbitraryTree(b)
		keyA, preA = copied.ContentKey(ID{}, []Source{{Node: treeA}})
		keyB, preB = copied.ContentKey(ID{}, []Source{{Node: treeB}})
		same = reflect.DeepEqual(treeA, treeB)
		if same != bytes.Equal(preA, preB) || same != (keyA == keyB) {
			t.Fatalf("the same tree: %v\n%s\n%s", same, preA, preB)
		}
		for _, c := range []struct {
			id  ID
			pre []byte
		}{{keyA, preA}, {keyB, preB}} {
			if sum, err := Sum(c.pre); err != nil || sum != c.id {
				t.Fatalf("Sum of %s: %v, %v", c.pre, sum, err)
			}
		}
	})
}

// arbitraryRun takes the words between NUL bytes in turn for each part of a step.
func arbitraryRun(b []byte) *Step {
	words := strings.Split(string(b), "\x00")
	next := func() string {
		if len(words) == 0 {
			return ""
		}
		w := words[0]
		words = words[1:]
		return w
	}
	op := &spec.Run{Command: next()}
	s := &Step{Stage: &Stage{Base: Base{Platform: ocispec.Platform{OS: "linux"}}}, Op: op}
	s.Env = DefaultContext(s.Stage.Base.Platform)
	s.Env.Workdir = "/" + next()
	list := func(add func()) {
		for n := len(next()) % 4; n > 0; n-- {
			add()
		}
	}
	list(func() { s.Env.Shell = append(slices.Clip(s.Env.Shell), next()) })
	list(func() { s.Env.Env = setEnv(s.Env.Env, next(), next(), false) })
	list(func() { op.Network = append(op.Network, next()) })
	list(func() { op.Secrets = append(op.Secrets, spec.Mount{ID: next(), Target: next()}) })
	list(func() { op.Caches = append(op.Caches, spec.Mount{ID: next(), Target: next()}) })
	s.Env.User.UID, s.Env.User.GID = len(next()), len(next())
	s.Env.User.Name = next()
	if s.Env.User.Name != "" {
		s.Env.User.UID, s.Env.User.GID = 0, 0
	}
	return s
}

// arbitraryTree takes each byte for a file, or for the end of a directory.
func arbitraryTree(b []byte) Node {
	root := Node{Name: "d", Kind: fs.ModeDir}
	noSlash := strings.NewReplacer("/", "_", "\x00", "_")
	var fill func(n *Node, level int)
	fill = func(n *Node, level int) {
		for i := 0; len(b) > 0; i++ {
			c := b[0]
			b = b[1:]
			child := Node{Name: fmt.Sprintf("%04d%s", i, noSlash.Replace(string(b[:min(len(b), 2)])))}
			switch {
			case c%5 == 0:
				return
			case c%5 == 1 && level < 50:
				child.Kind = fs.ModeDir
				fill(&child, level+1)
			case c%5 == 2:
				child.Kind, child.Link = fs.ModeSymlink, string(b[:min(len(b), 3)])
			default:
				child.Digest, child.Exec = digest.FromBytes([]byte{c}), c%2 == 0
			}
			n.Children = append(n.Children, child)
		}
	}
	fill(&root, 0)
	return root
}
