package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
	"github.com/ocurrent/obx/executor/qemu"
)

// An executorKind is what --executor can name.
type executorKind struct {
	name  string
	about string // for help
	open  func(*cas.Store, *executorFlags) (executor.Executor, error)

	// health tries what the executor needs. The store is nil if it could not be opened.
	health func(context.Context, *cas.Store, *executorFlags) []executor.Check

	// install installs what is missing, and tells what it does; nil if that is nothing.
	install func(ctx context.Context, st *cas.Store, f *executorFlags, say func(string)) error
}

// executorKinds lists all executors; the first is the default.
var executorKinds = []executorKind{
	{
		name:  "overlay",
		about: "overlayfs and an OCI runtime",
		open: func(st *cas.Store, f *executorFlags) (executor.Executor, error) {
			return overlay.New(overlay.Options{Store: st, Runtime: f.runtime})
		},
		health: func(ctx context.Context, st *cas.Store, f *executorFlags) []executor.Check {
			return overlay.Health(ctx, overlay.Options{Store: st, Runtime: f.runtime})
		},
	},
	{
		name:  "qemu",
		about: "virtual machines",
		open: func(st *cas.Store, f *executorFlags) (executor.Executor, error) {
			o, err := f.qemu.options(st)
			if err != nil {
				return nil, err
			}
			return qemu.New(o)
		},
		health: func(ctx context.Context, st *cas.Store, f *executorFlags) []executor.Check {
			o, err := f.qemu.options(st)
			if err != nil {
				return []executor.Check{{Name: "options", Err: err}}
			}
			return qemu.Health(ctx, o)
		},
		install: func(ctx context.Context, st *cas.Store, f *executorFlags, say func(string)) error {
			o, err := f.qemu.options(st)
			if err != nil {
				return err
			}
			return qemu.Install(ctx, o, say)
		},
	},
}

// executorFlags choose an executor and say how it works.
type executorFlags struct {
	name    string
	runtime string
	qemu    qemuFlags
}

func (f *executorFlags) add(cmd *cobra.Command) {
	names := []string{"auto"}
	var abouts []string
	for _, k := range executorKinds {
		names = append(names, k.name)
		abouts = append(abouts, k.name+" ("+k.about+")")
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "executor", "auto", "run steps with the executor `NAME`: "+strings.Join(abouts, ", "))
	flags.StringVar(&f.runtime, "runtime", "", "run steps with the OCI runtime `NAME`, or a path (default: crun if it works here, else runc)")
	f.qemu.add(cmd)
	fixedValues(cmd, "executor", names...)
	fixedValues(cmd, "runtime", "crun", "runc", "runsc")
}

// kind finds the executor that is asked for.
func (f *executorFlags) kind() (*executorKind, error) {
	names := []string{"auto"}
	for i, k := range executorKinds {
		if f.name == k.name || f.name == "auto" {
			return &executorKinds[i], nil
		}
		names = append(names, k.name)
	}
	return nil, usage("executors are: "+strings.Join(names, ", "), "--executor %s: unknown", f.name)
}

// open makes the executor of a project.
func (f *executorFlags) open(p *project) error {
	kind, err := f.kind()
	if err != nil {
		return err
	}
	f.qemu.warn = p.notices.warn
	if p.plan != nil {
		f.qemu.arch = p.plan.Platform.Architecture
	}
	e, err := kind.open(p.builder.Store, f)
	if err != nil {
		return fmt.Errorf("%w\n  obx healthcheck --executor %s says what is missing", err, kind.name)
	}
	p.builder.Executor = e
	p.close = append(p.close, e.Close)
	return nil
}
