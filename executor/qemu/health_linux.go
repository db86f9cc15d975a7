package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/layers"
)

// Health tries what an Executor of machines with these options needs, up to a machine that runs. The store may be nil, if it could not be opened: then only
// what needs none is tried.
func Health(ctx context.Context, o vm.Options) []executor.Check {
	checks := vm.Health(ctx, o)
	failed := slices.ContainsFunc(checks, func(c executor.Check) bool { return c.Err != nil })
	if failed || o.Store == nil || os.Geteuid() != 0 {
		return checks
	}
	check := func(name, detail string, err error) {
		checks = append(checks, executor.Check{Name: name, Detail: detail, Err: err})
	}
	var warned []string
	o.Warn = func(msg string) { warned = append(warned, msg) }
	e, err := New(o, guest.Account{})
	if err != nil {
		check("executor", "", err)
		return checks
	}
	if o.Foreign() {
		check("machine", "not tried: it needs a disk to boot from", nil)
	} else if err := e.try(ctx); err != nil {
		check("machine", "", err)
	} else {
		check("machine", strings.Join(append([]string{"works with " + e.maker.Accel()}, warned...), "; "), nil)
	}
	if err := e.Close(); err != nil {
		check("clean-up", "", err)
	}
	return checks
}

// try starts a machine, and in it what can only fail: there is no program.
func (e *Executor) try(ctx context.Context) error {
	r, err := e.Open(ctx, []layers.Layer{})
	if err != nil {
		return err
	}
	defer r.Close()
	err = r.Run(ctx, executor.Process{Argv: []string{"/program"}, Dir: "/"}, &bytes.Buffer{})
	var start *executor.StartError
	if !errors.As(err, &start) {
		return errors.Join(errors.New("a machine does not say that a program is missing"), err)
	}
	return nil
}
