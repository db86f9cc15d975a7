package build_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
)

// Processes on one store that build the same steps, in opposite orders and one at a time, run each key once and do not wait for
// each other in a circle.
func TestProcessesShareKeys(t *testing.T) {
	t.Parallel()
	const stages, processes = 5, 4
	specs := make([]string, processes)
	want := 0
	for i := range specs {
		var builds, copies []string
		for n := range stages {
			builds = append(builds, fmt.Sprintf(`(build b%d ((from scratch) (run (shell "echo %[1]d > /f%[1]d; sleep 0.001")) (run (shell "echo and %[1]d"))))`, n))
			copies = append(copies, fmt.Sprintf(`(copy (from (build b%d)) (src /f%[1]d) (dst /))`, n))
		}
		if i%2 == 1 {
			slices.Reverse(builds)
		}
		specs[i] = "(" + strings.Join(builds, "\n") + "\n(from scratch)\n" + strings.Join(copies, "\n") + ")"
	}
	want = 2 * stages

	m := newMachine(t)
	all := make([]*machine, processes)
	for i := range all {
		all[i] = m.another()
		all[i].Jobs = 1
	}
	outcomes := make([]*outcome, processes)
	var wg sync.WaitGroup
	for i, p := range all {
		plan := p.plan(specs[i])
		wg.Go(func() { outcomes[i] = p.try(t.Context(), plan) })
	}
	wg.Wait()
	var ran []string
	for _, o := range outcomes {
		if o.err != nil {
			t.Fatalf("build: %v\n%s", o.err, o)
		}
		ran = append(ran, o.ran...)
	}
	slices.Sort(ran)
	if len(ran) != want || len(slices.Compact(ran)) != want {
		t.Errorf("ran %d commands instead of %d: %q", len(ran), want, ran)
	}
	for _, o := range outcomes {
		files := o.files()
		if len(files) != stages || files["f3"] != "3\n" {
			t.Errorf("the result has %q", files)
		}
	}
}

// lockedStep is a spec whose one step waits until it is stopped.
const lockedStep = `((from scratch) (run (shell "echo begun; sleep 60; echo ended > /f; echo ended")))`

// A process that waits for another to do a step shows that step's output while it runs, and its whole log at the end, once: as far
// as its own limit.
func TestWaiterFollows(t *testing.T) {
	t.Parallel()
	for limit, log := range map[int64]string{
		0: "begun\nended\n",
		3: "beg\n[obx: this log is over its limit of 3 bytes; the rest is dropped]\n",
		8: "begun\nen\n[obx: this log is over its limit of 8 bytes; the rest is dropped]\n",
	} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			holder := newMachine(t)
			holder.Jobs = 1
			release := make(chan struct{})
			holder.exec.before = func(command *string, _ executor.Process) {
				*command = strings.Replace(*command, "sleep 60", "sleep 0.2", 1)
			}
			begun := make(chan struct{})
			holder.Events = func(e build.Event) {
				if e.Kind == build.Output && string(e.Data) == "begun\n" {
					close(begun)
					<-release // the step goes on when the waiter has shown this
				}
			}
			waiter := holder.another()
			waiter.LogLimit = limit
			var once sync.Once
			waiter.Events = func(e build.Event) {
				if e.Kind == build.Output {
					once.Do(func() { close(release) })
				}
			}
			var held, waited *outcome
			plan, waiterPlan := holder.plan(lockedStep), waiter.plan(lockedStep)
			var wg sync.WaitGroup
			wg.Go(func() { held = holder.try(t.Context(), plan) })
			<-begun
			wg.Go(func() { waited = waiter.try(t.Context(), waiterPlan) })
			wg.Wait()
			if held.err != nil || waited.err != nil {
				t.Fatal(held.err, waited.err)
			}
			held.want("r")
			waited.want("s")
			waited.wantRan()
			if waited.logs[1] != log {
				t.Errorf("it showed %q, want %q", waited.logs[1], log)
			}
			if len(waited.kind(build.Waiting)) != 1 {
				t.Errorf("it did not say that it waits\n%s", waited)
			}
			waited.wantFiles(map[string]string{"f": "ended\n"})
		})
	}
}

// When the process that does a step is cancelled, or its step fails, one that waits does it.
func TestWaiterTakesOver(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"cancelled", "failed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			holder := newMachine(t)
			waiter := holder.another()
			waiter.exec.before = func(command *string, _ executor.Process) { *command = strings.Replace(*command, "sleep 60", "true", 1) }
			waiter.Jobs = 1

			ctx, cancel := context.WithCancelCause(t.Context())
			cause := errors.New("stopped by hand")
			shown := make(chan struct{}) // the waiter has shown what the holder's step prints
			holder.exec.before = func(command *string, _ executor.Process) {
				if how == "failed" {
					*command = "echo begun; false"
				}
			}
			begun := make(chan struct{})
			holder.Events = func(e build.Event) {
				if e.Kind == build.Output {
					close(begun)
					<-shown
				}
			}
			var once sync.Once
			waiter.Events = func(e build.Event) {
				if e.Kind == build.Output {
					once.Do(func() { close(shown) })
				}
			}
			var held, waited *outcome
			plan, waiterPlan := holder.plan(lockedStep), waiter.plan(lockedStep)
			var wg sync.WaitGroup
			wg.Go(func() { held = holder.try(ctx, plan) })
			<-begun
			wg.Go(func() { waited = waiter.try(t.Context(), waiterPlan) })
			<-shown
			if how == "cancelled" {
				cancel(cause)
			}
			wg.Wait()
			cancel(nil)
			held.want("-")
			var step *build.StepError
			if how == "cancelled" && !errors.Is(held.err, cause) || how == "failed" && !errors.As(held.err, &step) {
				t.Errorf("the first ended with %v", held.err)
			}
			if waited.err != nil {
				t.Fatal(waited.err)
			}
			waited.want("r")
			if want := "begun\nbegun\nended\n"; waited.logs[1] != want {
				t.Errorf("the second showed %q, want %q", waited.logs[1], want)
			}
			replayed := waiter.run(lockedStep)
			if want := "begun\nended\n"; replayed.logs[1] != want {
				t.Errorf("the log is %q, want %q", replayed.logs[1], want)
			}
		})
	}
}

// A process that waits for a step can be cancelled.
func TestCancelWaiter(t *testing.T) {
	t.Parallel()
	holder := newMachine(t)
	waiter := holder.another()
	holderCtx, stopHolder := context.WithCancel(t.Context())
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("stopped by hand")
	waiter.Events = func(e build.Event) {
		if e.Kind == build.Waiting {
			cancel(cause)
		}
	}
	begun := make(chan struct{})
	holder.Events = func(e build.Event) {
		if e.Kind == build.Started {
			close(begun)
		}
	}
	plan, waiterPlan := holder.plan(lockedStep), waiter.plan(lockedStep)
	var wg sync.WaitGroup
	wg.Go(func() { _ = holder.try(holderCtx, plan) })
	<-begun
	start := time.Now()
	o := waiter.try(ctx, waiterPlan)
	if took := time.Since(start); took > 10*time.Second || !errors.Is(o.err, cause) {
		t.Errorf("after %v: %v", took, o.err)
	}
	stopHolder()
	wg.Wait()
}

// One who waits for a step leaves the job slots to others.
func TestWaiterHoldsNoSlot(t *testing.T) {
	t.Parallel()
	holder := newMachine(t)
	waiter := holder.another()
	waiter.Jobs = 1
	ctx, stop := context.WithCancel(t.Context())
	begun := make(chan struct{})
	holder.Events = func(e build.Event) {
		if e.Kind == build.Started {
			close(begun)
		}
	}
	waiter.exec.before = func(command *string, _ executor.Process) { *command = strings.Replace(*command, "sleep 60", "true", 1) }
	waiter.Events = func(e build.Event) {
		if e.Kind == build.Finished && e.Step.Number == 3 {
			stop() // only now the first step can go on
		}
	}
	plan := holder.plan(lockedStep)
	waiterPlan := waiter.plan(`((build a ` + lockedStep + `)
		(build b ((from scratch) (run (shell "echo one")) (run (shell "echo two")))) (from scratch))`)
	var wg sync.WaitGroup
	wg.Go(func() { _ = holder.try(ctx, plan) })
	<-begun
	o := waiter.try(t.Context(), waiterPlan)
	wg.Wait()
	if o.err != nil {
		t.Fatal(o.err)
	}
	o.want("rrr")
}
