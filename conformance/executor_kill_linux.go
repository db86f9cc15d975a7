package conformance

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// victimVar makes this test's program one that runs steps until it is killed: STORE,LAYER.
const victimVar = "OBX_TEST_VICTIM"

// Victim does not return in the processes that Kill starts. Every TestMain of a test that calls Kill calls it.
func Victim(open func(*cas.Store) (executor.Executor, error)) {
	if store, base, ok := strings.Cut(os.Getenv(victimVar), ","); ok {
		fmt.Fprintln(os.Stderr, victim(open, store, base))
		os.Exit(1)
	}
}

// victim runs steps: two that last, and a row of short ones.
func victim(open func(*cas.Store) (executor.Executor, error), dir, base string) error {
	st, err := cas.Open(dir)
	if err != nil {
		return err
	}
	e, err := open(st)
	if err != nil {
		return err
	}
	ctx := context.Background()
	steps := func(script string, mounts ...executor.Mount) error {
		r, err := e.Open(ctx, []layers.Layer{{Dir: base}})
		if err != nil {
			return err
		}
		for {
			p := executor.Process{Argv: []string{"/bin/sh", "-c", script}, Dir: "/", Env: []string{"PATH=/bin"}, Mounts: mounts}
			if err := r.Run(ctx, p, io.Discard); err != nil {
				return err
			}
			if _, err := r.Freeze(ctx); err != nil {
				return err
			}
		}
	}
	done := make(chan error)
	c := executor.Mount{Target: "/c", Cache: &executor.Cache{Domain: "default", Name: "c"}}
	s := executor.Mount{Target: "/s", Secret: &executor.Secret{Data: []byte("x")}}
	go func() { done <- steps("trap '' TERM INT HUP; (setsid sleep 1000 &); sleep 1000") }()
	go func() { done <- steps("while :; do :; done", c) }()
	go func() { done <- steps("date >> /f; date >> /c/f", c, s) }()
	fmt.Println("running", st.RunID())
	return <-done
}

// Kill kills a process that owns an executor, at several moments. What is left must be gone after the next start; with atOnce,
// processes and mounts at once. env is for the victims.
func Kill(t *testing.T, m ExecutorMaker, atOnce bool, env ...string) {
	dir := t.TempDir()
	st, err := cas.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	base, err := layers.Unpack(t.Context(), st, Busybox(t, st))
	if err == nil {
		err = st.PutResult("default", &cas.Result{Key: "base", Layers: []string{base.Dir}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	var runs []string
	for _, delay := range []time.Duration{0, 3, 20, 60, 110, 170, 300, 700} {
		delay *= time.Millisecond
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(append(os.Environ(), env...), victimVar+"="+dir+","+base.Dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		run, ok := strings.CutPrefix(strings.TrimSpace(line), "running ")
		if err != nil || !ok {
			t.Fatalf("victim says %q, %v", line, err)
		}
		runs = append(runs, run)
		time.Sleep(delay)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if atOnce {
			Leftovers(t, dir) // processes and mounts
		}
	}
	st, err = cas.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	e := m.New(t, st)
	Leftovers(t, dir, runs...) // cgroups too
	r, err := e.Open(t.Context(), []layers.Layer{base})
	if err != nil {
		t.Fatal(err)
	}
	p := executor.Process{Argv: []string{"/bin/sh", "-c", "echo x > /f"}, Dir: "/", Env: []string{"PATH=/bin"}}
	if err := r.Run(t.Context(), p, io.Discard); err != nil {
		t.Errorf("after the kills: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
	Leftovers(t, dir, runs...)
}
