package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
)

func runCommand() *cobra.Command {
	var (
		in          inputs
		box         sandbox
		outputs     []string
		platforms   []string
		noCache     bool
		rebuild     []string
		compression string
		mode        string
	)
	cmd := &cobra.Command{
		Use:   "run [flags] SPEC [DIR]",
		Short: "Build a spec",
		Long: `Build a spec: run each step whose result is not known, and replay the log of every other.

SPEC is a file, or - for standard input. DIR is where copies take files from (default: the current directory).

With --cache, what other machines have built counts too, and what is built here is theirs: the first one is pushed to,
behind the build. What is wrong with a cache is a warning, and what it was to give is built.

An output that fails leaves nothing, but for what it has added to a directory that was there before.

Sandboxes need root. A build that is interrupted or fails keeps what it finished; the next run goes on from there.

Exit status: 0 built, 1 a step failed, 2 the spec or the call is wrong, 3 the infrastructure failed, 130 interrupted.`,
		Example: `  obx run build.sexp src
  obx run --secret token=token.txt --secret key=env:KEY build.sexp
  obx run -o type=tar,dest=files.tar build.sexp
  obx run -o type=local,dest=rootfs,setuid=keep build.sexp
  obx run -o type=docker,dest=-,name=app:dev build.sexp | docker load
  obx run -o type=registry,name=registry.example/app:1.0,entrypoint=/bin/app build.sexp
  obx run --base base=oci:./layout:latest --rebuild 3 build.sexp
  obx run --cache registry.example/cache build.sexp`,
		GroupID:           groupBuild,
		Args:              args(1, 2, "SPEC [DIR]"),
		ValidArgsFunction: completeSpecDir,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			outs, err := parseOutputs(outputs)
			if err != nil {
				return err
			}
			limits, err := box.limits()
			if err != nil {
				return err
			}
			c, err := layers.ParseCompression(compression)
			if err != nil {
				return usage("for example --compression gzip:6", "--compression: %w", err)
			}
			if !cmd.Flags().Changed("compression") {
				c = layers.Compression{}
			}
			secrets, err := parseSecrets(box.secrets)
			if err != nil {
				return err
			}
			if err := checkPlatforms(platforms, outs); err != nil {
				return err
			}
			if err := checkOutputs(outs); err != nil {
				return err
			}
			if in.offline && slices.ContainsFunc(outs, func(o build.OutputSpec) bool { return o.Type == "registry" }) {
				return usage("write type=oci, and push that later", "--output type=registry: --offline reaches no registry")
			}
			toStdout := slices.ContainsFunc(outs, func(o build.OutputSpec) bool { return o.Dest == "-" })
			in.compression = c
			// buildOn builds for one platform, and gives what its outputs have become.
			buildOn := func(in inputs, outs []build.OutputSpec) (written []build.Written, _ *build.Builder, err error) {
				printer, err := newRunPrinter(cmd, mode, toStdout)
				if err != nil {
					return nil, nil, err
				}
				defer printer.Close()
				if err := needRoot(); err != nil {
					return nil, nil, err
				}
				p, err := in.open(cmd, args, false)
				if err != nil {
					return nil, nil, err
				}
				defer func() { err = errors.Join(err, p.Close()) }()
				if err := p.rebuild(rebuild); err != nil {
					return nil, nil, err
				}
				b := p.builder
				if noCache && len(rebuild) > 0 {
					p.notices.warn("--rebuild says nothing more than --no-cache, which runs every step again")
				}
				b.NoCache, b.Secrets, b.Limits, b.Compression, b.NeedFiles = noCache, secrets, box.within(limits, in.limits), c, len(outs) > 0
				if err := p.checkSecrets(cmd.Context(), nil); err != nil {
					return nil, nil, err
				}
				b.Events = p.notices.display(printer.Event)
				box.apply(b)
				if err := box.open(cmd.Context(), p); err != nil {
					return nil, nil, err
				}
				rep, err := b.Run(cmd.Context(), p.plan)
				if err := errors.Join(printer.Close(), failure(cmd, args, p, rep, err)); err != nil {
					return nil, nil, err
				}
				b.Events = p.notices.event
				for _, o := range outs {
					w, err := b.Write(cmd.Context(), p.plan, rep, o, cmd.OutOrStdout())
					if err != nil {
						return nil, nil, err
					}
					written = append(written, w)
					if mode != "quiet" && !o.Untagged {
						printWritten(cmd.ErrOrStderr(), w)
					}
				}
				return written, b, nil
			}
			if len(platforms) < 2 {
				in.platform = strings.Join(platforms, "")
				_, _, err := buildOn(in, outs)
				return err
			}
			images := make([][]build.Written, len(outs))
			var last *build.Builder
			for i := range outs {
				outs[i].Untagged = true
			}
			flag := cmd.Flags().Lookup("platform").Value.(pflag.SliceValue)
			for _, platform := range platforms {
				if err := flag.Replace([]string{platform}); err != nil { // what is told of a failure is of this one
					return err
				}
				in.platform = platform
				written, b, err := buildOn(in, outs)
				if err != nil {
					return fmt.Errorf("for %s: %w", platform, err)
				}
				last = b
				for i, w := range written {
					images[i] = append(images[i], w)
				}
			}
			for i, o := range outs {
				w, err := last.WriteIndex(cmd.Context(), o, images[i])
				if err != nil {
					return err
				}
				if mode != "quiet" {
					printWritten(cmd.ErrOrStderr(), w)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVarP(&outputs, "output", "o", nil, "write an `OUTPUT`: type=tar|local (files) or type=oci|docker (an image), with dest=FILE,\na directory, or - for standard output, and name=NAME of an image; or type=registry,name=HOST/NAME:TAG;\nrepeatable (see: obx help output). A directory that is new is for its owner alone. One of type=local has\nno device nodes, and keeps set-user-ID and set-group-ID bits and file capabilities only with setuid=keep")
	addProgress(cmd, &mode)
	addRebuild(cmd, &noCache, &rebuild)
	box.add(cmd)
	f.StringVar(&compression, "compression", "zstd", "pack layers by a `METHOD`: zstd, gzip or none, or one with its level as gzip:9. All layers of an output\nhave it; without the flag, the base image's are as they came, and type=docker has no zstd (see docs/images.md)")
	fixedValues(cmd, "compression", "zstd", "gzip", "none")
	in.sharing.add(cmd)
	in.addPush(cmd)
	in.add(cmd)
	addPlatforms(cmd, &platforms)
	cmd.RegisterFlagCompletionFunc("output", completeOutput)
	return cmd
}

// addPlatforms has a command take several platforms.
func addPlatforms(cmd *cobra.Command, platforms *[]string) {
	var list pflag.FlagSet
	list.StringSliceVar(platforms, "platform", nil, "")
	f := cmd.Flags().Lookup("platform")
	f.Value = list.Lookup("platform").Value
	f.Usage += "; several, for an output\nof type=registry, are built one after the other"
}

// checkPlatforms looks whether several platforms can be built for.
func checkPlatforms(platforms []string, outs []build.OutputSpec) error {
	for i, p := range platforms {
		if _, err := parsePlatform(p); err != nil {
			return err
		}
		if slices.Contains(platforms[:i], p) {
			return usage("", "--platform %s: it is there twice", p)
		}
	}
	if len(platforms) < 2 {
		return nil
	}
	if len(outs) == 0 {
		return usage("for example -o type=registry,name=registry.example/app:1.0", "several --platform are for an output of type=registry")
	}
	for _, o := range outs {
		if o.Type != "registry" {
			return usage("run obx for each platform", "--output %s: several --platform are for type=registry alone", o)
		}
	}
	return nil
}

// failure says what a person needs to know of a build that did not succeed.
func failure(cmd *cobra.Command, args []string, p *project, rep *build.Report, err error) error {
	var step *build.StepError
	switch {
	case errors.As(err, &step):
		return &stepFailure{StepError: step, file: p.spec.File, shell: shellHint(cmd, args, step.Step)}
	case errors.Is(err, errInterrupted):
		switch rep.Runs {
		case 0:
			return fmt.Errorf("%w: no step was finished since the start", errInterrupted)
		case 1:
			return fmt.Errorf("%w: 1 step saved; the next run goes on from there", errInterrupted)
		}
		return fmt.Errorf("%w: %d steps saved; the next run goes on from there", errInterrupted, rep.Runs)
	}
	return err
}

// A stepFailure tells which step failed, how, and how to look inside.
type stepFailure struct {
	*build.StepError
	file  string
	shell string
}

func (e *stepFailure) Unwrap() error { return e.StepError }

func (e *stepFailure) Error() string {
	s := e.Step
	where := location(e.file, s)
	if s.Stage.Name != "" {
		where += ", build " + spec.Quote(s.Stage.Name)
	}
	return fmt.Sprintf("step %d (%s) failed: %v\n  command: %s\n  look inside: %s", s.Number, where, e.Err, commandOf(s), e.shell)
}

// commandOf is what a step executes: the words of its command, quoted.
func commandOf(s *keys.Step) string {
	run, ok := s.Op.(*spec.Run)
	if !ok {
		return spec.Heading(s.Op)
	}
	var words []string
	for _, w := range s.Env.Shell {
		words = append(words, strconv.Quote(w))
	}
	return strings.Join(append(words, strconv.Quote(run.Command)), " ")
}

// shellHint is the command line that opens a shell where a step failed. It has the flags of this one, as far as the
// shell command has them too.
func shellHint(cmd *cobra.Command, args []string, s *keys.Step) string {
	words := []string{"obx", "shell", "--before", strconv.Itoa(s.Number)}
	shell := shellCommand()
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "progress", "before", "after":
			return
		}
		if shell.Flags().Lookup(f.Name) == nil {
			return
		}
		values := []string{f.Value.String()}
		if many, ok := f.Value.(pflag.SliceValue); ok {
			values = many.GetSlice()
		}
		for _, v := range values {
			if f.Value.Type() == "bool" {
				words = append(words, "--"+f.Name)
			} else {
				words = append(words, "--"+f.Name, v)
			}
		}
	})
	words = append(words, args...)
	for i, w := range words {
		words[i] = shellQuote(w)
	}
	return strings.Join(words, " ")
}

// shellQuote quotes a word for a POSIX shell, if it needs it.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=@%+,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// needRoot is the error of a user who may not make sandboxes.
func needRoot() error {
	if os.Geteuid() <= 0 {
		return nil
	}
	return errors.New("sandboxes need root: run it with sudo; plan, explain, check, fmt and dockerfile work for every user")
}
