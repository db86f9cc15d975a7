package main

import "github.com/spf13/cobra"

func baseCommands() []*cobra.Command {
	return []*cobra.Command{baseAgentCommand(), baseQcow2Command()}
}
