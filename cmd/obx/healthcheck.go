package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/safe"
)

func healthcheckCommand() *cobra.Command {
	var store, platform string
	var box executorFlags
	var install bool
	cmd := &cobra.Command{
		Use:   "healthcheck [flags]",
		Short: "Say whether builds can run here, and what is missing",
		Long: `Say whether builds can run here, and what is missing and how to install it.

Exit status: 0 builds can run, 3 something is missing.`,
		GroupID: groupOther,
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			kind, err := box.kind()
			if err != nil {
				return err
			}
			of, err := parsePlatform(platform)
			if err != nil {
				return err
			}
			box.settle(of)
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			bad := false
			line := func(name, detail string, err error) {
				if err == nil {
					fmt.Fprintf(w, "ok\t%s\t%s\n", name, detail)
					return
				}
				bad = true
				fmt.Fprintf(w, "FAILED\t%s\t%s\n", name, safe.Message(err.Error()))
			}
			st, err := openStore(cmd.ErrOrStderr(), store)
			dir := ""
			if err == nil {
				dir = st.Dir()
				defer st.Close()
			}
			line("store", dir, err)
			if install && err == nil && kind.install != nil {
				tell := func(msg string) { say(cmd.ErrOrStderr(), msg) }
				if err := kind.install(cmd.Context(), st, &box, tell); err != nil {
					line("install", "", err)
				}
			}
			for _, c := range kind.health(cmd.Context(), st, &box) {
				line(c.Name, c.Detail, c.Err)
				if c.Warning != "" {
					fmt.Fprintf(w, "WARNING\t%s\t%s\n", c.Name, c.Warning)
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if bad {
				return silent(statusInfrastructure)
			}
			return nil
		},
	}
	addStore(cmd, &store)
	addPlatform(cmd, &platform)
	box.add(cmd)
	cmd.Flags().BoolVar(&install, "install", false, "install what the executor needs and this machine lacks, as far as obx knows how (qemu: on Debian)")
	return cmd
}
