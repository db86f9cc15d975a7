package build_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
)

// A copy from a build that was made again with the same files, and all steps after it, are found by content. The next time they
// are found without any file.
func TestContentKeys(t *testing.T) {
	t.Parallel()
	const text = `((build b ((from scratch) (run (shell "echo of b > /b; echo %v > /other"))))
		(from scratch)
		(run (shell "echo first"))
		(copy (from (build b)) (src /b) (dst /copied))
		(run (shell "cat /copied; echo last > /last"))
		(run (shell "cat /last")))`
	m := newMachine(t)
	first := m.run(fmt.Sprintf(text, 1))
	first.want("rrrrr")
	for _, again := range []*machine{m.another(), m.another()} {
		o := again.run(fmt.Sprintf(text, 2))
		if again := o.steps() == "sssss"; again && o.opens != 0 {
			t.Errorf("%d roots were opened to find all", o.opens)
		}
		if o.rep.Key != first.rep.Key {
			t.Errorf("the result is %s, was %s", o.rep.Key, first.rep.Key)
		}
		o.wantLogs(first)
		o.wantFiles(map[string]string{"copied": "of b\n", "last": "last\n"})
	}
	m.run(fmt.Sprintf(text, 3)).want("rssss")
	before := listStore(t, m)
	m.another().run(fmt.Sprintf(text, 3)).want("sssss")
	if changed := changes(before, listStore(t, m)); len(changed) > 0 {
		t.Errorf("a build that found all has changed %q", changed)
	}
	other := strings.ReplaceAll(fmt.Sprintf(text, 1), "of b", "Of b")
	m.run(other).want("rsrrr")
	m.run(fmt.Sprintf(text, 1)).want("sssss")
	m.run(other).want("sssss")
}

// The same holds where the files come from the source directory, or through another build.
func TestContentKeysAcrossSources(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.run(`((from scratch) (copy (src src/a.ml) (dst /x/)) (run (shell "cat /x/a.ml")))`).want("rr")
	m.run(`((build b ((from scratch) (copy (src src) (dst /)))) (from scratch)
		(copy (from (build b)) (src src/a.ml) (dst /x/)) (run (shell "cat /x/a.ml")))`).want("rss")
	m.run(`((build c ((from scratch) (copy (src src) (dst /)))) (build b ((from scratch)
		(copy (from (build c)) (src src/a.ml) (dst /b/)))) (from scratch)
		(copy (from (build b)) (src b/a.ml) (dst /x/)) (run (shell "cat /x/a.ml")))`).want("srss")
}

// With two copies from builds, each is looked up when its files are there.
func TestContentKeysOfTwoBuilds(t *testing.T) {
	t.Parallel()
	const text = `((build a ((from scratch) (run (shell "echo a > /a; echo %s > /other"))))
		(build b ((from scratch) (run (shell "echo %s > /b; echo %[1]s > /other"))))
		(from scratch)
		(copy (from (build a)) (src /a) (dst /))
		(run (shell "cat /a"))
		(copy (from (build b)) (src /b) (dst /))
		(run (shell "cat /b")))`
	m := newMachine(t)
	m.run(fmt.Sprintf(text, "1", "b")).want("rrrrrr")
	m.run(fmt.Sprintf(text, "2", "b")).want("rrssss")
	m.run(fmt.Sprintf(text, "3", "B")).want("rrssrr")
	m.run(fmt.Sprintf(text, "3", "b")).want("srssss")
}

// In a domain with parents, the parents' results are found by content too, and remembered by input key; the parents see
// nothing of that.
func TestDomains(t *testing.T) {
	t.Parallel()
	const text = `((build b ((from scratch) (run (shell "echo of b > /b; echo %v > /other"))))
		(from scratch) (copy (from (build b)) (src /b) (dst /)) (run (shell "cat /b; echo %[2]s > /made")))`
	m := newMachine(t)
	m.run(fmt.Sprintf(text, "1", "x")).want("rrr")
	pr := m.another()
	pr.Domains = []string{"pr-7", "default"}
	pr.run(fmt.Sprintf(text, "1", "x")).want("sss")
	pr.run(fmt.Sprintf(text, "2", "x")).want("rss")
	again := pr.run(fmt.Sprintf(text, "2", "x"))
	again.want("sss")
	if again.opens != 0 {
		t.Errorf("%d roots were opened to find all", again.opens)
	}
	pr.run(fmt.Sprintf(text, "1", "y")).want("ssr")
	m.run(fmt.Sprintf(text, "1", "y")).want("ssr")
	m.run(fmt.Sprintf(text, "2", "x")).want("rss")
	other := m.another()
	other.Domains = []string{"other"}
	other.run(fmt.Sprintf(text, "1", "x")).want("rrr")
}

// What a domain makes again does not change what its parent sees.
func TestDomainDoesNotPoisonParent(t *testing.T) {
	t.Parallel()
	const text = `((from scratch) (run (shell "echo made > /f")) (run (shell "cat /f")))`
	m := newMachine(t)
	m.run(text)
	pr := m.another()
	pr.Domains = []string{"pr-7", "default"}
	pr.NoCache = true
	pr.exec.before = func(command *string, _ executor.Process) { *command = strings.Replace(*command, "made", "evil", 1) }
	pr.run(text).wantFiles(map[string]string{"f": "evil\n"})
	pr.NoCache = false
	o := pr.run(text)
	o.want("ss")
	o.wantFiles(map[string]string{"f": "evil\n"})
	o = m.run(text)
	o.want("ss")
	o.wantFiles(map[string]string{"f": "made\n"})
}

// chain has a stage that copies from a stage that copies from a stage.
const chain = `((build a ((from scratch) (run (shell "echo a; echo a > /a"))))
	(build b ((from scratch) (copy (from (build a)) (src /a) (dst /b)) (run (shell "cat /b"))))
	(from scratch) (copy (from (build b)) (src /b) (dst /c)) (run (shell "cat /c")))`

// A stage whose consumers are satisfied runs nothing, even if its own results are lost, and so do those that it copies from.
// Those that are there show their logs.
func TestReleased(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	first := m.run(chain)
	first.want("rrrrr")
	for _, lost := range [][]int{{}, {1}, {2, 3}, {1, 2, 3}} {
		first.lose(lost...)
		o := m.run(chain)
		o.want("sssss")
		o.wantRan()
		for n, log := range first.logs {
			if want := log; len(lost) == 0 && o.logs[n] != want {
				t.Errorf("step %d printed %q, want %q", n, o.logs[n], want)
			}
		}
	}
	// Now they are needed.
	o := m.run(strings.ReplaceAll(chain, "/c", "/C"))
	o.want("rrrrr")
	o.wantFiles(map[string]string{"C": "a\n"})
}

// Of a stage with two consumers, one of them satisfied, the files are made if the other needs them; once.
func TestOneOfTwoConsumers(t *testing.T) {
	t.Parallel()
	const text = `((build a ((from scratch) (run (shell "echo a; echo a > /a"))))
		(build b ((from scratch) (copy (from (build a)) (src /a) (dst /b)) (run (shell "cat /b; echo %s"))))
		(from scratch) (copy (from (build a)) (src /a) (dst /c)) (copy (from (build a)) (src /a) (dst /d)) (run (shell "cat /c")))`
	m := newMachine(t)
	first := m.run(fmt.Sprintf(text, "once"))
	first.want("rrrrrr")
	m.run(fmt.Sprintf(text, "twice")).want("ssrsss")
	first.lose(1)
	m.run(fmt.Sprintf(text, "thrice")).want("ssrsss") // b has its copy; nobody needs a
	first.lose(1, 2)
	o := m.run(fmt.Sprintf(text, "four"))
	o.want("rrrsss")
	o.wantFiles(map[string]string{"c": "a\n", "d": "a\n"})
}

// A build that nobody copies from is built for its own sake.
func TestUnusedBuilds(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	const text = `((build a ((build inner ((from scratch) (run (shell "echo inner")))) (from scratch) (run (shell "echo a")))) (from scratch) (run (shell "echo %s")))`
	first := m.run(fmt.Sprintf(text, "once"))
	first.want("rrr")
	m.run(fmt.Sprintf(text, "twice")).want("ssr")
	first.lose(1)
	m.run(fmt.Sprintf(text, "twice")).want("rss")
}

// Stages that are equal, or begin equal, share their steps.
func TestEqualStages(t *testing.T) {
	t.Parallel()
	const text = `((build a ((from scratch) (run (shell "echo same > /f")) (run (shell "echo a > /a"))))
		(build b ((from scratch) (run (shell "echo same > /f")) (run (shell "echo b > /b"))))
		(from scratch) (run (shell "echo same > /f")) (copy (from (build a)) (src /a) (dst /)) (copy (from (build b)) (src /b) (dst /)))`
	all := map[string]string{"f": "same\n", "a": "a\n", "b": "b\n"}
	m := newMachine(t)
	o := m.run(text)
	o.wantRan("echo same > /f", "echo a > /a", "echo b > /b")
	o.wantFiles(all)
	m.run(text).want("sssssss")

	// Also when nothing is believed: a step that this build has run is not in doubt.
	m.NoCache = true
	var n atomic.Int64
	m.exec.before = func(command *string, _ executor.Process) {
		*command += fmt.Sprintf("; echo %d > /n", n.Add(1)) // never twice the same files
	}
	o = m.run(text)
	o.wantRan("echo same > /f", "echo a > /a", "echo b > /b")
	delete(all, "n")
	got := o.files()
	delete(got, "n")
	if fmt.Sprint(got) != fmt.Sprint(all) {
		t.Errorf("the files are %q", got)
	}
	m.NoCache = false
	m.run(text).want("sssssss")
}

// NoCache runs everything; the results replace those that were there.
func TestNoCache(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.run(project)
	m.NoCache = true
	again := m.run(project)
	again.want("rrrrrrrr")
	again.wantFiles(projectFiles)
	m.NoCache = false
	m.run(project).want("ssssssss")
}

// Rebuild runs a step again, and those after it in its stage. Copies from that stage, and what follows them, are looked up by
// content.
func TestRebuild(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		rebuild int
		differs bool // the step makes other files than before
		steps   string
	}{
		"middle":                    {5, false, "ssssrr"},
		"first":                     {3, false, "ssrrrr"},
		"last":                      {6, false, "sssssr"},
		"nested, the same files":    {1, false, "rrssss"},
		"nested, other files":       {1, true, "rrrrrr"},
		"end of nested, same files": {2, false, "srssss"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const text = `((build b ((from scratch) (run (shell "echo made > /b")) (run (shell "cat /b"))))
				(from scratch) (copy (from (build b)) (src /b) (dst /)) (run (shell "cat /b")) (run (shell "echo x > /x"))
				(run (shell "echo y > /y")))`
			m := newMachine(t)
			m.run(text).want("rrrrrr")
			if test.differs {
				m.exec.before = func(command *string, _ executor.Process) {
					*command = strings.Replace(*command, "echo made", "echo different", 1)
				}
			}
			plan := m.plan(text)
			m.Rebuild = map[*keys.Step]bool{plan.Steps[test.rebuild-1]: true}
			o := m.try(t.Context(), plan)
			o.want(test.steps)
			m.Rebuild = nil
			files := map[string]string{"b": "made\n", "x": "x\n", "y": "y\n"}
			if test.differs {
				files["b"] = "different\n"
			}
			o.wantFiles(files)
			again := m.run(text)
			again.want("ssssss")
			again.wantFiles(files)
		})
	}
}

// A result that was made on other files than its parent has now does not count.
func TestParentWasRebuilt(t *testing.T) {
	t.Parallel()
	const short = `((from scratch) (run (shell "echo made > /f")))`
	const long = `((from scratch) (run (shell "echo made > /f")) (run (shell "cat /f")) (run (shell "echo x > /x")))`
	m := newMachine(t)
	m.run(long).want("rrr")
	m.NoCache = true
	m.run(short).want("r")
	m.NoCache = false
	m.run(long).want("sss") // the same files: as good as before
	m.NoCache = true
	m.exec.before = func(command *string, _ executor.Process) { *command = strings.Replace(*command, "made", "changed", 1) }
	m.run(short).want("r")
	m.NoCache = false
	o := m.run(long)
	o.want("srr")
	if o.logs[2] != "changed\n" {
		t.Errorf("step 2 printed %q", o.logs[2])
	}
	o.wantFiles(map[string]string{"f": "changed\n", "x": "x\n"})
}

// What is broken or lost is made again, as little as may be, and the result is right.
func TestBroken(t *testing.T) {
	t.Parallel()
	const text = `((build b ((from scratch) (run (shell "echo b > /b"))))
		(from scratch)
		(run (shell "echo one; echo 1 > /one"))
		(copy (src src/a.ml) (dst /))
		(copy (from (build b)) (src /b) (dst /))
		(run (shell "cat /b; echo 5 > /five")))`
	want := map[string]string{"one": "1\n", "a.ml": "let a = 1\n", "b": "b\n", "five": "5\n"}
	type damage func(t *testing.T, o *outcome)
	data := func(n int, change func(data []byte) string) damage {
		return func(t *testing.T, o *outcome) {
			res, err := o.m.Store.Result(o.m.domain(), o.key(n))
			if err != nil {
				t.Fatal(err)
			}
			res.Data = json.RawMessage(change(res.Data))
			if err := o.m.Store.PutResult(o.m.domain(), res); err != nil {
				t.Fatal(err)
			}
		}
	}
	text2 := func(s string) func([]byte) string { return func([]byte) string { return s } }
	record := func(t *testing.T, o *outcome, n int) *results.Record {
		rec, err := o.m.Record(o.key(n))
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	removeBlob := func(t *testing.T, o *outcome, d digest.Digest) {
		remove(t, filepath.Join(o.m.Store.Dir(), "blobs", "sha256", d.Encoded()))
	}
	for name, test := range map[string]struct {
		damage damage
		steps  string
	}{
		"record lost":                        {func(_ *testing.T, o *outcome) { o.lose(2) }, "srsss"},
		"last record lost":                   {func(_ *testing.T, o *outcome) { o.lose(5) }, "ssssr"},
		"record is a string":                 {data(3, text2(`"garbage"`)), "ssrrr"},
		"record is empty":                    {data(3, text2(`{}`)), "ssrrr"},
		"last record is empty":               {data(5, text2(`{}`)), "ssssr"},
		"record is null":                     {data(5, text2(`null`)), "ssssr"},
		"record is of another type":          {data(5, text2(`{"layers":"none","id":"x"}`)), "ssssr"},
		"record has no such parent":          {data(5, func(b []byte) string { return replaceField(b, "parent", "not a key") }), "ssssr"},
		"parent's files are others":          {data(2, func(b []byte) string { return replaceField(b, "id", "0123") }), "ssrrr"},
		"result file is cut":                 {func(t *testing.T, o *outcome) { truncate(t, o, 5) }, "ssssr"},
		"base record lost":                   {func(t *testing.T, o *outcome) { loseBases(t, o) }, "sssss"},
		"all but the last lost":              {func(_ *testing.T, o *outcome) { o.lose(1, 2, 3, 4) }, "rrrrr"},
		"blob of a layer lost":               {func(t *testing.T, o *outcome) { removeBlob(t, o, record(t, o, 5).Layers[0].Blob.Digest) }, "ssssr"},
		"blob of a layer in the middle lost": {func(t *testing.T, o *outcome) { removeBlob(t, o, record(t, o, 2).Layers[0].Blob.Digest) }, "srsss"},
		"directory of a layer lost": {func(t *testing.T, o *outcome) {
			remove(t, filepath.Join(o.m.Store.Dir(), "layers", record(t, o, 3).Layers[0].Dir))
		}, "ssrrr"},
		"directory of a packed layer lost": {func(t *testing.T, o *outcome) {
			spec := build.OutputSpec{Type: "oci", Dest: filepath.Join(t.TempDir(), "oci.tar")}
			if _, err := o.m.Write(t.Context(), o.plan, o.rep, spec, nil); err != nil {
				t.Fatal(err)
			}
			remove(t, filepath.Join(o.m.Store.Dir(), "layers", record(t, o, 3).Layers[0].Dir))
		}, "sssss"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			first := m.run(text)
			first.want("rrrrr")
			first.wantFiles(want)
			test.damage(t, first)
			// Another process, since this one was told what is there.
			o := m.another().run(text)
			o.want(test.steps)
			o.wantFiles(want)
			if o.rep.Key != first.rep.Key {
				t.Errorf("the result is %s, was %s", o.rep.Key, first.rep.Key)
			}
			healed := m.another().run(text)
			healed.want("sssss")
			healed.wantFiles(want)
		})
	}
}

// A large log that is lost makes its result a miss.
func TestLostLog(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	text := `((from scratch) (run (shell "` + strings.Repeat("echo "+strings.Repeat("x", 1<<10)+";", 100) + `")))`
	first := m.run(text)
	rec, err := m.Record(first.key(1))
	if err != nil {
		t.Fatal(err)
	}
	remove(t, filepath.Join(m.Store.Dir(), "blobs", "sha256", rec.LogBlob.Encoded()))
	o := m.another().run(text)
	o.want("r")
	o.wantLogs(first)
}

// An alias that leads nowhere, to another alias or to itself is a miss.
func TestBrokenAlias(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]func(input, content string) string{
		"nowhere":         func(string, string) string { return strings.Repeat("0", 64) },
		"to itself":       func(input, _ string) string { return input },
		"not a key":       func(string, string) string { return "content" },
		"something wrong": func(string, string) string { return "../../../etc" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			const text = `((build b ((from scratch) (run (shell "echo b > /b")))) (from scratch) (copy (from (build b)) (src /b) (dst /)))`
			first := m.run(text)
			input := first.plan.Steps[1].Key.String()
			alias := &cas.Result{Key: input, Alias: target(input, first.key(2))}
			if err := m.Store.PutResult(m.domain(), alias); err != nil {
				t.Fatal(err)
			}
			m.another().run(text).want("ss") // by content
			again := m.another().run(text)
			again.want("ss")
			if again.opens != 0 {
				t.Error("the alias was not mended")
			}
		})
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Lstat(name); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, o *outcome, n int) {
	t.Helper()
	key := o.key(n)
	name := filepath.Join(o.m.Store.Dir(), "results", o.m.domain(), key[:2], key)
	if err := os.Truncate(name, 100); err != nil {
		t.Fatal(err)
	}
}

func loseBases(t *testing.T, o *outcome) {
	t.Helper()
	for _, s := range o.plan.Stages {
		if err := o.m.Store.RemoveResult(o.m.domain(), s.BaseKey.String()); err != nil {
			t.Fatal(err)
		}
	}
}

func replaceField(data []byte, name, value string) string {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &fields); err != nil {
		panic(err)
	}
	fields[name], _ = json.Marshal(value)
	b, _ := json.Marshal(fields)
	return string(b)
}
