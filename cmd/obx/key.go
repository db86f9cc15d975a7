package main

import (
	"github.com/spf13/cobra"
)

func keyCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "key COMMAND",
		Short: "Make keys that sign results",
		Long: `Make keys that sign results, so that machines know whose results they use.

A machine that publishes signs with a secret key: obx run --cache REPO --sign-key FILE. Others name its public key, and
take nothing that it has not signed: obx run --cache REPO --trust NAME:KEY. Who signs, trusts too, if need be its own key
alone: a signature says of all that led to a result where it was made.`,
		GroupID: groupStore,
	}, keyGenerateCommand(), keyPublicCommand())
}
