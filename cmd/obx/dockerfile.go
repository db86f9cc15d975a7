package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/keys/spec"
)

func dockerfileCommand() *cobra.Command {
	var o spec.DockerfileOptions
	cmd := &cobra.Command{
		Use:   "dockerfile [flags] SPEC",
		Short: "Convert a spec to a Dockerfile",
		Long: `Convert a spec to a Dockerfile, for a reader who wants to reproduce a build with docker. Networks and exclusions of
copies have no counterpart and are dropped; caches and secrets need --buildkit.`,
		Example: `  obx dockerfile --buildkit build.sexp > Dockerfile
  docker build -f Dockerfile src`,
		GroupID:           groupSpec,
		Args:              args(1, 1, "one SPEC"),
		ValidArgsFunction: completeSpecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Escape != "unix" && o.Escape != "windows" {
				return usage("styles are: unix, windows", "--escape %s: unknown style", o.Escape)
			}
			s, err := readSpec(cmd, args[0])
			if err != nil {
				return err
			}
			text, err := s.Dockerfile(o)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().BoolVar(&o.BuildKit, "buildkit", false, "mount caches and secrets with RUN --mount")
	cmd.Flags().StringVar(&o.Escape, "escape", "unix", "write for images of a `SYSTEM`: unix or windows")
	fixedValues(cmd, "escape", "unix", "windows")
	return cmd
}
