package build_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/layers"
)

// project has all that a spec can have: nested builds in two depths, one that nobody copies from, copies from both sides,
// and a comment at the end.
const project = `
((build dev
  ((build tools
    ((from scratch)
     (run (shell "echo tools; echo make > /make"))))
   (from scratch)
   (env LANG C)
   (copy (from (build tools)) (src /make) (dst /bin/))
   (run (shell "echo dev $LANG; echo dev > /dev-result"))))
 (build checks
  ((from scratch)
   (run (shell "echo checked"))))
 (from scratch)
 (comment "the end product")
 (workdir /src)
 (copy (src src) (dst ./))
 (run (shell "cat /src/src/a.ml; echo compiled > out"))
 (copy (from (build dev)) (src /dev-result) (dst /))
 (run (shell "cat /dev-result; echo done >> out"))
 (comment "really"))`

var projectFiles = map[string]string{
	"src/src/a.ml":   "let a = 1\n",
	"src/src/b.ml":   "let b = 2\n",
	"src/src/run.sh": "exec true\n",
	"src/out":        "compiled\ndone\n",
	"dev-result":     "dev\n",
}

// A first build runs all steps; the next one none, and shows the same.
func TestRunAndReplay(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	first := m.run(project)
	first.want("rrrrrrrr")
	first.wantFiles(projectFiles)
	if len(first.ran) != 5 {
		t.Errorf("ran %q", first.ran)
	}
	for n, want := range map[int]string{1: "tools\n", 3: "dev C\n", 4: "checked\n", 6: "let a = 1\n", 8: "dev\n"} {
		if first.logs[n] != want {
			t.Errorf("step %d printed %q, want %q", n, first.logs[n], want)
		}
	}
	if first.rep.Saved != 0 || first.rep.PulledBytes != 0 || first.rep.PushedBytes != 0 {
		t.Errorf("the report is %+v", first.rep)
	}
	for _, again := range []*machine{m, m.another()} {
		second := again.run(project)
		second.want("ssssssss")
		second.wantRan()
		second.wantLogs(first)
		second.wantFiles(projectFiles)
		if second.opens != 0 || second.rep.Key != first.rep.Key || second.rep.Saved <= 0 {
			t.Errorf("%d roots were opened, the report is %+v, was %+v", second.opens, second.rep, first.rep)
		}
		var log bytes.Buffer
		if err := again.Log(t.Context(), second.key(6), &log); err != nil || log.String() != "let a = 1\n" {
			t.Errorf("the log of step 6 is %q, %v", &log, err)
		}
	}
}

// A changed step, source file or setting reruns what follows it in its stage, and nothing else.
func TestChange(t *testing.T) {
	t.Parallel()
	replace := func(old, with string) func(string) string {
		return func(text string) string {
			if !strings.Contains(text, old) {
				t.Fatalf("no %q in the spec", old)
			}
			return strings.Replace(text, old, with, 1)
		}
	}
	for name, test := range map[string]struct {
		change func(string) string
		steps  string
	}{
		"nothing":      {func(s string) string { return s }, "ssssssss"},
		"a comment":    {replace("the end product", "the product"), "ssssssss"},
		"the spelling": {replace("(src /make)", "(src ./make)"), "ssssssss"},
		"the end":      {replace("(comment \"really\")", "(run (shell \"echo more\"))"), "ssssssssr"},
		"the last":     {replace("done >> out", "Done >> out"), "sssssssr"},
		"the middle":   {replace("compiled > out", "Compiled > out"), "sssssrrr"},
		"the first":    {replace("(src src)", "(src src/a.ml src/b.ml)"), "ssss" + "rrrr"},
		"the workdir":  {replace("(workdir /src)", "(workdir /)"), "ssss" + "rrrr"},
		"of no use":    {replace("echo checked", "echo Checked"), "sssrssss"},
		"a variable":   {replace("LANG C", "LANG D"), "ssrsssss"}, // another log, the same files; a copy does not see variables
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.run(project)
			text := test.change(project)
			o := m.run(text)
			o.want(test.steps)
			m.run(text).want(strings.ReplaceAll(test.steps, "r", "s"))
		})
	}
}

// A source file counts by its name, content and mode.
func TestChangedSource(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	text := `((from scratch) (run (shell "echo first")) (copy (src src) (dst /src)) (run (shell "cat /src/a.ml")))`
	m.run(text).want("rrr")
	source := m.Source.(fstest.MapFS)
	source["src/a.ml"] = &fstest.MapFile{Data: []byte("let a = 1\n"), Mode: 0o600, ModTime: time.Now()}
	m.run(text).want("sss")
	source["src/a.ml"] = &fstest.MapFile{Data: []byte("let a = 3\n"), Mode: 0o644}
	changed := m.run(text)
	changed.want("srr")
	if changed.logs[3] != "let a = 3\n" {
		t.Errorf("step 3 printed %q", changed.logs[3])
	}
	source["src/c.ml"] = &fstest.MapFile{Mode: 0o644}
	m.run(text).want("srr")
}

// A failed build keeps the steps that finished, and says which step failed and how.
func TestFailure(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		op     string
		isStep bool // the spec's fault
		as     any
		err    string
	}{
		"exit":           {`(run (shell "echo before; exit 7"))`, true, new(*executor.ExitError), "step 2: exit status 7"},
		"start":          {`(run (shell "refuse no such shell"))`, true, new(*executor.StartError), "step 2: no such shell"},
		"infrastructure": {`(run (shell "fail disk on fire"))`, false, nil, "disk on fire"},
		"copy":           {`(copy (src src/a.ml) (dst /dir))`, true, new(*layers.CopyError), "dir"},
		"secret":         {`(run (shell true) (secrets (token (target /t))))`, true, nil, "--secret token="},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			o := m.try(t.Context(), m.plan(`((from scratch) (run (shell "mkdir /dir")) `+test.op+` (run (shell "echo never")))`))
			o.want("r--")
			if o.err == nil || !strings.Contains(o.err.Error(), test.err) {
				t.Fatalf("the error is %v", o.err)
			}
			var step *build.StepError
			if errors.As(o.err, &step) != test.isStep || test.isStep && step.Step != o.plan.Steps[1] {
				t.Errorf("the error is %#v", o.err)
			}
			if test.as != nil && !errors.As(o.err, test.as) {
				t.Errorf("the error is no %T", test.as)
			}
			if failed := o.kind(build.Failed)[0]; test.isStep && (failed.Step != step.Step || failed.Stage != step.Step.Stage || failed.Err != o.err) {
				t.Errorf("the event is %+v", failed)
			}
			again := m.run(`((from scratch) (run (shell "mkdir /dir")) (run (shell "echo good")))`)
			again.want("sr")
		})
	}
}

// A source that a nested build does not have fails the copy, not the build's infrastructure.
func TestMissingSourceInBuild(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	o := m.try(t.Context(), m.plan(`((build b ((from scratch) (run (shell "echo b > /b"))))
		(from scratch) (copy (from (build b)) (src /b /c) (dst /)))`))
	o.want("r-")
	var step *build.StepError
	if !errors.As(o.err, &step) || step.Step.Number != 2 || !strings.Contains(o.err.Error(), "c") {
		t.Errorf("the error is %v", o.err)
	}
}

// When a step fails, the others are stopped, and the failure is that step's.
func TestFailureStopsOthers(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	start := time.Now()
	running := make(chan struct{})
	m.exec.before = func(command *string, _ executor.Process) {
		switch *command {
		case "sleep 60":
			close(running)
		case "false":
			<-running
		}
	}
	o := m.try(t.Context(), m.plan(`((build long ((from scratch) (run (shell "sleep 60"))))
		(build short ((from scratch) (run (shell "true")) (run (shell "false"))))
		(from scratch) (copy (from (build long)) (src /x) (dst /)) (copy (from (build short)) (src /y) (dst /)))`))
	var step *build.StepError
	if !errors.As(o.err, &step) || step.Step.Number != 3 {
		t.Errorf("the error is %v", o.err)
	}
	o.want("-r---")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A cancelled build returns at once with what cancelled it, keeps what is finished, and leaves nothing running.
func TestCancel(t *testing.T) {
	m := newMachine(t)
	before := goroutines()
	text := `((build b ((from scratch) (run (shell "echo b")) (run (shell "sleep 60"))))
		(from scratch) (run (shell "echo a")) (copy (from (build b)) (src /x) (dst /)))`
	cause := errors.New("interrupted by the user")
	ctx, cancel := context.WithCancelCause(t.Context())
	finished := 0
	sleeping := false
	m.Events = func(e build.Event) {
		if e.Kind == build.Finished {
			finished++
		}
		sleeping = sleeping || e.Kind == build.Started && e.Step.Number == 2
		if finished == 2 && sleeping {
			cancel(cause)
		}
	}
	start := time.Now()
	o := m.try(ctx, m.plan(text))
	if !errors.Is(o.err, cause) {
		t.Errorf("the error is %v", o.err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	o.want("r-r-")
	for wait := time.Millisecond; len(goroutines()) > len(before); wait *= 2 {
		if wait > 5*time.Second {
			t.Fatalf("still running:\n%s", strings.Join(goroutines(), "\n\n"))
		}
		time.Sleep(wait)
	}
	m.Events = nil
	m.exec.before = func(command *string, _ executor.Process) {
		if *command == "sleep 60" {
			*command = "echo x > /x"
		}
	}
	m.another().Store.Sync(t.Context())
	m.run(text).want("srsr")
}

// goroutines lists those that are in package build.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	var found []string
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "obx/executor/build.") {
			found = append(found, g)
		}
	}
	return found
}

// A build that is cancelled before it begins runs nothing.
func TestCancelledBefore(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := m.try(ctx, m.plan(`((from scratch) (run (shell "echo a")))`))
	if !errors.Is(o.err, context.Canceled) {
		t.Errorf("the error is %v", o.err)
	}
	o.want("-")
	o.wantRan()
}

// Independent stages run at the same time, up to Jobs.
func TestJobs(t *testing.T) {
	t.Parallel()
	const builds = 4
	var text strings.Builder
	text.WriteString("(")
	for i := range builds {
		fmt.Fprintf(&text, `(build b%d ((from scratch) (run (shell "echo %d")) (run (shell "echo %d again"))))`, i, i, i)
	}
	text.WriteString(`(from scratch) (run (shell "echo outermost")))`)
	for _, jobs := range []int{1, 3} {
		m := newMachine(t)
		m.Jobs = jobs
		var inside atomic.Int64
		var once sync.Once
		full := make(chan struct{})
		m.exec.before = func(*string, executor.Process) {
			n := int(inside.Add(1))
			defer inside.Add(-1)
			if n > jobs {
				t.Errorf("with %d jobs, %d steps run at once", jobs, n)
			}
			if n == jobs {
				once.Do(func() { close(full) })
			}
			select {
			case <-full:
			case <-time.After(30 * time.Second):
				t.Errorf("with %d jobs, never so many steps ran at once", jobs)
			}
		}
		m.run(text.String()).want("rrrrrrrrr")
	}
}

// A step sees what the spec and the builder say: environment, directory, user, limits, mounts, network.
func TestProcess(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.Limits = executor.Limits{Memory: 1 << 30, PIDs: 7}
	m.FastSync = true
	m.Domains = []string{"mine"}
	m.Secrets = map[string]build.Secret{"token": func() ([]byte, error) { return []byte("v"), nil }}
	var seen executor.Process
	m.exec.before = func(_ *string, p executor.Process) { seen = p }
	m.run(`((from scratch) (user (uid 3) (gid 4)) (env B 2) (env A 1) (env B 3) (workdir /w) (shell /bin/sh -c)
		(run (cache (c (target /c)) (d (target /d) (buildkit_options ((sharing locked)))))
		     (secrets (token (target /t))) (network host) (shell "true")))`)
	got := fmt.Sprintf("%q %q %q %d:%d %s %d %v %+v", seen.Argv, seen.Env, seen.Dir, seen.UID, seen.GID, seen.Hostname, seen.Network, seen.FastSync, seen.Limits)
	want := `["/bin/sh" "-c" "true"] ["A=1" "B=3"] "/w" 3:4 builder 1 true {Memory:1073741824 CPUs:0 PIDs:7 Timeout:0s Disk:0 Inodes:0}`
	if got != want {
		t.Errorf("the process is\n%s, want\n%s", got, want)
	}
	var mounts []string
	for _, mount := range seen.Mounts {
		if mount.Cache != nil {
			mounts = append(mounts, fmt.Sprint(mount.Target, *mount.Cache))
		} else {
			mounts = append(mounts, mount.Target+" secret "+string(mount.Secret.Data))
		}
	}
	if got, want := strings.Join(mounts, ", "), "/c{mine c }, /d{mine d locked}, /t secret v"; got != want {
		t.Errorf("the mounts are %s, want %s", got, want)
	}
}

// A cache mount keeps what a step has written, for the next build too, and is no part of the result.
func TestCacheMount(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	text := `((from scratch) (run (cache (c (target /c))) (shell "cat /c/f; echo kept > /c/f; echo %s > /made")))`
	m.run(fmt.Sprintf(text, "once"))
	o := m.run(fmt.Sprintf(text, "twice"))
	if o.logs[1] != "kept\n" {
		t.Errorf("it printed %q", o.logs[1])
	}
	o.wantFiles(map[string]string{"made": "twice\n"})
}

// What a step prints beyond the limit is dropped, which its log says; the step goes on.
func TestLogLimit(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.LogLimit = 10
	text := `((from scratch) (run (shell "echo 12345; echo 123456789; echo more; echo made > /f")))`
	first := m.run(text)
	want := "12345\n1234\n[obx: this log is over its limit of 10 bytes; the rest is dropped]\n"
	if first.logs[1] != want {
		t.Errorf("the log is %q, want %q", first.logs[1], want)
	}
	first.wantFiles(map[string]string{"f": "made\n"})
	second := m.run(text)
	second.want("s")
	second.wantLogs(first)

	m.LogLimit = 6
	exact := m.run(`((from scratch) (run (shell "echo 12345")))`)
	if exact.logs[1] != "12345\n" {
		t.Errorf("a log of exactly the limit is %q", exact.logs[1])
	}
}

// A large log is replayed like a small one.
func TestLargeLog(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	line := strings.Repeat("x", 1<<10)
	text := `((from scratch) (run (shell "` + strings.Repeat("echo "+line+";", 100) + `")) (run (shell "echo small")))`
	first := m.run(text)
	if len(first.logs[1]) != 100*(1<<10+1) {
		t.Errorf("the log has %d bytes", len(first.logs[1]))
	}
	rec, err := m.Record(first.key(1))
	if err != nil || rec.LogBlob == "" || len(rec.Log) > 0 {
		t.Errorf("the log of %d bytes is inline (blob %q, error %v)", len(first.logs[1]), rec.LogBlob, err)
	}
	second := m.run(text)
	second.want("ss")
	second.wantLogs(first)
}

// The value of a secret is nowhere in the store.
func TestSecret(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	const value = "correct-horse-battery-staple"
	asked := 0
	m.Secrets = map[string]build.Secret{"token": func() ([]byte, error) { asked++; return []byte(value), nil }}
	text := `((from scratch) (run (secrets (token (target /run/token))) (shell "echo made > /f")) (run (shell "echo %s")))`
	var seen string
	m.exec.before = func(_ *string, p executor.Process) {
		for _, mount := range p.Mounts {
			seen = string(mount.Secret.Data)
		}
	}
	m.run(fmt.Sprintf(text, "one")).wantFiles(map[string]string{"f": "made\n"})
	if seen != value || asked != 1 {
		t.Errorf("the step saw %q, and the value was asked for %d times", seen, asked)
	}
	if found := storeHolds(t, m.Store.Dir(), value); len(found) > 0 {
		t.Errorf("it is in %q", found)
	}
	if found := storeHolds(t, m.Store.Dir(), "/run/token"); len(found) == 0 {
		t.Error("the store is not searched: it has no preimage of the step")
	}

	// Another value changes no key, and a step that need not run needs none.
	m.Secrets["token"] = func() ([]byte, error) { return nil, errors.New("no such file") }
	m.run(fmt.Sprintf(text, "two")).want("sr")
	m.Secrets = nil
	m.run(fmt.Sprintf(text, "three")).want("sr")

	// A value that cannot be read is not the spec's fault.
	m.Secrets = map[string]build.Secret{"token": func() ([]byte, error) { return nil, errors.New("no such file") }}
	m.NoCache = true
	o := m.try(t.Context(), m.plan(fmt.Sprintf(text, "one")))
	var step *build.StepError
	if o.err == nil || errors.As(o.err, &step) || !strings.Contains(o.err.Error(), "token") {
		t.Errorf("the error is %v", o.err)
	}
}

// A source file that changes between planning and copying fails the build, and leaves no result.
func TestSourceChangesMeanwhile(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plan := m.plan(`((from scratch) (copy (src src) (dst /src)))`)
	m.Source.(fstest.MapFS)["src/a.ml"] = &fstest.MapFile{Data: []byte("let a = 9\n"), Mode: 0o644}
	o := m.try(t.Context(), plan)
	o.want("-")
	if o.err == nil || !strings.Contains(o.err.Error(), "a.ml") {
		t.Errorf("the error is %v", o.err)
	}
	m.run(`((from scratch) (copy (src src) (dst /src)))`).want("r")
}

// A base image is taken from where it is once, and is what steps start from.
func TestBase(t *testing.T) {
	t.Parallel()
	base := makeBase(t)
	m := newMachine(t)
	text := `((build b ((from ` + base + `) (run (shell "cat /etc/base"))))
		(from ` + base + `) (run (shell "cat /etc/base; echo $FROM_BASE; echo more > /etc/more"))
		(copy (from (build b)) (src /etc/base) (dst /copied)))`
	o := m.run(text)
	o.want("rrr")
	o.wantFiles(map[string]string{"etc/base": "base\n", "etc/more": "more\n", "copied": "base\n"})
	if o.logs[2] != "base\nyes\n" {
		t.Errorf("it printed %q", o.logs[2])
	}
	if o.rep.PulledBytes <= 0 {
		t.Errorf("the report is %+v", o.rep)
	}
	// No longer needed.
	if err := os.RemoveAll(filepath.Join(strings.TrimPrefix(base, "oci:"), "blobs")); err != nil {
		t.Fatal(err)
	}
	again := m.run(text)
	again.want("sss")
	if again.rep.PulledBytes != 0 {
		t.Errorf("the report is %+v", again.rep)
	}
}

// A base image that cannot be had fails the build, and is not a step's fault.
func TestBaseIsGone(t *testing.T) {
	t.Parallel()
	base := makeBase(t)
	m := newMachine(t)
	plan := m.plan(`((from ` + base + `) (run (shell "true")))`)
	if err := os.RemoveAll(filepath.Join(strings.TrimPrefix(base, "oci:"), "blobs")); err != nil {
		t.Fatal(err)
	}
	o := m.try(t.Context(), plan)
	var step *build.StepError
	if o.err == nil || errors.As(o.err, &step) || !strings.Contains(o.err.Error(), base) {
		t.Errorf("the error is %v", o.err)
	}
}

// makeBase makes an image with a file and a variable, in an OCI layout, and gives its name.
func makeBase(t *testing.T) string {
	t.Helper()
	m := newMachine(t)
	o := m.run(`((from scratch) (run (shell "mkdir /etc; echo base > /etc/base")) (env FROM_BASE yes))`)
	dir := filepath.Join(t.TempDir(), "base")
	if _, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: "oci", Dest: dir, Names: []string{"latest"}, Dir: true}, nil); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}
