package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/registry"
)

func keyGenerateCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "generate [flags] NAME",
		Short: "Make a key pair: write the secret key to a file, print the public one",
		Long: `Make a key pair: write the secret key to a file that only its owner can read, and print the public key NAME:KEY, as
--trust takes it. NAME says whose key it is, as a machine or a team. A file that exists is left as it is.`,
		Example: "  obx key generate ci > ci.pub        the secret key is in ci.key",
		Args:    args(1, 1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			signer, err := registry.GenerateSigner(args[0])
			if err != nil {
				return usage("for example obx key generate ci", "%w", err)
			}
			if out == "" {
				if out = args[0] + ".key"; out != filepath.Base(out) {
					return usage("--out FILE says where", "%s is no name of a file", out)
				}
			}
			if err := writeNew(out, signer.Marshal()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), signer.Public())
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write the secret key to `FILE` (default: NAME.key)")
	cmd.MarkFlagFilename("out")
	return cmd
}

// writeNew writes a secret into a file that must not be there.
func writeNew(name string, data []byte) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return usage("--out FILE names another", "%s exists: it may be somebody's only key", name)
	}
	if err != nil {
		return usage("", "write the secret key: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write the secret key: %w", err), os.Remove(name))
	}
	return nil
}
