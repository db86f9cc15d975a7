package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
)

func cacheDfCommand() *cobra.Command {
	var (
		store  string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "df [flags]",
		Short: "Show how much room the store takes, and for what",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			st, err := openExisting(cmd.ErrOrStderr(), store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, st.Close()) }()
			u, err := st.Usage(cmd.Context(), machinesDir)
			if err != nil {
				return err
			}
			warnOdd(cmd, u.Odd)
			total := u.Blobs + u.Layers + u.Caches + u.Kept + u.Trash + u.Other
			if asJSON {
				return printJSON(cmd, struct {
					Store    string `json:"store"`
					Results  int    `json:"results"`
					Layers   int64  `json:"layerBytes"`
					Blobs    int64  `json:"blobBytes"`
					Caches   int64  `json:"cacheBytes"`
					Machines int64  `json:"machineBytes"`
					Trash    int64  `json:"trashBytes"`
					Other    int64  `json:"otherBytes"`
					Total    int64  `json:"totalBytes"`
				}{st.Dir(), u.Results, u.Layers, u.Blobs, u.Caches, u.Kept, u.Trash, u.Other, total})
			}
			w := cmd.OutOrStdout()
			for _, row := range []struct {
				what  string
				bytes int64
			}{{"layers", u.Layers}, {"packed layers and logs", u.Blobs}, {"cache mounts", u.Caches}, {"virtual machines", u.Kept}, {"trash, being deleted", u.Trash}, {"other", u.Other}, {"total", total}} {
				fmt.Fprintf(w, "%-24s%10s\n", row.what, progress.Bytes(row.bytes))
			}
			_, err = fmt.Fprintf(w, "%d results in %s\n", u.Results, st.Dir())
			return err
		},
	}
	addStore(cmd, &store)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
