package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Groups of commands in `obx help`.
const (
	groupBuild = "build"
	groupSpec  = "spec"
	groupStore = "store"
	groupOther = "other"
)

// execute runs one command line and gives the exit status.
func execute(args []string) int {
	ctx, stop := interruptible()
	defer stop()
	root := newRoot(args)
	root.SetArgs(args)
	out, err := guarded(os.Stdout), guarded(os.Stderr)
	root.SetOut(out)
	root.SetErr(err)
	return report(err, root.ExecuteContext(ctx))
}

// newRoot makes the command that has all others. When arguments call one of them, it makes no other: their flags, of which there are hundreds, are a tenth of
// a run that has nothing to do.
func newRoot(args []string) *cobra.Command {
	var version bool
	root := &cobra.Command{
		Use:   "obx",
		Short: "Run builds step by step in sandboxes, and never run a step twice",
		Long: `obx runs a build described by an S-expression (OBuilder's language: obx help spec) step by step in sandboxes. Each step has a key
that hashes all that it depends on, and its result is kept under that key: what was built before is not built again.

Exit status:
  0    done
  1    a step failed, or the command of obx shell; fmt --check or cache verify found something
  2    the spec or the call is wrong
  3    the infrastructure failed: sandbox, store, registry, disk
  130  interrupted (SIGINT or SIGTERM); what was built is saved`,
		Example: `  obx run build.sexp               build; copies take files from the current directory
  obx plan build.sexp src          what would run, and what is cached
  obx explain build.sexp           why the first step that is not cached has to run
  obx shell build.sexp             look inside, where the build failed
  obx run --cache registry.example/cache build.sexp     share results with other machines`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0:
				return unknownCommand(cmd, args[0])
			case version:
				return printVersion(cmd)
			}
			return cmd.Help()
		},
		PersistentPreRun: func(cmd *cobra.Command, _ []string) { enterNamespace(cmd) },

		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.Flags().BoolVar(&version, "version", false, "print the version")
	root.SetFlagErrorFunc(flagError)
	// Commands that only have others below them run to say so: that is no usage.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	root.AddGroup(
		&cobra.Group{ID: groupBuild, Title: "Build:"},
		&cobra.Group{ID: groupSpec, Title: "Work on specs:"},
		&cobra.Group{ID: groupStore, Title: "Results, here and shared:"},
		&cobra.Group{ID: groupOther, Title: "More:"},
	)
	root.SetHelpCommand(helpCommand())
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	commands := []struct {
		name string
		make func() *cobra.Command
	}{
		{"run", runCommand}, {"plan", planCommand}, {"explain", explainCommand}, {"shell", shellCommand},
		{"check", checkCommand}, {"fmt", fmtCommand}, {"dockerfile", dockerfileCommand},
		{"log", logCommand}, {"cache", cacheCommand}, {"key", keyCommand}, {"base", baseCommand}, {"login", loginCommand}, {"logout", logoutCommand},
		{"healthcheck", healthcheckCommand}, {"version", versionCommand}, {"man", manCommand},
		{"progress", progressTopic}, {"output", outputTopic}, {"config", configTopic}, {"policy", policyTopic},
	}
	for _, c := range commands {
		if len(args) > 0 && c.name == args[0] {
			root.AddCommand(c.make())
			root.CompletionOptions.DisableDefaultCmd = true
			return root
		}
	}
	for _, c := range commands {
		root.AddCommand(c.make())
	}
	root.AddCommand(pageTopics(args)...)
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			group(c)
		}
	}
	return root
}

// group is a command that only has others below it.
func group(cmd *cobra.Command, sub ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	cmd.AddCommand(sub...)
	return cmd
}

func unknownCommand(cmd *cobra.Command, name string) error {
	if said := elsewhereCommand(name); said != "" && !cmd.HasParent() {
		return usage(said, "unknown command %q", name)
	}
	hint := fmt.Sprintf("%s --help lists the commands", cmd.CommandPath())
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if s := cmd.SuggestionsFor(name); len(s) > 0 {
		hint = "did you mean " + strings.Join(s, " or ") + "?"
	}
	return usage(hint, "unknown command %q", name)
}

// helpCommand is cobra's, but that a topic that is not there is a mistake, as a command is.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Tell more of a command or topic",
		Long:  "Tell more of a command or topic; obx help lists them.",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			var found []string
			if of, _, err := cmd.Root().Find(args); err == nil {
				for _, c := range of.Commands() {
					if !c.Hidden && strings.HasPrefix(c.Name(), word) {
						found = append(found, cobra.CompletionWithDesc(c.Name(), c.Short))
					}
				}
			}
			return found, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			of, rest, err := cmd.Root().Find(args)
			if err != nil || of == cmd.Root() && len(args) > 0 {
				return unknownCommand(cmd.Root(), args[0])
			}
			if len(rest) > 0 && of.HasSubCommands() {
				return unknownCommand(of, rest[0])
			}
			of.InitDefaultHelpFlag()
			of.SetContext(cmd.Context())
			return of.Help()
		},
	}
}

// args demands a number of arguments; what says which, in words.
func args(low, high int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		n := len(args)
		if cmd.ArgsLenAtDash() >= 0 {
			n = cmd.ArgsLenAtDash()
		}
		if n >= low && (high < 0 || n <= high) {
			return nil
		}
		return usage("usage: "+cmd.UseLine(), "%s takes %s", cmd.CommandPath(), what)
	}
}
