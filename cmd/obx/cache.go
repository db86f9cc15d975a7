package main

import (
	"github.com/spf13/cobra"
)

func cacheCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "cache COMMAND",
		Short: "Look after the store of this machine, and shared caches",
		Long: `Look after the store of this machine, and shared caches.

ls, df, rm and prune work on the store, gc on a shared cache, verify on either. Results are carried by hand with export
(from the store to a cache, as a directory or tar archive), import (from a cache to the store) and copy (from one
cache to another).`,
		GroupID: groupStore,
	}, cacheLsCommand(), cacheDfCommand(), cacheRmCommand(), cachePruneCommand(), cacheVerifyCommand(),
		cacheExportCommand(), cacheImportCommand(), cacheCopyCommand(), cacheGCCommand())
}
