package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/repo"
)

func cacheCopyCommand() *cobra.Command {
	var (
		h             hosts
		store, domain string
		all           bool
	)
	cmd := &cobra.Command{
		Use:   "copy [flags] FROM TO KEY...|--all",
		Short: "Copy results from one shared cache to another",
		Long: `Copy results from one shared cache to another: between registries, directories (oci:DIR) and tar archives (FILE.tar).
Results stay as they are, with dates and signatures. What is there already is not sent again; between repositories of
one registry, bytes are not sent at all.

KEY is the key of a result, or the first 6 digits of it or more. With --all, base images and what their names mean are
copied too. obx cache export takes results from the store of this machine, and obx cache import brings them there.`,
		Example: `  obx cache copy registry.example/cache oci:/media/usb --all
  obx cache copy old.example/cache new.example/cache 3f9a1c2b`,
		Args: args(2, -1, "FROM TO and KEYs"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			prefixes := args[2:]
			if err := checkKeys(prefixes, all); err != nil {
				return err
			}
			domains, err := parseDomains(domain)
			if err != nil {
				return err
			}
			if err := h.settle(); err != nil {
				return err
			}
			im := h.connections(cmd)
			from, err := openRepo(args[0], im)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeRepo(from)) }()
			to, err := openRepo(args[1], im)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeRepo(to)) }()
			// Bytes that are in the store need not be fetched.
			st, closeStore, err := openReadable(cmd.ErrOrStderr(), store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeStore()) }()
			warn := (&notices{stderr: cmd.ErrOrStderr()}).cacheWarning
			source := &registry.Cache{Repo: from, Store: st, Domains: domains, Trust: h.trusted, Warn: warn}
			target := &registry.Cache{Repo: to, Store: st, Domains: domains, Trust: h.trusted, Warn: warn}
			ids, err := pickKeys(cmd.Context(), source, prefixes)
			if err != nil {
				return err
			}
			r, err := registry.Copy(cmd.Context(), source, target, ids)
			if err != nil {
				return err
			}
			if len(r.Missing) > 0 && !all {
				return usage("", "%s has no result of %s that can be used", from.Name(), r.Missing[0])
			}
			what := progress.Count(r.Copied, "result")
			if all {
				bases, sent, err := images.CopyBases(cmd.Context(), st, from, target.Sender(), warn)
				if err != nil {
					return err
				}
				what += " and " + progress.Count(bases, "base image")
				r.Sent += sent
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "copied %s, %s\n", what, progress.Bytes(r.Sent))
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&all, "all", false, "copy all results of the domains")
	addDomain(cmd, &domain)
	h.addTrust(cmd)
	h.add(cmd)
	addStore(cmd, &store)
	return cmd
}

// checkKeys demands keys, or --all in their place.
func checkKeys(prefixes []string, all bool) error {
	switch {
	case all && len(prefixes) > 0:
		return usage("", "--all says which: no KEY with it")
	case !all && len(prefixes) == 0:
		return usage("name KEYs, or say --all", "nothing says what to take")
	}
	return areKeys(prefixes)
}

func areKeys(prefixes []string) error {
	for _, s := range prefixes {
		if err := checkKey(s); err != nil {
			return err
		}
	}
	return nil
}

// pickKeys finds the keys of results in a cache that begin so: all, without prefixes.
func pickKeys(ctx context.Context, c *registry.Cache, prefixes []string) ([]keys.ID, error) {
	var ids []keys.ID
	for _, s := range prefixes {
		if id, err := keys.ParseID(s); err == nil {
			ids = append(ids, id)
		}
	}
	if len(prefixes) > 0 && len(ids) == len(prefixes) {
		return ids, nil
	}
	all, err := c.Keys(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, noResults(c.Repo)
	}
	if len(prefixes) == 0 {
		return all, nil
	}
	ids = nil
	for _, s := range prefixes {
		var found []keys.ID
		for _, id := range all {
			if strings.HasPrefix(id.String(), s) {
				found = append(found, id)
			}
		}
		if len(found) != 1 {
			return nil, usage("", "%d keys in %s start with %s", len(found), c.Repo.Name(), s)
		}
		ids = append(ids, found[0])
	}
	return ids, nil
}

func noResults(repo repo.Repo) error {
	return usage("is its name right?", "%s has no results", repo.Name())
}
