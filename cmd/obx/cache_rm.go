package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/cmd/obx/internal/safe"
)

func cacheRmCommand() *cobra.Command {
	var (
		store  string
		mounts []string
	)
	cmd := &cobra.Command{
		Use:   "rm [flags] [KEY...]",
		Short: "Remove results, or cache mounts, by name",
		Long: `Remove results by their keys, or the beginnings of these, with all results that need them, in all domains; and cache
mounts by their names. What a running build uses stays, which is an error.`,
		Example: `  obx cache rm 0a1b2c3d4e5f
  obx cache rm --mount opam`,
		Args:              args(0, -1, "KEYs"),
		ValidArgsFunction: completeKeys,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 0 && len(mounts) == 0 {
				return usage("obx cache ls and obx cache ls --mounts list what there is", "neither a KEY nor a --mount is given")
			}
			for _, key := range args {
				if err := checkKey(key); err != nil {
					return err
				}
			}
			st, err := openExisting(cmd.ErrOrStderr(), store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, st.Close()) }()
			if err := removeMounts(cmd, st, mounts); err != nil || len(args) == 0 {
				return err
			}
			return removeResults(cmd, st, args)
		},
	}
	addStore(cmd, &store)
	cmd.Flags().StringArrayVar(&mounts, "mount", nil, "remove the cache mount `NAME` in all domains, as obx cache ls --mounts names it; repeatable")
	cmd.RegisterFlagCompletionFunc("mount", completeMounts)
	return cmd
}

// removeMounts removes each mount in all domains that have one of the name.
func removeMounts(cmd *cobra.Command, st *cas.Store, names []string) error {
	if len(names) == 0 {
		return nil
	}
	all, err := mountsOf(cmd, st)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(m cas.MountInfo) bool { return m.Name == name }) {
			return usage("obx cache ls --mounts lists what there is", "there is no cache mount %q", name)
		}
	}
	for _, m := range all {
		if !slices.Contains(names, m.Name) {
			continue
		}
		if err := st.RemoveMount(cmd.Context(), m.Domain, m.Name); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "removed cache mount %s of %s: %s\n", safe.Line(m.Name), safe.Line(m.Domain), progress.Bytes(m.Bytes))
	}
	return nil
}

func removeResults(cmd *cobra.Command, st *cas.Store, args []string) error {
	var recorded []string
	for info, err := range st.Results() {
		if err == nil { // what is broken is for obx cache prune
			recorded = append(recorded, info.Result.Key)
		}
	}
	var o cas.PruneOptions
	for _, arg := range args {
		key, err := onlyKey(recorded, arg)
		if err != nil {
			return err
		}
		o.Keys = append(o.Keys, key)
	}
	r, err := st.Prune(cmd.Context(), o)
	if err != nil {
		return err
	}
	warnOdd(cmd, r.Odd)
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "removed %d results, %d layers, %d blobs: %s\n", r.Results, r.Layers, r.Blobs, progress.Bytes(r.Bytes)); err != nil {
		return err
	}
	if len(r.Busy) > 0 {
		return fmt.Errorf("%s: %w by a build that runs", strings.Join(r.Busy, ", "), cas.ErrInUse)
	}
	return nil
}

// completeMounts completes names of cache mounts.
func completeMounts(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	flag, err := cmd.Flags().GetString(storeFlag)
	if err != nil {
		return nil, none
	}
	st, err := openExisting(io.Discard, flag)
	if err != nil {
		return nil, none
	}
	defer st.Close()
	all, _ := st.Mounts(cmd.Context())
	var names []string
	for _, m := range all {
		names = append(names, m.Name)
	}
	return names, none
}
