package main

import (
	"github.com/spf13/cobra"
)

func cacheCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "cache COMMAND",
		Short:   "Look at the store, check it, and make room",
		GroupID: groupStore,
	}, cacheLsCommand(), cacheDfCommand(), cachePruneCommand(), cacheVerifyCommand())
}
