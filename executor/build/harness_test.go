package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/fake"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/images"
)

// A machine builds specs, in a store of its own, with processes that are only played. Its Builder is copied for each
// build; tests set its fields.
type machine struct {
	build.Builder
	t    testing.TB
	exec *executorSpy
	told warningList // by caches
}

// newMachine makes a machine with an empty store and some source files.
func newMachine(t testing.TB) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("copies make files of root, which only root can")
	}
	m := machineOn(t, conformance.OpenStore(t))
	m.Source = fstest.MapFS{
		"src/a.ml":   {Data: []byte("let a = 1\n"), Mode: 0o644},
		"src/b.ml":   {Data: []byte("let b = 2\n"), Mode: 0o644},
		"src/run.sh": {Data: []byte("exec true\n"), Mode: 0o755},
	}
	return m
}

// another is another process on the same machine.
func (m *machine) another() *machine {
	m.t.Helper()
	st, err := cas.Open(m.Store.Dir())
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := st.Close(); err != nil {
			m.t.Errorf("close the store: %v", err)
		}
	})
	other := machineOn(m.t, st)
	other.Source = m.Source
	return other
}

func machineOn(t testing.TB, st *cas.Store) *machine {
	spy := &executorSpy{Executor: fake.New(st)}
	spy.Executor.Started = spy.started
	im := &images.Resolver{Store: st}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Errorf("close what images were read from: %v", err)
		}
	})
	return &machine{t: t, exec: spy, Builder: build.Builder{Store: st, Executor: spy, Images: im}}
}

// An executorSpy counts what is asked of the executor.
type executorSpy struct {
	*fake.Executor
	readsBytes bool

	// before, if set, sees each process before it runs, and may change its command. Steps of different stages call it at once.
	before func(command *string, p executor.Process)

	mu    sync.Mutex
	ran   []string // commands
	opens int
}

func (e *executorSpy) Open(ctx context.Context, chain []layers.Layer) (executor.Root, error) {
	e.mu.Lock()
	e.opens++
	e.mu.Unlock()
	return e.Executor.Open(ctx, chain)
}

func (e *executorSpy) started(p executor.Process) {
	command := &p.Argv[len(p.Argv)-1]
	e.mu.Lock()
	e.ran = append(e.ran, *command)
	e.mu.Unlock()
	if e.before != nil {
		e.before(command, p)
	}
}

// forget empties the counts.
func (e *executorSpy) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ran, e.opens = nil, 0
}

// An outcome is what a build has shown.
type outcome struct {
	m      *machine
	plan   *keys.Plan
	rep    *build.Report
	err    error
	events []build.Event
	ran    []string       // commands that ran, sorted
	opens  int            // root file systems that were opened
	logs   map[int]string // output of each step, by number
}

// plan makes the plan of a spec.
func (m *machine) plan(text string) *keys.Plan {
	m.t.Helper()
	s, err := spec.Parse("test.spec", []byte(text))
	if err != nil {
		m.t.Fatal(err)
	}
	platform := m.exec.Platform()
	if err := s.Check(platform.OS); err != nil {
		m.t.Fatal(err)
	}
	p, err := keys.New(m.t.Context(), s, keys.Options{Platform: platform, Context: m.Source, Resolver: m.Images})
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

// run builds a spec, and expects that to succeed.
func (m *machine) run(text string) *outcome {
	m.t.Helper()
	o := m.try(m.t.Context(), m.plan(text))
	if o.err != nil {
		m.t.Fatalf("build: %v\n%s", o.err, o)
	}
	return o
}

// try builds a plan, and checks what holds of every build.
func (m *machine) try(ctx context.Context, p *keys.Plan) *outcome {
	m.t.Helper()
	m.exec.forget()
	o := &outcome{m: m, plan: p, logs: map[int]string{}}
	b := m.Builder
	b.Events = func(e build.Event) {
		e.Data = bytes.Clone(e.Data)
		o.events = append(o.events, e) // unguarded on purpose: the race detector holds Run to its word
		if e.Kind == build.Output {
			o.logs[e.Step.Number] += string(e.Data)
		}
		if m.Events != nil {
			m.Events(e)
		}
	}
	o.rep, o.err = b.Run(ctx, p)
	m.exec.mu.Lock()
	o.ran, o.opens = slices.Sorted(slices.Values(m.exec.ran)), m.exec.opens
	m.exec.mu.Unlock()
	o.check()
	return o
}

// String lists the events, for a failing test.
func (o *outcome) String() string {
	var b strings.Builder
	for _, e := range o.events {
		fmt.Fprintf(&b, "  %s", e.Kind)
		if e.Stage != nil {
			fmt.Fprintf(&b, " stage=%q", e.Stage.Name)
		}
		if e.Step != nil {
			fmt.Fprintf(&b, " step=%d", e.Step.Number)
		}
		if e.Op != nil {
			fmt.Fprintf(&b, " %s", spec.Heading(e.Op))
		}
		fmt.Fprintf(&b, " %q%q", e.Data, e.Message)
		if e.Kind == build.Finished {
			fmt.Fprintf(&b, " cached=%v where=%q %s", e.Cached, e.Where, e.Key)
		}
		if e.Err != nil {
			fmt.Fprintf(&b, " err=%v", e.Err)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// steps tells of each step, in the order of the plan, whether it was taken from the store (s) or a cache (c), ran (r)
// or did not finish (-).
func (o *outcome) steps() string {
	state := bytes.Repeat([]byte{'-'}, len(o.plan.Steps))
	for _, e := range o.events {
		if e.Kind != build.Finished {
			continue
		}
		switch {
		case !e.Cached:
			state[e.Step.Number-1] = 'r'
		case e.Where == "store":
			state[e.Step.Number-1] = 's'
		default:
			state[e.Step.Number-1] = 'c'
		}
	}
	return string(state)
}

// want checks what became of each step; see steps.
func (o *outcome) want(steps string) {
	o.m.t.Helper()
	if got := o.steps(); got != steps {
		o.m.t.Errorf("the steps were %s, want %s\n%s", got, steps, o)
	}
}

// wantLogs checks that each step has shown what it showed in another build of the same steps.
func (o *outcome) wantLogs(was *outcome) {
	o.m.t.Helper()
	if !maps.Equal(o.logs, was.logs) {
		o.m.t.Errorf("the logs are %v, were %v\n%s", o.logs, was.logs, o)
	}
}

// events of one kind.
func (o *outcome) kind(k build.Kind) []build.Event {
	var found []build.Event
	for _, e := range o.events {
		if e.Kind == k {
			found = append(found, e)
		}
	}
	return found
}

// warnings that were shown.
func (o *outcome) warnings() []string {
	var all []string
	for _, e := range o.kind(build.Warned) {
		all = append(all, e.Message)
	}
	return all
}

// files reads the result back: what is in each file, by path.
func (o *outcome) files() map[string]string {
	o.m.t.Helper()
	var buf bytes.Buffer
	if _, err := o.m.Write(o.m.t.Context(), o.plan, o.rep, build.OutputSpec{Type: "tar", Dest: "-"}, &buf); err != nil {
		o.m.t.Fatalf("write the result: %v\n%s", err, o)
	}
	return untar(o.m.t, &buf)
}

// wantFiles checks the files of the result.
func (o *outcome) wantFiles(want map[string]string) {
	o.m.t.Helper()
	if got := o.files(); !maps.Equal(got, want) {
		o.m.t.Errorf("the result has %q, want %q\n%s", got, want, o)
	}
}

// untar gives the content of files, by path, without directories.
func untar(t testing.TB, r io.Reader) map[string]string {
	t.Helper()
	files := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
		case tar.TypeSymlink:
			files[path.Clean(h.Name)] = "-> " + h.Linkname
		default:
			files[path.Clean(h.Name)] = string(data)
		}
	}
}

// check checks what holds of every build: which events come, in which order, and that the report adds up.
func (o *outcome) check() {
	t := o.m.t
	t.Helper()
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s\n%s", fmt.Sprintf(format, args...), o)
	}
	n := len(o.events)
	if n < 2 || o.events[0].Kind != build.Planned || o.events[0].Plan != o.plan {
		bad("the first event is not the plan")
		return
	}
	last := o.events[n-1]
	if last.Kind != build.Done || last.Report != o.rep || last.Err != o.err || len(o.kind(build.Done)) != 1 {
		bad("the last event, and only that, is to be Done, with what Run returns")
	}
	if failed := o.kind(build.Failed); (o.err != nil) != (len(failed) == 1) {
		bad("there are %d failures, the error is %v", len(failed), o.err)
	} else if o.err != nil && o.events[n-2].Kind != build.Failed {
		bad("the failure is not the last but one")
	}

	stages := map[*keys.Stage]*stageCheck{}
	hits, runs := 0, 0
	for _, e := range o.events {
		if e.Time.IsZero() {
			bad("an event %s has no time", e.Kind)
		}
		switch e.Kind {
		case build.Planned, build.Warned, build.Pulling, build.Pushing, build.Failed, build.Done:
			continue
		case build.Finished:
			if e.Key == "" || e.Cached != (e.Where != "") {
				bad("step %d: finished with key %q, cached %v, where %q", e.Step.Number, e.Key, e.Cached, e.Where)
			}
			if e.Cached {
				hits++
			} else {
				runs++
			}
		}
		s := stages[e.Stage]
		if s == nil {
			s = &stageCheck{}
			stages[e.Stage] = s
		}
		if err := s.next(e); err != nil {
			bad("stage %q: %v", e.Stage.Name, err)
		}
	}
	if o.rep.Hits != hits || o.rep.Runs != runs {
		bad("the report says %d hits and %d runs; there were %d and %d", o.rep.Hits, o.rep.Runs, hits, runs)
	}
	if o.rep.Took <= 0 {
		bad("the build took %v", o.rep.Took)
	}
	if o.err != nil {
		return
	}
	for _, st := range o.plan.Stages {
		if s := stages[st]; s == nil || !s.done || s.ops != len(st.Spec.Ops) || s.steps != len(st.Steps) {
			bad("stage %q is not shown whole", st.Name)
		}
	}
	if o.rep.Key == "" || o.rep.Results[o.plan.Stages[len(o.plan.Stages)-1]] != o.rep.Key {
		bad("the report's key is %q, its results are %v", o.rep.Key, o.rep.Results)
	}
}

// A stageCheck holds the events of one stage against the order that they have to have.
type stageCheck struct {
	open, done bool
	ops, steps int
	step       *keys.Step // whose heading is printed and that has not finished
	started    bool
}

func (s *stageCheck) next(e build.Event) error {
	if (e.Kind == build.StageOpen) == s.open || s.done {
		return fmt.Errorf("event %s before its start, after its end or again", e.Kind)
	}
	switch e.Kind {
	case build.StageOpen:
		s.open = true
	case build.OpOpen:
		if s.step != nil {
			return fmt.Errorf("a heading within step %d", s.step.Number)
		}
		if e.Op != e.Stage.Spec.Ops[s.ops] || e.Workdir != e.Stage.Contexts[s.ops].Workdir {
			return fmt.Errorf("heading %d is %s in %s", s.ops, spec.Heading(e.Op), e.Workdir)
		}
		if e.Step != nil && e.Step.OpIndex != s.ops {
			return fmt.Errorf("heading %d is of step %d", s.ops, e.Step.Number)
		}
		s.ops++
		s.step, s.started = e.Step, false
	case build.StageDone:
		if s.step != nil {
			return fmt.Errorf("it ends within step %d", s.step.Number)
		}
		s.done = true
	default:
		if s.step == nil || e.Step != s.step {
			return fmt.Errorf("event %s of step %d out of place", e.Kind, e.Step.Number)
		}
		if e.Kind == build.Started {
			s.started = true
		}
		if e.Kind == build.Finished {
			if e.Step.Index != s.steps || e.Cached == s.started {
				return fmt.Errorf("step %d finished: cached %v, started %v", e.Step.Number, e.Cached, s.started)
			}
			s.steps++
			s.step = nil
		}
	}
	return nil
}

// domain is that of a machine's results.
func (m *machine) domain() string {
	if len(m.Domains) > 0 {
		return m.Domains[0]
	}
	return build.DefaultDomain
}

// lose removes the results of steps, by number.
func (o *outcome) lose(numbers ...int) {
	o.m.t.Helper()
	for _, n := range numbers {
		if err := o.m.Store.RemoveResult(o.m.domain(), o.key(n)); err != nil {
			o.m.t.Fatal(err)
		}
	}
}

// key is the content key that a step finished with.
func (o *outcome) key(number int) string {
	o.m.t.Helper()
	for _, e := range o.kind(build.Finished) {
		if e.Step.Number == number {
			return e.Key
		}
	}
	o.m.t.Fatalf("step %d did not finish\n%s", number, o)
	return ""
}

// wantRan checks which commands ran.
func (o *outcome) wantRan(commands ...string) {
	o.m.t.Helper()
	slices.Sort(commands)
	if !slices.Equal(o.ran, commands) {
		o.m.t.Errorf("ran %q, want %q\n%s", o.ran, commands, o)
	}
}

// listStore lists the files of a machine's store that outlive a process.
func listStore(t *testing.T, m *machine) map[string]fs.FileInfo {
	t.Helper()
	all := map[string]fs.FileInfo{}
	for _, dir := range []string{"blobs", "layers", "results"} {
		err := filepath.WalkDir(filepath.Join(m.Store.Dir(), dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			all[name], err = d.Info()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// changes lists the files that are new, gone or replaced.
func changes(before, after map[string]fs.FileInfo) []string {
	var all []string
	for name, info := range after {
		if was := before[name]; was == nil {
			all = append(all, "+"+name)
		} else if !os.SameFile(was, info) {
			all = append(all, "!"+name)
		}
	}
	for name := range before {
		if after[name] == nil {
			all = append(all, "-"+name)
		}
	}
	slices.Sort(all)
	return all
}

// storeHolds lists the files of a store that have text in them or in their name.
func storeHolds(t *testing.T, dir, text string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.Contains(d.Name(), text) {
			found = append(found, name)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(name)
		if bytes.Contains(data, []byte(text)) {
			found = append(found, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func (e *executorSpy) ReadsBytes() bool { return e.readsBytes }
