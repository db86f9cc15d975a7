package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write man pages",
		Long:    "Write a man page for each command to DIR, which is made if missing.",
		Example: "  obx man /usr/local/share/man/man1",
		GroupID: groupOther,
		Args:    args(1, 1, "one DIR"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return usage("", "write man pages: %w", err)
			}
			header := &doc.GenManHeader{Section: "1", Source: "obx", Manual: "obx"}
			// The same program writes the same pages: they have the date of its source.
			if date, err := time.Parse(time.RFC3339, readVersion().Time); err == nil {
				header.Date = &date
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("write man pages: %w", err)
			}
			return nil
		},
	}
}
