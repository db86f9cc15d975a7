package build_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/registry"
)

// evil has a machine make other files than the commands say.
func evil(m *machine) *machine {
	m.exec.before = func(command *string, _ executor.Process) { *command = strings.ReplaceAll(*command, "good", "evil") }
	return m
}

// trust makes a machine believe only what it makes itself and what a key has signed, and sign with that key.
func (m *machine) trust(s *registry.Signer, r *spyRepo) *machine {
	m.share(r)
	c := m.Caches[0]
	c.Signer, c.Trust = s, []registry.PublicKey{s.Public()}
	m.Trust = c.Trust
	return m
}

// A build that trusts takes nothing from its store that came from somebody untrusted, however it came to be used there: as a
// parent, as files that were copied, or as what an input key was found to mean. It heals the cache.
func TestTrustOfTheStore(t *testing.T) {
	t.Parallel()
	const onlyB = `((build b ((from scratch) (run (shell "echo good > /f")))) (from scratch) (run (shell "echo %s")))`
	const copied = `((build b ((from scratch) (run (shell "echo good > /f"))))
			(from scratch) (copy (from (build b)) (src /f) (dst /f)) (run (shell "cat /f; echo %s > /last")))`
	const chain = `((from scratch) (run (shell "echo good > /f")) (run (shell "cat /f; echo %s > /last")))`
	const twice = `((build a ((from scratch) (run (shell "echo good > /f"))))
		(build b ((from scratch) (copy (from (build a)) (src /f) (dst /f)) (run (shell "echo b"))))
		(from scratch) (copy (from (build b)) (src /f) (dst /f)) (run (shell "cat /f; echo %s > /last")))`
	const other = `((from scratch) (run (shell "echo good for %s")))`
	const mounted = `((from scratch) (run (cache (c (target /c))) (shell "echo good > /f")) (run (shell "cat /f; echo %s > /last")))`
	const mountCopied = `((build b ((from scratch) (run (cache (c (target /c))) (shell "echo good > /f"))))
			(from scratch) (copy (from (build b)) (src /f) (dst /f)) (run (shell "cat /f; echo %s > /last")))`
	for name, test := range map[string]struct{ theirs, ours string }{
		"parent":                 {chain, chain},
		"copy":                   {copied, copied},
		"copied by us":           {onlyB, copied},
		"two copies":             {twice, twice},
		"two copies, one by us":  {copied, twice},
		"two copies, both by us": {onlyB, strings.ReplaceAll(twice, "build a", "build x")},
		// Whoever wrote to the cache mount before made the command do what it should not.
		"mount":               {other, mounted},
		"copy of a mount":     {other, mountCopied},
		"mounts of two kinds": {other, strings.ReplaceAll(mounted, "(target /c)", "(target /c) (buildkit_options ((sharing locked)))")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &spyRepo{}
			evil(newMachine(t)).share(r).run(fmt.Sprintf(test.theirs, "first"))

			// Without trust, the bad results are pulled, and built upon.
			careless := newMachine(t).share(r)
			if test.theirs == other {
				evil(careless)
			}
			o := careless.run(fmt.Sprintf(test.ours, "second"))
			if files := o.files(); files["f"] != "evil\n" {
				t.Fatalf("the careless build has %q", files)
			}

			s := signer(t, "ci")
			careful := careless.another().trust(s, r)
			for i, last := range []string{"second", "first", "third"} {
				o := careful.run(fmt.Sprintf(test.ours, last))
				var told []string
				for _, w := range o.warnings() {
					if strings.Contains(w, "in the store is not used") {
						told = append(told, w)
					}
				}
				want := 0
				if i == 0 && test.theirs != copied && test.theirs != twice { // in those, only what an input key means is not believed
					want = 1
				}
				if len(told) != want {
					t.Errorf("%s: warned of the store: %q, not %d times", last, told, want)
				}
				o.wantFiles(map[string]string{"f": "good\n", "last": last + "\n"})
				for n, log := range o.logs {
					if strings.Contains(log, "evil") {
						t.Errorf("%s: step %d showed %q", last, n, log)
					}
				}
			}
			again := careful.another()
			again.trust(s, r)
			o = again.run(fmt.Sprintf(test.ours, "first"))
			o.wantRan()
			o.wantFiles(map[string]string{"f": "good\n", "last": "first\n"})

			// Others who trust have what it has made.
			other := newMachine(t).trust(s, r)
			other.NeedFiles = true
			o = other.run(fmt.Sprintf(test.ours, "second"))
			o.want(strings.Repeat("c", len(o.plan.Steps)))
			o.wantFiles(map[string]string{"f": "good\n", "last": "second\n"})
			again = other.another().trust(s, r)
			o = again.run(fmt.Sprintf(test.ours, "second"))
			if len(o.ran) > 0 || o.rep.PulledBytes > 0 {
				t.Errorf("ran %q, the report is %+v", o.ran, o.rep)
			}
		})
	}
}

// Builds with other trust have other cache mounts, whatever names specs give them.
func TestTrustOfMounts(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	mount := func(id string, trust ...*registry.Signer) string {
		t.Helper()
		b := m.another()
		for _, s := range trust {
			b.Trust = append(b.Trust, s.Public())
		}
		name := ""
		b.exec.before = func(_ *string, p executor.Process) { name = p.Mounts[0].Cache.Name }
		b.run(fmt.Sprintf(`((from scratch) (run (cache (%q (target /c))) (shell "true")))`, id))
		if name == "" {
			t.Fatalf("the step with the mount %s did not run", id)
		}
		return name
	}
	one, two := signer(t, "one"), signer(t, "two")
	plain, trusting := mount("c"), mount("c", one)
	if plain != "c" {
		t.Errorf("a mount is called %q", plain)
	}
	for name, other := range map[string]string{
		"by who trusts nobody":             plain,
		"by who trusts another":            mount("c", two),
		"by who trusts two":                mount("c", one, two),
		"of that name":                     mount(trusting),
		"of that name, by who trusts":      mount(trusting, two),
		"of another name":                  mount("d", one),
		"of a name that looks like theirs": mount("+" + trusting),
	} {
		if other == trusting {
			t.Errorf("%s: it is the mount %q", name, other)
		}
	}
	if both, same := mount("e", one, two), mount("f", two, one, two); strings.TrimSuffix(both, "e") != strings.TrimSuffix(same, "f") {
		t.Errorf("%q and %q differ", both, same)
	}
}

// Results of a parent domain that were made here are not the build's own.
func TestTrustOfParentDomain(t *testing.T) {
	t.Parallel()
	const text = `((from scratch) (run (shell "echo good > /f")))`
	m := newMachine(t)
	evil(m).run(text)
	pr := m.another()
	pr.Domains = []string{"release", "default"}
	pr.trust(signer(t, "ci"), &spyRepo{})
	pr.run(text).want("r")
	pr.run(text).want("s")
}

// An output of a parent domain's result, for which its layers are packed, makes it no result of the build's own domain.
func TestTrustAfterOutput(t *testing.T) {
	t.Parallel()
	const text = `((from scratch) (copy (src src) (dst /)))` // whose layer has no bytes yet
	m := newMachine(t)
	m.run(text)
	pr := m.another()
	pr.Domains = []string{"release", "default"}
	o := pr.run(text)
	o.want("s")
	image := build.OutputSpec{Type: "oci", Dest: filepath.Join(t.TempDir(), "image.tar")}
	if _, err := pr.Write(t.Context(), o.plan, o.rep, image, nil); err != nil {
		t.Fatal(err)
	}
	pr.trust(signer(t, "ci"), &spyRepo{})
	pr.run(text).want("r")
}

// A failure is shared if that is asked for and the command failed by itself; others then fail the same way, without running it.
func TestCacheFailures(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		step   string
		shared bool
	}{
		"exit":    {`(run (shell "echo says; exit 3"))`, true},
		"signal":  {`(run (shell "kill 9"))`, false},
		"killed":  {`(run (shell "exit 137"))`, false}, // of a shell whose child was
		"oom":     {`(run (shell "hog"))`, false},
		"cancel":  {`(run (shell "echo begun; sleep 60"))`, false},
		"network": {`(run (network host) (shell "exit 3"))`, false},
		"secret":  {`(run (secrets (s (target /s))) (shell "exit 3"))`, false},
		"timeout": {`(run (shell "sleep 60"))`, false},
		"start":   {`(run (shell "refuse x"))`, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &spyRepo{}
			text := `((build b ((from scratch) (run (shell "echo b > /b")))) (from scratch) (run (shell "echo one"))
				(copy (from (build b)) (src /b) (dst /)) ` + test.step + ` (run (shell "echo never")))`
			newOne := func() *machine {
				m := newMachine(t).share(r)
				m.Caches[0].Failures = time.Hour
				m.CacheFailures = true
				if name != "cancel" {
					m.Limits.Timeout = 50 * time.Millisecond
				}
				m.Secrets = map[string]build.Secret{"s": func() ([]byte, error) { return []byte("x"), nil }}
				return m
			}
			try := func(m *machine) *outcome {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				m.Events = func(e build.Event) {
					if name == "cancel" && string(e.Data) == "begun\n" {
						cancel()
					}
				}
				return m.try(ctx, m.plan(text))
			}
			a := newOne()
			first := try(a)
			first.want("rrr--")
			b := newOne()
			o := try(b)
			if o.err == nil || o.err.Error() != first.err.Error() {
				t.Errorf("the error is %v, was %v", o.err, first.err)
			}
			if name == "cancel" { // which stops pushes, too
				for _, command := range o.ran {
					if strings.HasPrefix(command, "echo begun") {
						return
					}
				}
				t.Errorf("ran %q", o.ran)
				return
			}
			var step *build.StepError
			if !errors.As(o.err, &step) || step.Step.Number != 4 {
				t.Errorf("the error is %#v", o.err)
			}
			if !test.shared {
				if len(o.ran) != 1 {
					t.Errorf("ran %q", o.ran)
				}
				return
			}
			o.wantRan()
			o.want("ccc--")
			o.wantLogs(first)
			// Who does not believe failures runs it; a success replaces the failure.
			c := newMachine(t).share(r)
			c.exec.before = func(command *string, _ executor.Process) { *command = strings.Replace(*command, "exit 3", "true", 1) }
			if o := c.run(text); !slices.Contains(o.ran, "echo says; exit 3") {
				t.Errorf("ran %q", o.ran)
			}
			newOne().run(text).want("ccccc")
		})
	}
}
