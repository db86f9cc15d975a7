package main

import (
	"encoding/csv"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/executor/build"
)

// outputTypes are what --output can write.
var outputTypes = []string{"tar", "oci", "docker", "local"}

const outputHint = "for example -o type=oci,dest=image.tar,name=app:dev"

// parseOutputs reads --output, comma-separated as buildx has it.
func parseOutputs(flags []string) ([]build.OutputSpec, error) {
	var all []build.OutputSpec
	stdout := false
	for _, f := range flags {
		o, err := parseOutput(f)
		if err != nil {
			return nil, err
		}
		if o.Dest == "-" {
			if stdout {
				return nil, usage("", "only one output can go to standard output")
			}
			stdout = true
		}
		all = append(all, o)
	}
	return all, nil
}

func parseOutput(s string) (build.OutputSpec, error) {
	var o build.OutputSpec
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return o, usage(outputHint, "--output %s: %w", s, err)
	}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return o, usage(outputHint, "--output %s: %q is not KEY=VALUE", s, f)
		}
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "type":
			o.Type = value
		case "dest":
			o.Dest = value
		case "name":
			o.Name = value
		case "setuid":
			if value != "keep" {
				return o, usage("without it they are left out", "--output %s: setuid can only be keep", s)
			}
			o.KeepSetuid = true
		default:
			return o, usage("fields are: type, dest, name, setuid", "--output %s: unknown field %q", s, key)
		}
	}
	switch {
	case o.Type == "":
		return o, usage(outputHint, "--output %s: type is missing", s)
	case !slices.Contains(outputTypes, o.Type):
		return o, usage("types are: "+strings.Join(outputTypes, ", "), "--output %s: unknown type %q", s, o.Type)
	case o.Dest == "":
		return o, usage(outputHint, "--output %s: dest is missing", s)
	case o.Type == "local" && o.Dest == "-":
		return o, usage("type=tar can go to standard output", "--output %s: a directory is needed", s)
	case o.KeepSetuid && o.Type != "local":
		return o, usage("tar, oci and docker have all bits", "--output %s: setuid is for type=local", s)
	case o.Name != "" && (o.Type == "tar" || o.Type == "local"):
		return o, usage("oci and docker have one", "--output %s: type %s has no name", s, o.Type)
	}
	// A layout is a directory where the destination is one, or is said to be.
	o.Dir = o.Type == "oci" && (strings.HasSuffix(o.Dest, "/") || isDir(o.Dest))
	return o, nil
}

// completeOutput completes the type of an output.
func completeOutput(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	all := make([]string, len(outputTypes))
	for i, t := range outputTypes {
		all[i] = "type=" + t + ",dest="
	}
	return all, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}
