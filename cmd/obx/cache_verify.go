package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/safe"
	"github.com/ocurrent/obx/registry"
)

func cacheVerifyCommand() *cobra.Command {
	var (
		store string
		h     hosts
	)
	cmd := &cobra.Command{
		Use:   "verify [flags] [REPO]",
		Short: "Read the whole store, or a shared cache, and list what is broken",
		Long: `Read the whole store, or a shared cache, and list what is broken, a line each. Of a cache, every digest is checked, and
with --trust every signature. A build takes nothing that is broken: it makes it again.

Exit status: 0 all is well, 1 something is broken.`,
		Example: `  obx cache verify
  obx cache verify registry.example/cache --trust "$(cat ci.pub)"`,
		Args: args(0, 1, "at most one REPO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return verifyStore(cmd, store)
			}
			return h.withCache(cmd, args[0], func(c *registry.Cache) error { return verifyCache(cmd, c) })
		},
	}
	addStore(cmd, &store)
	h.addTrust(cmd)
	h.add(cmd)
	return cmd
}

func verifyStore(cmd *cobra.Command, store string) (err error) {
	st, err := openExisting(cmd.ErrOrStderr(), store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	bad := 0
	for p, err := range st.Verify(cmd.Context()) {
		if err != nil {
			return fmt.Errorf("verify the store: %w", err)
		}
		bad++
		fmt.Fprintf(cmd.OutOrStdout(), "%s\n", safe.Message(fmt.Sprintf("%s %s: %s", p.What, p.Path, p.Detail)))
	}
	return verified(cmd, bad)
}

func verifyCache(cmd *cobra.Command, c *registry.Cache) error {
	empty := true // as one whose name was mistyped
	for tag, err := range c.Repo.Tags(cmd.Context()) {
		if err != nil {
			return fmt.Errorf("verify %s: %w", c.Repo.Name(), err)
		}
		if empty = !registry.IsCacheTag(tag); !empty {
			break
		}
	}
	if empty {
		return noResults(c.Repo)
	}
	bad := 0
	for p, err := range c.Verify(cmd.Context()) {
		if err != nil {
			return fmt.Errorf("verify %s: %w", c.Repo.Name(), err)
		}
		if !p.Note {
			bad++
		}
		fmt.Fprintln(cmd.OutOrStdout(), safe.Message(p.String()))
	}
	return verified(cmd, bad)
}

func verified(cmd *cobra.Command, bad int) error {
	if bad > 0 {
		return silent(statusFailed)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), "no problems")
	return err
}
