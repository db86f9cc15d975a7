package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// fixedValues completes a flag from a list.
func fixedValues(cmd *cobra.Command, flag string, values ...string) {
	cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// completeSpecs completes names of specs.
func completeSpecs(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"sexp", "spec"}, cobra.ShellCompDirectiveFilterFileExt
}

// completeSpecDir completes SPEC [DIR].
func completeSpecDir(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return completeSpecs(cmd, args, word)
	case 1:
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeKeys completes recorded keys, with what they are of.
func completeKeys(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	flag, err := cmd.Flags().GetString(storeFlag)
	if err != nil || len(args) > 0 {
		return nil, none
	}
	st, err := openExisting(io.Discard, flag)
	if err != nil {
		return nil, none
	}
	defer st.Close()
	rows, err := listResults(st)
	if err != nil {
		return nil, none
	}
	var found []string
	for _, r := range rows {
		if strings.HasPrefix(r.Key, word) {
			found = append(found, cobra.CompletionWithDesc(r.Key, strings.Join(strings.Fields(r.Op), " ")))
		}
	}
	return found, none
}
