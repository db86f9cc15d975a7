package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/executor/build/publish"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
)

func cacheImportCommand() *cobra.Command {
	var in inputs
	cmd := &cobra.Command{
		Use:   "import [flags] FROM [KEY...]",
		Short: "Copy results from a directory, a tar archive or a shared cache to the store",
		Long: `Copy results from a directory (oci:DIR), a tar archive (FILE.tar) or a shared cache to the store of this machine: all, or
those of KEYs (or the first 6 digits of them or more). What obx cache export wrote with them comes too: base images, and
what their names mean, so that obx run --offline needs no network.

With --trust, only results that are signed come in.`,
		Example: `  obx cache import oci:/media/usb/cache
  obx cache import cache.tar --trust "$(cat ci.pub)"`,
		Args: args(1, -1, "FROM and KEYs"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := areKeys(args[1:]); err != nil {
				return err
			}
			in.caches = []string{noCaches}
			p, err := in.openResults(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			repo, err := openRepo(args[0], p.builder.Images.Client)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeRepo(repo)) }()
			from := &registry.Cache{
				Repo: repo, Store: p.builder.Store, Domains: p.builder.Domains, Trust: in.trusted, Warn: p.notices.cacheWarning,
			}
			var ids []keys.ID // none: all
			if prefixes := args[1:]; len(prefixes) > 0 {
				if ids, err = pickKeys(cmd.Context(), from, prefixes); err != nil {
					return err
				}
			}
			r, err := p.builder.Import(cmd.Context(), from, ids)
			if err != nil {
				return err
			}
			if r == (publish.Report{}) {
				return noResults(repo)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "imported %s and %s from %s: %s\n",
				progress.Count(r.Results, "result"), progress.Count(r.Bases, "base image"), repo.Name(), progress.Bytes(r.Bytes))
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	addStore(cmd, &in.store)
	addDomain(cmd, &in.domain)
	in.addTrust(cmd)
	in.hosts.add(cmd)
	return cmd
}
