package main

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cmd/obx/internal/progress"
)

func cachePruneCommand() *cobra.Command {
	var (
		store string
		keep  string
		o     cas.PruneOptions
	)
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove results that are not used",
		Long: `Remove results that are not used, least recently used first. What a running build uses stays, whatever the flags say.
With several flags, a result goes if one of them says so; without any, only what is broken or belongs to no result.
What was used within the time of --older-than stays; of older things some stay a minute longer, as uses are noted to the
minute. --older-than also removes virtual machines and disks that were saved, --all those that were not used for an hour.`,
		Example: `  obx cache prune --keep-bytes 20GB
  obx cache prune --older-than 7d
  obx cache prune --all --dry-run`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.OlderThan < 0 {
				return usage("", "--older-than cannot be negative")
			}
			if keep != "" {
				if o.KeepBytes, err = units.RAMInBytes(keep); err != nil {
					return usage("for example --keep-bytes 20GB", "--keep-bytes %s: not a size", keep)
				}
				o.All = o.All || o.KeepBytes == 0
			}
			st, err := openExisting(cmd.ErrOrStderr(), store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, st.Close()) }()
			o.Derived = derivedOfMachines
			r, err := st.Prune(cmd.Context(), o)
			if err != nil {
				return err
			}
			warnOdd(cmd, r.Odd)
			verb := "removed"
			if o.DryRun {
				verb = "would remove"
			}
			more := ""
			if r.Derived > 0 {
				more = fmt.Sprintf(", %d saved machines and disks", r.Derived)
			}
			if r.Trash > 0 {
				more += fmt.Sprintf(", %s of trash", progress.Bytes(r.Trash))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %d results, %d layers, %d blobs, %d cache mounts%s: %s; %d results are in use\n",
				verb, r.Results, r.Layers, r.Blobs, r.Caches, more, progress.Bytes(r.Bytes), r.Kept)
			return err
		},
	}
	addStore(cmd, &store)
	f := cmd.Flags()
	f.StringVar(&keep, "keep-bytes", "", "remove until the store is no larger than `SIZE`, as 20GB")
	addAge(f, &o.OlderThan, "older-than", "remove what was not used for `TIME`, as 7d or 12h")
	f.BoolVar(&o.All, "all", false, "remove all results and cache mounts")
	f.BoolVar(&o.DryRun, "dry-run", false, "only say what would be removed")
	return cmd
}
