package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/keys/spec"
)

func dockerfileCommand() *cobra.Command {
	var o spec.DockerfileOptions
	cmd := &cobra.Command{
		Use:   "dockerfile [flags] SPEC [DIR]",
		Short: "Convert a spec to a Dockerfile",
		Long: `Convert a spec to a Dockerfile, for a reader who wants to reproduce a build with docker. Networks are dropped; caches,
secrets and exclusions of copies need --buildkit.

DIR (default: the current directory) is where copies take files from. A directory that is copied into another keeps its
name, as in (copy (src assets) (dst ./)), which COPY has to be told: COPY assets ./assets. What is not in DIR, or is of
another build, counts as a directory unless its name has an extension.`,
		Example: `  obx dockerfile --buildkit build.sexp > Dockerfile
  obx dockerfile build.sexp src | docker build -f - src`,
		GroupID:           groupSpec,
		Args:              args(1, 2, "SPEC [DIR]"),
		ValidArgsFunction: completeSpecDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Escape != "unix" && o.Escape != "windows" {
				return usage("styles are: unix, windows", "--escape %s: unknown style", o.Escape)
			}
			s, err := readSpec(cmd, args[0])
			if err != nil {
				return err
			}
			dir := "."
			if len(args) > 1 {
				dir = args[1]
			}
			root, err := openDir(dir)
			if err != nil {
				return err
			}
			defer root.Close()
			o.Source = root
			text, err := s.Dockerfile(o)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().BoolVar(&o.BuildKit, "buildkit", false, "mount caches and secrets with RUN --mount, exclude with COPY --exclude")
	cmd.Flags().StringVar(&o.Escape, "escape", "unix", "write for images of a `SYSTEM`: unix or windows")
	fixedValues(cmd, "escape", "unix", "windows")
	return cmd
}
