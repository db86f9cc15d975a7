package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/cmd/obx/internal/safe"
	"github.com/ocurrent/obx/executor/build/results"
)

func cacheLsCommand() *cobra.Command {
	var (
		store  string
		asJSON bool
		full   bool
		mounts bool
	)
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Short:   "List the recorded results, or the cache mounts, last used first",
		Example: "  obx cache ls | head\n  obx cache ls --mounts",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if mounts {
				return listMounts(cmd, store, asJSON)
			}
			rows, err := listStore(cmd, store)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, rows)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KEY\tDOMAIN\tCREATED\tLAST USED\tTOOK\tOPERATION")
			for _, r := range rows {
				key := r.Key
				if !full {
					key = key[:min(12, len(key))]
				}
				took := progress.Duration(time.Duration(r.Seconds * float64(time.Second)))
				op := safe.Line(strings.Join(strings.Fields(r.Op), " "))
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", key, r.Domain, timestamp(r.Created), timestamp(r.LastUsed), took, op)
			}
			return w.Flush()
		},
	}
	addStore(cmd, &store)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&mounts, "mounts", false, "list cache mounts; those of runs with --trust begin with + and a hash of its keys")
	cmd.Flags().BoolVar(&full, "full", false, "print whole keys")
	return cmd
}

// A resultRow is one result as `obx cache ls --json` prints it.
type resultRow struct {
	Key      string    `json:"key"`
	Domain   string    `json:"domain"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed"`
	Seconds  float64   `json:"seconds,omitempty"`
	Op       string    `json:"op"`
}

func listStore(cmd *cobra.Command, flag string) (rows []resultRow, err error) {
	st, err := openExisting(cmd.ErrOrStderr(), flag)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	return listResults(st)
}

// listResults lists the results of builds, last used first. Aliases, which only lead to results, and what else has its
// records in the store are left out.
func listResults(st *cas.Store) ([]resultRow, error) {
	rows := []resultRow{}
	for info, err := range st.Results() {
		if err != nil {
			return nil, fmt.Errorf("list results: %w", err)
		}
		rec, err := results.DecodeRecord(info.Result)
		if err != nil || rec.Op == "" {
			continue
		}
		rows = append(rows, resultRow{
			Key: info.Result.Key, Domain: info.Domain, Created: info.Result.Created, LastUsed: info.LastUsed,
			Seconds: rec.Took.Seconds(), Op: rec.Op,
		})
	}
	slices.SortStableFunc(rows, func(a, b resultRow) int { return b.LastUsed.Compare(a.LastUsed) })
	return rows, nil
}

// A mountRow is one cache mount as `obx cache ls --mounts --json` prints it.
type mountRow struct {
	Name     string    `json:"name"`
	Domain   string    `json:"domain"`
	LastUsed time.Time `json:"lastUsed"`
	Bytes    int64     `json:"bytes"`
}

// mountsOf lists the cache mounts of a store.
func mountsOf(cmd *cobra.Command, st *cas.Store) ([]cas.MountInfo, error) {
	all, odd := st.Mounts(cmd.Context())
	if err := context.Cause(cmd.Context()); err != nil { // the list is not whole
		return nil, err
	}
	warnOdd(cmd, odd)
	return all, nil
}

func listMounts(cmd *cobra.Command, store string, asJSON bool) (err error) {
	st, err := openExisting(cmd.ErrOrStderr(), store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	all, err := mountsOf(cmd, st)
	if err != nil {
		return err
	}
	rows := make([]mountRow, len(all))
	for i, m := range all {
		rows[i] = mountRow{m.Name, m.Domain, m.LastUsed, m.Bytes}
	}
	slices.SortStableFunc(rows, func(a, b mountRow) int { return b.LastUsed.Compare(a.LastUsed) })
	if asJSON {
		return printJSON(cmd, rows)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tDOMAIN\tLAST USED\tSIZE")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", safe.Line(r.Name), safe.Line(r.Domain), timestamp(r.LastUsed), progress.Bytes(r.Bytes))
	}
	return w.Flush()
}
