package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
)

// An executorKind is what --executor can name.
type executorKind struct {
	name  string
	about string // for help

	// become has this process go on as another program, which has the executor; nil if this one has it. It returns only if that fails.
	become func() error

	// open finds out whether the flags are right. What the machine lacks is found when a step has to run.
	open func(context.Context, *cas.Store, *executorFlags) (executor.Executor, error)

	// health tries what the executor needs. The store is nil if it could not be opened.
	health func(context.Context, *cas.Store, *executorFlags) []executor.Check

	// install installs what is missing, and tells what it does; nil if that is nothing.
	install func(ctx context.Context, st *cas.Store, f *executorFlags, say func(string)) error
}

// executorFlags choose an executor and say how it works.
type executorFlags struct {
	name string
	warn func(string) // whom to tell what is not as it should be
	platformFlags
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
	fixedValues(cmd, "executor", names...)
	f.addOfPlatform(cmd)
}

// kind finds the executor that is asked for. It may start another program in this one's place, so commands call it before they do anything.
func (f *executorFlags) kind() (*executorKind, error) {
	names := []string{"auto"}
	for i, k := range executorKinds {
		if f.name == k.name || f.name == "auto" {
			if k.become != nil {
				return nil, k.become()
			}
			return &executorKinds[i], nil
		}
		names = append(names, k.name)
	}
	return nil, usage("executors are: "+strings.Join(names, ", "), "--executor %s: unknown", f.name)
}

// open makes the executor of a project.
func (f *executorFlags) open(ctx context.Context, p *project) error {
	kind, err := f.kind()
	if err != nil {
		return err
	}
	platform := p.platform
	if p.plan != nil {
		platform = p.plan.Platform
	}
	f.warn = p.notices.warn
	f.settle(platform)
	e, err := kind.open(ctx, p.builder.Store, f)
	if err != nil {
		return err
	}
	if has := e.Platform().OS; platform.OS != "" && !strings.EqualFold(platform.OS, has) {
		return errors.Join(usage("", "--executor %s runs steps of %s, not of %s", kind.name, has, platform.OS), e.Close())
	}
	p.builder.Executor = e
	p.close = append(p.close, e.Close)
	return nil
}

// late is the executor of a kind, made when a step has to run.
func late(kind string, p ocispec.Platform, make func() (executor.Executor, error)) (executor.Executor, error) {
	return executor.NewLate(p, func() (executor.Executor, error) {
		e, err := make()
		if err != nil {
			err = fmt.Errorf("%w\n  obx healthcheck --executor %s says what is missing", err, kind)
		}
		return e, err
	}), nil
}
