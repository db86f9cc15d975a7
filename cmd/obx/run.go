package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
)

// runFlags are those of obx run.
type runFlags struct {
	in          inputs
	box         sandbox
	outputs     []string
	platforms   []string
	noCache     bool
	rebuild     []string
	compression string
	mode        string
}

func runCommand() *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] SPEC [DIR]",
		Short: "Build a spec",
		Long: `Build a spec: run each step whose result is not known, and replay the log of every other.

SPEC is a file, or - for standard input. DIR is where copies take files from (default: the current directory).

With --cache, what other machines have built counts too, and what is built here is theirs: the first one is pushed to,
behind the build. What is wrong with a cache is a warning, and what it was to give is built.

An output that fails leaves nothing, but for what it has added to a directory that was there before.

A build that is interrupted or fails keeps what it finished; the next run goes on from there. No root is needed: see
obx help rootless.

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
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := flags.parse(cmd, args)
			if err != nil {
				return err
			}
			if len(flags.platforms) < 2 {
				_, _, err := c.build(strings.Join(flags.platforms, ""))
				return err
			}
			return c.buildIndex()
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVarP(&flags.outputs, "output", "o", nil, "write an `OUTPUT`: type=tar|local (files) or type=oci|docker (an image), with dest=FILE,\na directory, or - for standard output, and name=NAME of an image; or type=registry,name=HOST/NAME:TAG;\nrepeatable (see: obx help output). A directory that is new is for its owner alone. One of type=local has\nno device nodes, and keeps set-user-ID and set-group-ID bits and file capabilities only with setuid=keep")
	addProgress(cmd, &flags.mode)
	addRebuild(cmd, &flags.noCache, &flags.rebuild)
	flags.box.add(cmd)
	f.StringVar(&flags.compression, "compression", "zstd", "pack layers by a `METHOD`: zstd, gzip or none, or one with its level as gzip:9. All layers of an output\nhave it; without the flag, the base image's are as they came, and type=docker has no zstd (see: obx help images)")
	fixedValues(cmd, "compression", "zstd", "gzip", "none")
	flags.in.sharing.add(cmd)
	flags.in.addPush(cmd)
	flags.in.add(cmd)
	addPlatforms(cmd, &flags.platforms)
	cmd.RegisterFlagCompletionFunc("output", completeOutput)
	return cmd
}

// A runCall is what one call of obx run asks for.
type runCall struct {
	*runFlags
	cmd     *cobra.Command
	args    []string
	outs    []build.OutputSpec
	limits  executor.Limits
	pack    layers.Compression
	secrets map[string]build.Secret
}

// parse finds what is wrong with the flags before anything is made.
func (f *runFlags) parse(cmd *cobra.Command, args []string) (c *runCall, err error) {
	c = &runCall{runFlags: f, cmd: cmd, args: args}
	if c.outs, err = parseOutputs(f.outputs); err != nil {
		return nil, err
	}
	if c.limits, err = f.box.limits(); err != nil {
		return nil, err
	}
	pack, err := layers.ParseCompression(f.compression)
	if err != nil {
		return nil, usage("for example --compression gzip:6", "--compression: %w", err)
	}
	if cmd.Flags().Changed("compression") {
		c.pack = pack
	}
	if c.secrets, err = parseSecrets(f.box.secrets); err != nil {
		return nil, err
	}
	if err := checkPlatforms(f.platforms, c.outs); err != nil {
		return nil, err
	}
	if err := checkOutputs(c.outs); err != nil {
		return nil, err
	}
	if f.in.offline && slices.ContainsFunc(c.outs, func(o build.OutputSpec) bool { return o.Type == "registry" }) {
		return nil, usage("write type=oci, and push that later", "--output type=registry: --offline reaches no registry")
	}
	f.in.compression = c.pack
	return c, nil
}

// build builds for one platform, and gives what the outputs have become.
func (c *runCall) build(platform string) (written []build.Written, _ *build.Builder, err error) {
	toStdout := slices.ContainsFunc(c.outs, func(o build.OutputSpec) bool { return o.Dest == "-" })
	printer, err := newRunPrinter(c.cmd, c.mode, toStdout)
	if err != nil {
		return nil, nil, err
	}
	defer printer.Close()
	if err := needRoot(); err != nil {
		return nil, nil, err
	}
	in := c.in
	in.platform = platform
	p, err := in.open(c.cmd, c.args, false)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := p.rebuild(c.rebuild); err != nil {
		return nil, nil, err
	}
	if c.noCache && len(c.rebuild) > 0 {
		p.notices.warn("--rebuild says nothing more than --no-cache, which runs every step again")
	}
	b := p.builder
	b.NoCache, b.Secrets, b.Limits, b.Compression = c.noCache, c.secrets, c.box.within(c.limits, in.limits), c.pack
	b.NeedFiles = len(c.outs) > 0
	if err := p.checkSecrets(c.cmd.Context(), nil); err != nil {
		return nil, nil, err
	}
	b.Events = p.notices.display(printer.Event)
	c.box.apply(b)
	if err := c.box.open(c.cmd.Context(), p); err != nil {
		return nil, nil, err
	}
	rep, err := b.Run(c.cmd.Context(), p.plan)
	if err := errors.Join(printer.Close(), failure(c.cmd, c.args, p, rep, err)); err != nil {
		return nil, nil, err
	}
	b.Events = p.notices.event
	for _, o := range c.outs {
		w, err := b.Write(c.cmd.Context(), p.plan, rep, o, c.cmd.OutOrStdout())
		if err != nil {
			return nil, nil, err
		}
		written = append(written, w)
		if !o.Untagged {
			c.tell(w)
		}
	}
	return written, b, nil
}

// buildIndex builds for each platform, and then writes for each output an index of its images.
func (c *runCall) buildIndex() error {
	for i := range c.outs {
		c.outs[i].Untagged = true
	}
	images := make([][]build.Written, len(c.outs))
	var last *build.Builder
	flag := c.cmd.Flags().Lookup("platform").Value.(pflag.SliceValue)
	for _, platform := range slices.Clone(c.platforms) {
		if err := flag.Replace([]string{platform}); err != nil { // what is told of a failure is of this one
			return err
		}
		written, b, err := c.build(platform)
		if err != nil {
			return fmt.Errorf("for %s: %w", platform, err)
		}
		last = b
		for i, w := range written {
			images[i] = append(images[i], w)
		}
	}
	for i, o := range c.outs {
		w, err := last.WriteIndex(c.cmd.Context(), o, images[i])
		if err != nil {
			return err
		}
		c.tell(w)
	}
	return nil
}

// tell says what was written.
func (c *runCall) tell(w build.Written) {
	if c.mode != "quiet" {
		printWritten(c.cmd.ErrOrStderr(), w)
	}
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
