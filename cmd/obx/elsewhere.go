package main

import (
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ocurrent/obx/keys/spec"
)

// elsewhereCommand says what obx calls a command of docker, podman or OBuilder; "" for others.
func elsewhereCommand(name string) string {
	return map[string]string{
		"build":     "obx run SPEC [DIR] builds",
		"buildx":    "obx run SPEC [DIR] builds",
		"bake":      "obx run SPEC [DIR] builds one spec",
		"exec":      "obx shell SPEC|KEY -- COMMAND runs a command in a result",
		"images":    "obx cache ls lists results; obx run -o type=docker,dest=-,name=NAME SPEC | docker load makes an image",
		"ps":        "obx has no daemon: what it runs ends with it; obx cache ls lists results",
		"logs":      "obx log KEY prints the log of a result",
		"history":   "obx plan SPEC lists the steps, obx cache ls the results",
		"inspect":   "obx plan --json SPEC tells all of a build",
		"pull":      "obx run pulls what (from IMAGE) names when a step needs it",
		"push":      "obx run --cache REPO SPEC pushes what it builds",
		"save":      "obx run -o type=docker,dest=FILE,name=NAME SPEC writes an image",
		"export":    "obx run -o type=tar,dest=FILE SPEC writes the files; obx cache export takes results to other machines",
		"import":    "obx cache import takes what obx cache export has written",
		"load":      "obx cache import takes what obx cache export has written",
		"tag":       "obx run -o type=docker,dest=FILE,name=NAME SPEC gives an image its name",
		"rmi":       "obx cache prune removes results",
		"prune":     "obx cache prune removes results",
		"clean":     "obx cache prune removes results",
		"gc":        "obx cache prune is for the store, obx cache gc REPO for a shared cache",
		"df":        "obx cache df tells what the store holds",
		"system":    "obx cache df and obx cache prune look after the store",
		"builder":   "obx cache df and obx cache prune look after the store",
		"lint":      "obx check SPEC finds mistakes, obx fmt -w SPEC lays it out",
		"validate":  "obx check SPEC finds mistakes",
		"format":    "obx fmt -w SPEC lays a spec out",
		"info":      "obx healthcheck tells what is missing on this machine",
		"why":       "obx explain SPEC says why a step has to run",
		"container": "obx has no containers that stay: obx run builds, obx shell looks inside",
	}[name]
}

// elsewhereFlag says what obx calls a flag of docker build or OBuilder; "" for others.
func elsewhereFlag(name string) string {
	return map[string]string{
		"tag":        "an image and its name are an output: -o type=docker,dest=FILE,name=NAME",
		"t":          "an image and its name are an output: -o type=docker,dest=FILE,name=NAME",
		"target":     "a whole spec is built: give obx run a spec that ends there, or look inside with obx shell --after BUILD",
		"build-arg":  "a spec has no arguments: write (env NAME VALUE) into it, or write the spec by a program; obx run - reads standard input",
		"cache-from": "--cache REPO looks for results in a shared cache, and --push never only reads it",
		"cache-to":   "--cache REPO is a shared cache: the first is pushed to",
		"nocache":    "--no-cache runs every step again",
		"file":       "the spec is an argument: obx run SPEC [DIR]",
		"f":          "the spec is an argument: obx run SPEC [DIR]",
		"load":       "-o type=docker,dest=-,name=NAME writes an image for docker load",
		"push":       "--cache REPO --push MODE pushes results",
		"quiet":      "--progress quiet prints less",
		"q":          "--progress quiet prints less",
		"verbose":    "--progress plain prints all",
		"v":          "obx version prints the version, --progress plain prints all",
		"network":    "a step's network is in the spec: (run (network host) (shell COMMAND))",
		"mount":      "a step's mounts are in the spec: (run (cache (ID (target DIR))) (secrets (ID)) (shell COMMAND))",
		"volume":     "a step's mounts are in the spec: (run (cache (ID (target DIR))) (secrets (ID)) (shell COMMAND))",
		"env":        "variables are in the spec: (env NAME VALUE)",
		"e":          "variables are in the spec: (env NAME VALUE)",
		"user":       "the user is in the spec: (user (uid N) (gid N))",
		"u":          "the user is in the spec: (user (uid N) (gid N))",
		"workdir":    "the directory is in the spec: (workdir DIR)",
		"w":          "the directory is in the spec: (workdir DIR)",
		"ssh":        "a key is a secret: --secret ID=FILE",
		"privileged": "steps have no more rights than a sandbox; --executor qemu gives them a machine of their own",
		"pull":       "a name is resolved in each run; --lock FILE and --offline keep what it was resolved to",
		"squash":     "-o type=tar writes the files without layers",
		"dry-run":    "obx plan SPEC shows what a run would do",
		"n":          "obx plan SPEC shows what a run would do",
		"force":      "--no-cache runs every step again, --rebuild STEP one",
		"parallel":   "--jobs N runs up to N steps at once",
		"json":       "--progress json prints events",
	}[name]
}

// flagError says what is wrong with a flag in words for people: neither pflag's nor strconv's.
func flagError(cmd *cobra.Command, err error) error {
	if words := cmd.Flags().Args(); !cmd.HasParent() && len(words) > 0 {
		return unknownCommand(cmd, words[0]) // whose flags these are
	}
	hint := cmd.CommandPath() + " --help lists the flags"
	var (
		unknown *pflag.NotExistError
		value   *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if said := elsewhereFlag(name); said != "" {
			return usage(said, "%w", err)
		}
		if like := suggestFlag(cmd, name); like != "" && len(name) > 1 {
			hint = like
		}
		if runCommand().Flags().Lookup(name) != nil {
			hint = "--" + name + " is a flag of obx run"
		}
	case errors.As(err, &value):
		return usage(hint, "--%s %s: %s", value.GetFlag().Name, value.GetValue(), wrongValue(value))
	}
	return usage(hint, "%w", err)
}

// suggestFlag is a sentence with the flags that are nearest to a misspelt one, or "".
func suggestFlag(cmd *cobra.Command, name string) string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, "--"+f.Name)
		}
	})
	if s := spec.Suggest("--"+name, names); s != "" {
		return s[len(": "):]
	}
	return ""
}

// wrongValue says what a value is not.
func wrongValue(err *pflag.InvalidValueError) string {
	cause := errors.Unwrap(err)
	var number *strconv.NumError
	if !errors.As(cause, &number) && !strings.HasPrefix(cause.Error(), "time: ") { // words of obx
		return cause.Error()
	}
	switch kind := err.GetFlag().Value.Type(); kind {
	case "int", "int64", "uint", "count":
		if errors.Is(err, strconv.ErrRange) {
			return "too large a number"
		}
		return "not a whole number"
	case "float64":
		return "not a number, as 1.5"
	case "duration":
		return "not a time, as 90s, 10m or 2h"
	case "bool":
		return "neither true nor false"
	}
	return "not a " + err.GetFlag().Value.Type()
}
