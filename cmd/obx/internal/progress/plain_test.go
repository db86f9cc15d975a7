package progress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// A recording makes a plan, and the events of building it.
type recording struct {
	plan   *keys.Plan
	stages map[string]*keys.Stage
}

// record plans stages, given in the order of the log as "NAME" or "PARENT/NAME"; the last is the outermost, "".
func record(names ...string) *recording {
	r := &recording{plan: &keys.Plan{}, stages: map[string]*keys.Stage{}}
	for i := len(names) - 1; i >= 0; i-- {
		parent, name, nested := strings.Cut(names[i], "/")
		if !nested {
			parent, name = "", names[i]
		}
		s := &keys.Stage{Name: name, Spec: &spec.Stage{From: spec.From{Image: "busybox"}}, BaseKey: keys.ID{0xba, 0x5e}}
		if name != "" {
			s.Parent = r.stages[parent]
		}
		r.stages[name] = s
		r.plan.Stages = append([]*keys.Stage{s}, r.plan.Stages...)
	}
	for _, s := range r.plan.Stages {
		s.Spec.Ops = []spec.Op{
			&spec.Shell{Argv: []string{"/bin/sh", "-c"}},
			&spec.Run{Command: "make " + s.Name, Pos: spec.Pos{Line: 7, Col: 2}},
		}
		step := &keys.Step{Stage: s, Number: len(r.plan.Steps) + 1, OpIndex: 1, Op: s.Spec.Ops[1], Env: keys.Context{Workdir: "/src"}}
		s.Steps = []*keys.Step{step}
		r.plan.Steps = append(r.plan.Steps, step)
	}
	return r
}

func (r *recording) planned() build.Event { return build.Event{Kind: build.Planned, Plan: r.plan} }

// open gives the events of a stage up to its step's heading.
func (r *recording) open(name string) []build.Event {
	s := r.stages[name]
	return []build.Event{
		{Kind: build.StageOpen, Stage: s},
		{Kind: build.OpOpen, Stage: s, Op: s.Spec.Ops[0], Workdir: "/src"},
		{Kind: build.OpOpen, Stage: s, Op: s.Spec.Ops[1], Workdir: "/src", Step: s.Steps[0]},
	}
}

func (r *recording) start(name string) build.Event {
	return build.Event{Kind: build.Started, Stage: r.stages[name], Step: r.stages[name].Steps[0]}
}

func (r *recording) output(name, text string) build.Event {
	return build.Event{Kind: build.Output, Stage: r.stages[name], Step: r.stages[name].Steps[0], Data: []byte(text)}
}

// finish gives the events at the end of a stage.
func (r *recording) finish(name string, cached bool) []build.Event {
	s := r.stages[name]
	return []build.Event{
		{Kind: build.Finished, Stage: s, Step: s.Steps[0], Key: "key-" + name, Cached: cached, Where: "store"},
		{Kind: build.StageDone, Stage: s},
	}
}

// fail gives the events of a failed build.
func (r *recording) fail(name string, err error) []build.Event {
	failed := build.Event{Kind: build.Failed, Err: err}
	if name != "-" {
		failed.Step, failed.Stage = r.stages[name].Steps[0], r.stages[name]
	}
	return []build.Event{failed, {Kind: build.Done, Report: &build.Report{}, Err: err}}
}

func done() build.Event {
	return build.Event{Kind: build.Done, Report: &build.Report{Key: "key-"}}
}

// show gives events, and slices of them, to a printer.
func show(p Printer, events ...any) error {
	for _, e := range events {
		switch e := e.(type) {
		case build.Event:
			p.Event(e)
		case []build.Event:
			for _, e := range e {
				p.Event(e)
			}
		}
	}
	return p.Close()
}

const base = "ba5e000000000000000000000000000000000000000000000000000000000000"

// log is the log of a stage that ran.
func log(name, output, result string) string {
	return fmt.Sprintf("(from busybox)\n---> using %q from cache\n/src: (shell /bin/sh -c)\n/src: (run (shell %q))\n%s%s",
		base, "make "+name, output, result)
}

func saved(name string) string  { return fmt.Sprintf("---> saved as %q\n", "key-"+name) }
func cached(name string) string { return fmt.Sprintf("---> using %q from cache\n", "key-"+name) }

// On a terminal nothing that a step prints passes for what obx says, and what would act on the terminal is shown.
func TestPlainTerminal(t *testing.T) {
	forged := "Got: \"key-\"\n---> saved as \"key-\"\n" + strings.Repeat(" ", 55) + "Got: \"key-\"\n1%\r\x1b[1A\x1b[2KGot\n\x1b]52;c;aGk=\a\x1b[31mred\nno end"
	shown := `  | Got: "key-"
  | ---> saved as "key-"
  | ` + strings.Repeat(" ", 55) + `
  | Got: "key-"
  | 1%
  | \x1b[1A\x1b[2KGot
  | \x1b]52;c;aGk=\x07` + "\x1b[31mred\x1b[0m" + `
  | no end
`
	for _, cut := range []int{1, 7, len(forged)} {
		r := record("dev", "")
		long := strings.Repeat("x", 50) + "Got: \"key-\""
		r.stages[""].Spec.Ops[1].(*spec.Run).Command = long
		events := []any{r.planned(), r.open("dev"), r.open("")}
		for _, name := range []string{"", "dev"} { // the outermost stage's is spooled
			for i := 0; i < len(forged); i += cut {
				events = append(events, r.output(name, forged[i:min(i+cut, len(forged))]))
			}
		}
		events = append(events, r.finish("dev", false), r.finish("", true), done())
		var out bytes.Buffer
		if err := show(NewPlain(&out, io.Discard, func() int { return 60 }), events...); err != nil {
			t.Fatal(err)
		}
		want := "(build \"dev\" …)\n(from busybox)\n---> using \"" + base[:47] + "\n    " + base[47:] + "\" from cache\n/src: (shell /bin/sh -c)\n/src: (run (shell \"make dev\"))\n" +
			shown + saved("dev") + "--> finished \"dev\"\n" +
			"(from busybox)\n---> using \"" + base[:47] + "\n    " + base[47:] + "\" from cache\n/src: (shell /bin/sh -c)\n/src: (run (shell \"" + strings.Repeat("x", 40) + "\n    " + strings.Repeat("x", 10) + `Got: \"key-\""))` + "\n" +
			shown + cached("") + "Got: \"key-\"\n"
		if out.String() != want {
			t.Errorf("in pieces of %d:\n%s\nwant:\n%s", cut, out.String(), want)
		}
	}
}

// A note begins a line, in its own colours, and so does what the step prints after it.
func TestPlainNotes(t *testing.T) {
	r := record("")
	var terminal bytes.Buffer // standard output and standard error
	p := NewPlain(&terminal, &terminal, func() int { return 60 })
	if err := show(p, r.planned(), r.open(""), r.output("", "\x1b[8mhidden"), build.Event{Kind: build.Warned, Message: "look"},
		r.output("", "obx: warning: forged\n"), r.finish("", false), done()); err != nil {
		t.Fatal(err)
	}
	if got := terminal.String(); !strings.Contains(got, "\n  | \x1b[8mhidden\x1b[0m\nobx: warning: look\n  | obx: warning: forged\n") {
		t.Errorf("the terminal gets %q", got)
	}
}

func TestPlain(t *testing.T) {
	nested := func() *recording { return record("a", "b/inner", "b", "") }
	a, inner, b, outer := log("a", "A\n", saved("a")), log("inner", "I\n", saved("inner")), log("b", "B\n", saved("b")), log("", "O\n", saved(""))
	whole := "(build \"a\" …)\n" + a + "--> finished \"a\"\n" +
		"(build \"b\" …)\n(build \"inner\" …)\n" + inner + "--> finished \"inner\"\n" + b + "--> finished \"b\"\n" + outer + "Got: \"key-\"\n"
	exit := errors.New("exit status 7")

	for _, test := range []struct {
		name   string
		events func(r *recording) []any
		want   string
	}{
		{"in order", func(r *recording) []any {
			var all []any
			for _, s := range []struct{ name, out string }{{"a", "A\n"}, {"inner", "I\n"}, {"b", "B\n"}, {"", "O\n"}} {
				all = append(all, r.open(s.name), r.output(s.name, s.out), r.finish(s.name, false))
			}
			return append(all, done())
		}, whole},
		{"in the opposite order", func(r *recording) []any {
			var all []any
			for _, s := range []struct{ name, out string }{{"", "O\n"}, {"b", "B\n"}, {"inner", "I\n"}, {"a", "A\n"}} {
				all = append(all, r.open(s.name), r.output(s.name, s.out), r.finish(s.name, false))
			}
			return append(all, done())
		}, whole},
		{"interleaved", func(r *recording) []any {
			return []any{
				r.open(""), r.open("b"), r.open("inner"), r.output("inner", "I"), r.open("a"), r.output("a", "A"), r.output("inner", "\n"),
				r.finish("inner", false), r.output("b", "B\n"), r.finish("b", false), r.output("a", "\n"), r.finish("a", false),
				r.output("", "O\n"), r.finish("", false), done(),
			}
		}, whole},
		{"cached, and output without a newline", func(r *recording) []any {
			var all []any
			for _, s := range []string{"a", "inner", "b", ""} {
				all = append(all, r.open(s), r.output(s, "x"), r.finish(s, true))
			}
			return append(all, done())
		}, "(build \"a\" …)\n" + log("a", "x", cached("a")) + "--> finished \"a\"\n" +
			"(build \"b\" …)\n(build \"inner\" …)\n" + log("inner", "x", cached("inner")) + "--> finished \"inner\"\n" +
			log("b", "x", cached("b")) + "--> finished \"b\"\n" + log("", "x", cached("")) + "Got: \"key-\"\n"},
		{"the failure comes last", func(r *recording) []any {
			return []any{
				r.open("a"), r.output("a", "half"), r.open("inner"), r.output("inner", "I\n"), r.finish("inner", false),
				r.open("b"), r.output("b", "broken"), r.open(""), r.fail("b", exit),
			}
		}, "(build \"a\" …)\n" + log("a", "half", "\n") + "(build \"b\" …)\n(build \"inner\" …)\n" + inner + "--> finished \"inner\"\n" +
			log("b", "broken", "\n")},
		{"the first stage fails", func(r *recording) []any {
			return []any{r.open("a"), r.output("a", "oh\n"), r.fail("a", exit)}
		}, "(build \"a\" …)\n" + log("a", "oh\n", "")},
		{"interrupted", func(r *recording) []any {
			return []any{r.open("inner"), r.open("a"), r.output("inner", "I\n"), r.fail("-", context.Canceled)}
		}, "(build \"a\" …)\n" + log("a", "", "")},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := nested()
			var out bytes.Buffer
			if err := show(NewPlain(&out, io.Discard, nil), append([]any{r.planned()}, test.events(r)...)...); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}

// A long log of a stage that has to wait goes to a file without a name.
func TestPlainSpoolsToDisk(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	r := record("a", "")
	var out bytes.Buffer
	p := NewPlain(&out, io.Discard, nil)
	p.Event(r.planned())
	for _, e := range r.open("") {
		p.Event(e)
	}
	chunk := strings.Repeat("x", 1000) + "\n"
	for range 3000 {
		p.Event(r.output("", chunk))
	}
	if l := p.logs[r.stages[""]]; l.spool.file == nil || l.spool.mem.Cap() > 2*spoolMemory {
		t.Errorf("file %v, %d bytes in memory", l.spool.file, l.spool.mem.Cap())
	}
	if names, _ := filepath.Glob(dir + "/*"); len(names) > 0 {
		t.Errorf("%v has a name", names)
	}
	if err := show(p, r.open("a"), r.finish("a", false), r.finish("", false), done()); err != nil {
		t.Fatal(err)
	}
	want := "(build \"a\" …)\n" + log("a", "", saved("a")) + "--> finished \"a\"\n" + log("", strings.Repeat(chunk, 3000), saved("")) + "Got: \"key-\"\n"
	if out.String() != want {
		t.Errorf("%d bytes instead of %d", out.Len(), len(want))
	}
}

// A reader that went away is an error, not a success.
func TestPlainWriteError(t *testing.T) {
	r := record("")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full on this system")
	}
	defer full.Close()
	if err := show(NewPlain(full, io.Discard, nil), r.planned(), r.open(""), r.finish("", false), done()); err == nil {
		t.Error("no error")
	}
}

// What a name was resolved to is told once, and not when the spec says it.
func TestPinned(t *testing.T) {
	r := record("a", "b", "c", "")
	for name, image := range map[string]string{"a": "busybox", "b": "busybox", "c": "x@sha256:1", "": "scratch"} {
		s := r.stages[name]
		s.Spec.From.Image = image
		if image != "scratch" {
			s.Base = keys.Base{Ref: "docker.io/library/" + image, Digest: "sha256:1"}
		}
	}
	var out, notes bytes.Buffer
	show(NewPlain(&out, &notes, nil), r.planned())
	if got, want := notes.String(), "obx: busybox is docker.io/library/busybox@sha256:1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// That pushes are waited for is told once, and not in the log.
func TestPushing(t *testing.T) {
	r := record("")
	var out, notes bytes.Buffer
	p := NewPlain(&out, &notes, nil)
	show(p, r.planned(), build.Event{Kind: build.Pushing, Left: 2, Bytes: 1e6}, build.Event{Kind: build.Pushing, Left: 1, Bytes: 2e6})
	if got, want := notes.String(), "obx: pushing 2 results, 1MB sent so far\n"; got != want || out.Len() > 0 {
		t.Errorf("got %q and %q, want %q", got, &out, want)
	}
}

func TestQuiet(t *testing.T) {
	r := record("")
	var out, errs bytes.Buffer
	warning := build.Event{Kind: build.Warned, Message: "beware"}
	if err := show(NewQuiet(&out, &errs), r.planned(), warning, r.open(""), r.output("", "noise\n"), r.finish("", false), done()); err != nil {
		t.Fatal(err)
	}
	if out.String() != "key-\n" || errs.String() != "obx: warning: beware\n" {
		t.Errorf("out %q, err %q", &out, &errs)
	}
	out.Reset()
	show(NewQuiet(&out, &errs), r.planned(), r.fail("", errors.New("exit status 1")))
	if out.Len() > 0 {
		t.Errorf("a failed build printed %q", &out)
	}
}
