package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

func shellCommand() *cobra.Command {
	var (
		in      inputs
		box     sandbox
		before  string
		after   string
		network string
		mode    string
	)
	cmd := &cobra.Command{
		Use:   "shell [flags] SPEC|KEY [DIR] [-- COMMAND...]",
		Short: "Open a shell in the state before a step, or after one",
		Long: `Open a shell in the state before or after a step, with the environment, user and directory that a step has there.
What it changes is dropped. Steps before it that are not cached are run first; a --cache is only read.

With a SPEC it is the state before the first step that is not cached, which is the one that failed; or the end, if
all are cached. With a KEY, or the first 6 digits of it or more, it is that result.

COMMAND runs instead of the shell.

Exit status: 0 the shell ended (however), or COMMAND did with 0; 1 COMMAND, or a step before it, failed.`,
		Example: `  obx shell build.sexp src                  where the build fails
  obx shell --before 3 build.sexp src
  obx shell --after dev build.sexp src      the result of (build dev ...)
  obx shell 3f9a1c2b -- ls -l /`,
		GroupID: groupBuild,
		Args:    args(1, 2, "SPEC [DIR] or KEY"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				if found, d := completeKeys(cmd, args, word); len(found) > 0 {
					return found, d
				}
			}
			return completeSpecDir(cmd, args, word)
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			limits, err := box.limits()
			if err != nil {
				return err
			}
			secrets, err := parseSecrets(box.secrets)
			if err != nil {
				return err
			}
			if before != "" && after != "" {
				return usage("", "--before and --after exclude each other")
			}
			var argv []string
			if n := cmd.ArgsLenAtDash(); n >= 0 {
				args, argv = args[:n], args[n:]
			}
			if err := needRoot(); err != nil {
				return err
			}
			p, spot, err := openSpot(cmd, args, &in, before, after)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			b := p.builder
			b.Limits, b.Secrets, b.NeedFiles = box.within(limits, in.limits), secrets, true
			box.apply(b)
			if spot.step != nil {
				if err := p.checkSecrets(cmd.Context(), spot.step); err != nil {
					return err
				}
			}
			if err := box.open(cmd.Context(), p); err != nil {
				return err
			}
			if spot.key == "" {
				if spot.key, err = prepare(cmd, args, p, spot.step, mode); err != nil {
					return err
				}
			}
			return enter(cmd, b, spot, argv, network)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&before, "before", "", "the state before `STEP`: its number, or a build's name")
	f.StringVar(&after, "after", "", "the state after `STEP`: its number, or a build's name")
	f.StringVar(&network, "network", "", "give the shell a `NETWORK`: host or none (default: as the step)")
	fixedValues(cmd, "network", "host", "none")
	addProgress(cmd, &mode)
	box.add(cmd)
	in.sharing.add(cmd)
	in.add(cmd)
	return cmd
}

// A spot is where a shell opens.
type spot struct {
	key     string     // "" if it has to be built
	step    *keys.Step // to build all before it
	context keys.Context
	network executor.Network
}

// openSpot finds out where the shell is to be.
func openSpot(cmd *cobra.Command, args []string, in *inputs, before, after string) (*project, *spot, error) {
	if isKey(args[0]) && !isFile(args[0]) {
		if before != "" || after != "" || len(args) > 1 {
			return nil, nil, usage("", "a KEY says all: no --before, --after or DIR with it")
		}
		return openKey(cmd, args[0], in)
	}
	p, err := in.open(cmd, args, false)
	if err != nil {
		return nil, nil, err
	}
	s, err := p.spot(cmd.Context(), before, after)
	if err != nil {
		return nil, nil, errors.Join(err, p.Close())
	}
	return p, s, nil
}

// openKey opens the store for a recorded key.
func openKey(cmd *cobra.Command, key string, in *inputs) (*project, *spot, error) {
	if err := in.settle(); err != nil {
		return nil, nil, err
	}
	st, err := openExisting(cmd.ErrOrStderr(), in.store)
	if err != nil {
		return nil, nil, err
	}
	p := &project{notices: &notices{stderr: cmd.ErrOrStderr()}, close: []func() error{st.Close}}
	domains, err := parseDomains(in.domain)
	if err == nil {
		p.builder = &build.Builder{Store: st, Domains: domains, Trust: in.trusted}
		key, err = findKey(st, domains, key)
	}
	var rec *results.Record
	if err == nil {
		rec, err = p.builder.Record(key)
	}
	if err != nil {
		return nil, nil, errors.Join(err, p.Close())
	}
	base := rec
	for err == nil && base.Config == nil {
		base, err = p.builder.Record(base.Parent)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("find the base image of %s: %w", key, err), p.Close())
	}
	p.platform = base.Config.Platform
	s := &spot{key: key, context: rec.Env}
	if rec.Parent == "" {
		s.context = keys.DefaultContext(rec.Config.Platform)
	}
	return p, s, nil
}

// spot finds the state that --before and --after name, or the default one.
func (p *project) spot(ctx context.Context, before, after string) (*spot, error) {
	switch {
	case before != "":
		s, err := p.step("before", before)
		if err != nil {
			return nil, err
		}
		return beforeStep(s), nil
	case after != "":
		s, err := p.step("after", after)
		if err != nil {
			return nil, err
		}
		if s.Stage.Name == after {
			return endOf(s.Stage), nil
		}
		return afterStep(s), nil
	}
	statuses, _, err := p.builder.Status(ctx, p.plan)
	if err != nil {
		return nil, err
	}
	for _, s := range statuses {
		if s.Run {
			return beforeStep(s.Step), nil
		}
	}
	return endOf(p.plan.Stages[len(p.plan.Stages)-1]), nil
}

func beforeStep(s *keys.Step) *spot {
	at := &spot{step: s, context: s.Env}
	if run, ok := s.Op.(*spec.Run); ok && slices.Contains(run.Network, "host") {
		at.network = executor.NetworkHost
	}
	return at
}

func afterStep(s *keys.Step) *spot {
	if s.Index+1 < len(s.Stage.Steps) {
		next := s.Stage.Steps[s.Index+1]
		return &spot{step: next, context: s.Stage.Contexts[s.OpIndex+1]}
	}
	return endOf(s.Stage)
}

// endOf is the state after all of a stage: before a step that is not there.
func endOf(s *keys.Stage) *spot {
	end := &keys.Step{Stage: s, Index: len(s.Steps), OpIndex: len(s.Spec.Ops)}
	return &spot{step: end, context: s.Contexts[len(s.Spec.Ops)]}
}

// prepare builds what comes before the spot.
func prepare(cmd *cobra.Command, args []string, p *project, s *keys.Step, mode string) (string, error) {
	printer, err := newShellPrinter(cmd, mode)
	if err != nil {
		return "", err
	}
	defer printer.Close()
	rep := &build.Report{}
	p.builder.Events = p.notices.display(func(e build.Event) {
		if e.Kind == build.Done {
			rep = e.Report
		}
		printer.Event(e)
	})
	key, err := p.builder.StateBefore(cmd.Context(), p.plan, s)
	return key, errors.Join(printer.Close(), failure(cmd, args, p, rep, err))
}

// enter runs the shell, or the command.
func enter(cmd *cobra.Command, b *build.Builder, at *spot, argv []string, network string) error {
	switch network {
	case "host":
		at.network = executor.NetworkHost
	case "none":
		at.network = executor.NetworkNone
	case "":
	default:
		return usage("networks are: host, none", "--network %s: unknown", network)
	}
	s := build.Session{Context: at.context, Argv: argv, Network: at.network, Output: cmd.OutOrStdout()}
	in, ok := cmd.InOrStdin().(*os.File)
	switch {
	case ok && isTerminal(in) && isTerminal(cmd.OutOrStdout()):
		s.TTY = in
		s.Output, _ = terminal(cmd.OutOrStdout()) // it is the shell's own now
	case ok:
		s.Stdin = in
	}
	err := b.Shell(cmd.Context(), at.key, s)
	var exit *executor.ExitError
	switch {
	case errors.As(err, &exit) && len(argv) == 0:
		return nil // the status of a shell is that of whatever was typed last
	case errors.As(err, &exit):
		return failed("%s: %w", strings.Join(argv, " "), err)
	}
	var start *executor.StartError
	switch {
	case errors.As(err, &start) && len(argv) == 0:
		return failed("%w\n  another shell: add -- /bin/sh to the command line", err)
	case errors.As(err, &start):
		return failed("%w", err)
	}
	return err
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && !info.IsDir()
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}
