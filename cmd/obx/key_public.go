package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/registry"
)

func keyPublicCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "public FILE",
		Short:   "Print the public key of a secret key, as --trust takes it",
		Example: `  obx run --cache registry.example/cache --trust "$(obx key public ci.key)" build.sexp`,
		Args:    args(1, 1, "one FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return usage("", "read the secret key: %w", err)
			}
			signer, err := registry.ParseSigner(data)
			if err != nil {
				return usage("obx key generate NAME makes one", "%s: %w", args[0], err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), signer.Public())
			return err
		},
	}
}
