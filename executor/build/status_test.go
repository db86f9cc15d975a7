package build_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/ocurrent/obx/keys"
)

// statuses asks what a run would do, and checks the answer against a run: s for a step that is in the store, r for one that runs,
// - for one that is nowhere and not needed.
func (m *machine) statuses(p *keys.Plan) string {
	m.t.Helper()
	m.exec.forget()
	steps, bases, err := m.Status(m.t.Context(), p)
	if err != nil {
		m.t.Fatal(err)
	}
	if len(steps) != len(p.Steps) || len(bases) != len(p.Stages) {
		m.t.Fatalf("%d steps and %d bases", len(steps), len(bases))
	}
	if m.exec.opens > 0 || len(m.exec.ran) > 0 {
		m.t.Errorf("it opened %d roots and ran %q", m.exec.opens, m.exec.ran)
	}
	var all strings.Builder
	for i, s := range steps {
		if s.Step != p.Steps[i] || s.Key == "" {
			m.t.Errorf("status %d is %+v", i, s)
		}
		switch {
		case s.Where == "store":
			all.WriteByte('s')
		case s.Run:
			all.WriteByte('r')
		default:
			all.WriteByte('-')
		}
	}
	return all.String()
}

// Status says what a run would do, and does nothing.
func TestStatus(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	want := func(text, steps string) {
		t.Helper()
		if got := m.statuses(m.plan(text)); got != steps {
			t.Errorf("the statuses are %s, want %s", got, steps)
		}
	}
	want(project, "rrrrrrrr")
	first := m.run(project)
	want(project, "ssssssss")
	want(strings.Replace(project, "compiled > out", "Compiled > out", 1), "sssssrrr")
	want(strings.Replace(project, "echo checked", "echo Checked", 1), "sssrssss")
	first.lose(1, 2)
	want(project, "---sssss")
	want(strings.Replace(project, "done >> out", "Done >> out", 1), "---ssssr") // the copy from dev is there
	want(strings.Replace(project, "compiled > out", "Compiled > out", 1), "rrrssrrr")
	m.NoCache = true
	want(project, "rrrrrrrr")
	m.NoCache = false
	plan := m.plan(project)
	m.Rebuild = map[*keys.Step]bool{plan.Steps[5]: true}
	if got := m.statuses(plan); got != "rrrssrrr" {
		t.Errorf("the statuses are %s", got)
	}
}

// Status says how much of a base image has to be pulled.
func TestStatusOfBase(t *testing.T) {
	t.Parallel()
	base := makeBase(t)
	m := newMachine(t)
	text := "((from " + base + `) (run (shell "true")))`
	plan := m.plan(text)
	_, bases, err := m.Status(t.Context(), plan)
	if err != nil || bases[0].Where != "" || bases[0].Pull <= 0 {
		t.Errorf("the base is %+v, %v", bases[0], err)
	}
	want := bases[0].Pull
	if got := m.run(text).rep.PulledBytes; got != want {
		t.Errorf("%d bytes were pulled, %d told before", got, want)
	}
	_, bases, err = m.Status(t.Context(), plan)
	if err != nil || bases[0].Where != "store" || bases[0].Pull != 0 {
		t.Errorf("the base is %+v, %v", bases[0], err)
	}
}

// Explain names the first step that would run, and what differs from the nearest recorded one.
func TestExplain(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	explain := func(text string, step int, reason string) {
		t.Helper()
		ex, err := m.Explain(t.Context(), m.plan(text))
		if err != nil {
			t.Fatal(err)
		}
		if step == 0 {
			if ex != nil {
				t.Errorf("step %d misses: %q", ex.Step.Number, ex.Reasons)
			}
			return
		}
		if ex == nil || ex.Step.Number != step {
			t.Fatalf("it explains %+v, want step %d", ex, step)
		}
		got := strings.Join(ex.Reasons, "; ")
		if reason == "" && (ex.Nearest != "" || got != "") || reason != "" && (ex.Nearest == "" || ex.Created.IsZero() || !strings.Contains(got, reason)) {
			t.Errorf("it says %q of %q (%v), want %q", got, ex.Nearest, ex.Created, reason)
		}
	}
	explain(project, 1, "")
	m.run(project)
	explain(project, 0, "")
	explain(strings.Replace(project, "LANG C", "LANG D", 1), 3, "LANG")
	explain(strings.Replace(project, "compiled > out", "Compiled > out", 1), 6, "Compiled")
	source := m.Source.(fstest.MapFS)
	source["src/b.ml"] = &fstest.MapFile{Data: []byte("let b = 9\n"), Mode: 0o644}
	explain(project, 5, "src/b.ml")
	delete(source, "src/b.ml")
	explain(project, 5, "src/b.ml")
}
