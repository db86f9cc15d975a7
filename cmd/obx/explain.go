package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/cmd/obx/internal/safe"
)

func explainCommand() *cobra.Command {
	var in inputs
	cmd := &cobra.Command{
		Use:   "explain [flags] SPEC [DIR]",
		Short: "Say why the first step that is not cached has to run",
		Long: `Say why the first step that is not cached has to run: compare it with the recorded step that is most like it, and
print what differs, as a variable, a changed file with its path, or the digest of the base image.`,
		Example:           "  obx explain build.sexp src",
		GroupID:           groupBuild,
		Args:              args(1, 2, "SPEC [DIR]"),
		ValidArgsFunction: completeSpecDir,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			p, err := in.open(cmd, args, true)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			ex, err := p.builder.Explain(cmd.Context(), p.plan)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if ex == nil {
				_, err := fmt.Fprintln(w, "every step is cached")
				return err
			}
			fmt.Fprintf(w, "step %d (%s) has to run: %s\n", ex.Step.Number, location(p.spec.File, ex.Step), safe.Line(progress.Operation(ex.Step.Op)))
			if ex.Nearest == "" {
				_, err := fmt.Fprintln(w, "no step like it was recorded")
				return err
			}
			fmt.Fprintf(w, "it is most like %s of %s, but for:\n", ex.Nearest[:12], timestamp(ex.Created))
			for _, r := range ex.Reasons {
				fmt.Fprintln(w, "  "+safe.Line(r))
			}
			if len(ex.Reasons) == 0 {
				fmt.Fprintln(w, "  nothing: its result was lost, or made in another domain")
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	in.sharing.add(cmd)
	in.add(cmd)
	return cmd
}
