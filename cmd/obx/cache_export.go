package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

func cacheExportCommand() *cobra.Command {
	var (
		in          inputs
		to          string
		all         bool
		since       time.Duration
		compression string
	)
	cmd := &cobra.Command{
		Use:   "export [flags] --to REPO SPEC [DIR] | KEY... | --all",
		Short: "Copy results from the store to a directory, a tar archive or another shared cache",
		Long: `Copy results from the store of this machine to a directory, a tar archive or another shared cache: those of the steps of
a SPEC, those of KEYs (or the first 6 digits of them or more), or all. Base images go with them, and what their names
mean. What is there already is not written again: a second export adds what is new.

Results of a SPEC, or of whole KEYs, that are in no store but in a --cache are taken from there.

Elsewhere, obx cache import brings all of it into a store: then obx run --offline needs no network. Or obx run --cache
uses it as it is.`,
		Example: `  obx cache export --to oci:/media/usb/cache build.sexp src
  obx cache export --to cache.tar --all --since 24h`,
		Args:              args(0, -1, "SPEC [DIR], KEYs, or --all"),
		ValidArgsFunction: completeSpecDir,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			isSpec := len(args) > 0 && (!isKey(args[0]) || isFile(args[0]))
			switch {
			case to == "":
				return usage("for example --to oci:DIR, or --to FILE.tar", "--to is missing")
			case since < 0:
				return usage("", "--since cannot be negative")
			case isSpec && all:
				return usage("", "--all says which: no SPEC with it")
			case isSpec && len(args) > 2:
				return usage("usage: "+cmd.UseLine(), "%s takes SPEC [DIR], KEYs, or --all", cmd.CommandPath())
			case !isSpec:
				if err := checkKeys(args, all); err != nil {
					return err
				}
			}
			if in.compression, err = layers.ParseCompression(compression); err != nil {
				return usage("for example --compression gzip:6", "--compression: %w", err)
			}
			var p *project
			if isSpec {
				p, err = in.open(cmd, args, false)
			} else {
				p, err = in.openResults(cmd)
			}
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			p.builder.Compression = in.compression
			repo, err := openRepo(to, p.builder.Images.Client)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeRepo(repo)) }()
			x := &export{project: p, cmd: cmd, since: since, to: &registry.Cache{
				Repo: repo, Store: p.builder.Store, Domains: p.builder.Domains, Trust: in.trusted, Signer: in.signer,
				Compression: in.compression, Warn: p.notices.cacheWarning,
			}}
			switch {
			case isSpec:
				err = x.spec(cmd.Context())
			case all:
				err = x.store(cmd.Context(), nil)
			default:
				err = x.keys(cmd.Context(), args)
			}
			if err != nil {
				return err
			}
			return x.print()
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&to, "to", "", "write to `REPO`: oci:DIR, FILE.tar or registry.example/cache")
	f.BoolVar(&all, "all", false, "export all results of the domains")
	addAge(f, &since, "since", "only results that are not older than `TIME`, as 7d or 12h")
	f.StringVar(&compression, "compression", "zstd", "pack layers by a `METHOD`: zstd, gzip or none, or one with its level as gzip:9")
	fixedValues(cmd, "compression", "zstd", "gzip", "none")
	in.sharing.add(cmd)
	addSignKey(cmd, &in.signKey)
	in.add(cmd)
	return cmd
}

// An export is one call of the command.
type export struct {
	*project
	cmd   *cobra.Command
	to    *registry.Cache
	since time.Duration

	results, bases int
	bytes          int64
}

// spec exports the results of a plan's steps.
func (x *export) spec(ctx context.Context) error {
	r, err := x.builder.Export(ctx, x.plan, nil, x.to, x.since)
	if err != nil {
		return err
	}
	x.results, x.bases, x.bytes = r.Results, r.Bases, r.Bytes
	var ids []keys.ID
	for _, s := range x.plan.Steps {
		ids = append(ids, s.Key)
	}
	if _, err := x.copy(ctx, ids); err != nil {
		return err
	}
	steps, _, err := x.builder.Status(ctx, x.plan)
	if err != nil {
		return err
	}
	lacking := 0
	for _, s := range steps {
		if s.Run {
			lacking++
		}
	}
	if lacking > 0 {
		x.notices.warn(fmt.Sprintf("%d of %d steps have no result to export: obx run %s makes them", lacking, len(steps), x.project.spec.File))
	}
	return nil
}

// keys exports results by their keys.
func (x *export) keys(ctx context.Context, prefixes []string) error {
	var here, elsewhere []keys.ID
	for _, s := range prefixes {
		key, err := findKey(x.builder.Store, x.to.Domains, s)
		if err != nil {
			return err
		}
		id, err := keys.ParseID(key)
		if err != nil {
			return err
		}
		switch _, err := x.builder.Record(key); {
		case err == nil:
			here = append(here, id)
		case errors.Is(err, cas.ErrNotFound):
			elsewhere = append(elsewhere, id)
		default:
			return err
		}
	}
	if len(here) > 0 {
		if err := x.store(ctx, here); err != nil {
			return err
		}
	}
	missing, err := x.copy(ctx, elsewhere)
	if err == nil && len(missing) > 0 {
		err = usage("obx cache ls lists what is in the store", "no result of %s can be found", missing[0])
	}
	return err
}

// store exports results of the store: all, without keys.
func (x *export) store(ctx context.Context, ids []keys.ID) error {
	r, err := x.builder.Export(ctx, nil, ids, x.to, x.since)
	x.results, x.bases, x.bytes = r.Results, r.Bases, r.Bytes
	return err
}

// copy takes results from the caches, each from the first that has it, and says which none has.
func (x *export) copy(ctx context.Context, ids []keys.ID) ([]keys.ID, error) {
	for _, c := range x.builder.Caches {
		if len(ids) == 0 {
			break
		}
		r, err := registry.Copy(ctx, c, x.to, ids)
		if err != nil {
			return nil, err
		}
		x.results += r.Copied
		x.bytes += r.Sent
		ids = r.Missing
	}
	return ids, nil
}

func (x *export) print() error {
	_, err := fmt.Fprintf(x.cmd.OutOrStdout(), "exported %s and %s to %s: %s\n",
		progress.Count(x.results, "result"), progress.Count(x.bases, "base image"), x.to.Repo.Name(), progress.Bytes(x.bytes))
	return err
}
