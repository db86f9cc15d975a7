package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/registry"
)

func cacheGCCommand() *cobra.Command {
	var (
		h hosts
		o registry.GCOptions
	)
	cmd := &cobra.Command{
		Use:   "gc [flags] REPO --older-than TIME",
		Short: "Remove from a shared cache what nobody has used for a while",
		Long: `Remove from a shared cache what nobody has used for a while. What is used keeps all that it was made from. Builds may go
on meanwhile: what they lose, they make again.

Each build with --cache notes, at most once a day, that the last results it goes on from are used, those in its own store
too, if it may write: with --push never or --cache-readonly, use leaves no trace.

A registry frees the bytes of what was removed when its own garbage collection runs.
obx cache prune makes room in the store of this machine.`,
		Example: `  obx cache gc registry.example/cache --older-than 30d --dry-run
  obx cache gc oci:/mnt/cache --older-than 7d`,
		Args: args(1, 1, "one REPO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.OlderThan <= 0 {
				return usage("for example --older-than 30d", "--older-than is missing")
			}
			return h.withCache(cmd, args[0], func(c *registry.Cache) error {
				r, err := c.GC(cmd.Context(), o)
				if err != nil {
					return err
				}
				if r.Kept+r.Records+r.Images+r.Mounts == 0 {
					return noResults(c.Repo)
				}
				verb := "removed"
				if o.DryRun {
					verb = "would remove"
				}
				freed := ""
				if r.Bytes > 0 {
					freed = ", " + progress.Bytes(r.Bytes)
				}
				mounts := ""
				if r.Mounts > 0 {
					mounts = " and " + progress.Count(r.Mounts, "cache mount")
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s and %s%s%s; %s kept; %s\n",
					verb, progress.Count(r.Records, "record"), progress.Count(r.Images, "image"), mounts, freed, progress.Count(r.Kept, "result"), progress.Count(r.Requests, "request"))
				return err
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	addAge(f, &o.OlderThan, "older-than", "remove what was not used for `TIME`, as 30d or 12h")
	f.BoolVar(&o.DryRun, "dry-run", false, "only say what would be removed")
	h.add(cmd)
	return cmd
}

// withCache opens the cache that an argument names, for a command that works on it alone.
func (h *hosts) withCache(cmd *cobra.Command, ref string, work func(*registry.Cache) error) (err error) {
	if err := h.settle(); err != nil {
		return err
	}
	repo, err := openRepo(ref, h.connections(cmd))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRepo(repo)) }()
	return work(&registry.Cache{Repo: repo, Trust: h.trusted, Warn: (&notices{stderr: cmd.ErrOrStderr()}).cacheWarning})
}
