//go:build !linux

package main

import "github.com/spf13/cobra"

func baseCommands() []*cobra.Command { return []*cobra.Command{baseQcow2Command()} }
