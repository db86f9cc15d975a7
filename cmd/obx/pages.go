package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/docs"
)

// pageTopics are the pages of the manual, as topics of obx help: `obx help spec`. A page that has the name of a command of docker is none where args call
// that command: `obx images` gets the answer that obx has no such command, and what it has instead.
func pageTopics(args []string) []*cobra.Command {
	var topics []*cobra.Command
	for _, p := range docs.Pages {
		if len(args) > 0 && args[0] == p.Name && elsewhereCommand(p.Name) != "" {
			continue
		}
		topic := &cobra.Command{Use: p.Name, Short: p.About}
		topic.SetHelpFunc(func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), p.Text()) })
		topics = append(topics, topic)
	}
	return topics
}
