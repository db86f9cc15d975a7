package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func cacheVerifyCommand() *cobra.Command {
	var store string
	cmd := &cobra.Command{
		Use:   "verify [flags]",
		Short: "Read the whole store and list what is broken",
		Long: `Read the whole store and list what is broken. A build takes nothing that is broken: it makes it again.

Exit status: 0 all is well, 1 something is broken.`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			st, err := openExisting(cmd.ErrOrStderr(), store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, st.Close()) }()
			w, bad := cmd.OutOrStdout(), 0
			for p, err := range st.Verify(cmd.Context()) {
				if err != nil {
					return fmt.Errorf("verify the store: %w", err)
				}
				bad++
				fmt.Fprintf(w, "%s %s: %s\n", p.What, p.Path, p.Detail)
			}
			if bad > 0 {
				return silent(statusFailed)
			}
			_, err = fmt.Fprintln(w, "no problems")
			return err
		},
	}
	addStore(cmd, &store)
	return cmd
}
