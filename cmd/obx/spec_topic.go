package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/docs"
)

// specTopic is `obx help spec`: the page docs/spec.md.
func specTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "spec",
		Short: "The language of specs, and what surprises in it",
		Long:  strings.TrimSpace(docs.Spec),
	}
}
