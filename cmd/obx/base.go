package main

import (
	"github.com/spf13/cobra"
)

func baseCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "base COMMAND",
		Short:   "Make base images",
		Long:    `Make base images of what is none yet.`,
		GroupID: groupStore,
	}, baseCommands()...)
}
