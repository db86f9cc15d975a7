package qemu_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu"
	"github.com/ocurrent/obx/layers"
)

func shell(script string) executor.Process {
	return executor.Process{Argv: []string{"/bin/sh", "-c", script}, Dir: "/", Env: []string{"PATH=/bin"}}
}

func newExecutor(t testing.TB, o qemu.Options) *qemu.Executor {
	t.Helper()
	conformance.RequireRoot(t)
	o.Kernel = conformance.Kernel(t, "amd64")
	if o.Accel == "" {
		o.Accel = "tcg"
	}
	e, err := qemu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExecutor(t *testing.T) {
	conformance.RequireRoot(t)
	conformance.Executor(t, conformance.ExecutorMaker{
		Sandbox: true,
		Machine: true,
		New: func(t testing.TB, st *cas.Store) executor.Executor {
			return newExecutor(t, qemu.Options{Store: st})
		},
	})
}

func TestSteps(t *testing.T) {
	st := conformance.OpenStore(t)
	e := newExecutor(t, qemu.Options{Store: st, Warn: func(s string) { t.Error(s) }})
	defer e.Close()
	base := conformance.Busybox(t, st)
	for range 2 {
		r, err := e.Open(t.Context(), []layers.Layer{base})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			var out bytes.Buffer
			start := time.Now()
			if err := r.Run(t.Context(), shell("echo hello >> /f; cat /f; uname -r; date"), &out); err != nil {
				t.Fatal(err)
			}
			ran := time.Since(start)
			c, err := r.Freeze(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l, _ := c.Layer(t.Context())
			t.Logf("%v %v %q %v", ran, time.Since(start), out.String(), l)
		}
		r.Close()
	}
}
