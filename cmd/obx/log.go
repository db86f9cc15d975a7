package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/executor/build"
)

func logCommand() *cobra.Command {
	var store, domain string
	cmd := &cobra.Command{
		Use:   "log [flags] KEY",
		Short: "Print what a step printed when it ran",
		Long: `Print what a step printed when it ran. KEY is its key, or the first 6 digits of it or more; obx plan and obx cache ls
show keys.`,
		Example:           "  obx log 3f9a1c2b",
		GroupID:           groupStore,
		Args:              args(1, 1, "one KEY"),
		ValidArgsFunction: completeKeys,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			domains, err := parseDomains(domain)
			if err != nil {
				return err
			}
			if err := checkKey(args[0]); err != nil {
				return err
			}
			st, err := openExisting(cmd.ErrOrStderr(), store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, st.Close()) }()
			key, err := findKey(st, domains, args[0])
			if err != nil {
				return err
			}
			b := &build.Builder{Store: st, Domains: domains}
			return b.Log(cmd.Context(), key, cmd.OutOrStdout())
		},
	}
	addStore(cmd, &store)
	addDomain(cmd, &domain)
	return cmd
}
