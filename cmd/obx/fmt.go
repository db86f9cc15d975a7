package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/keys/spec"
)

func fmtCommand() *cobra.Command {
	var write, check bool
	cmd := &cobra.Command{
		Use:   "fmt [flags] [SPEC...]",
		Short: "Print specs in the usual layout",
		Long: `Print specs in the usual layout. Comments are kept, and the keys of the steps stay the same. Without a SPEC, or
for -, standard input is formatted.

Exit status: 0 done, 1 a file is not formatted (--check), 2 a spec is wrong.`,
		Example: `  obx fmt build.sexp
  obx fmt -w *.sexp
  obx fmt --check *.sexp`,
		GroupID:           groupSpec,
		ValidArgsFunction: completeSpecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if write && check {
				return usage("", "-w and --check exclude each other")
			}
			if len(args) == 0 {
				args = []string{"-"}
			}
			var bad spec.ErrorList
			differs := false
			for _, arg := range args {
				if write && arg == "-" {
					return usage("", "-w cannot write to standard input")
				}
				name, text, err := readFile(cmd, arg)
				if err != nil {
					return err
				}
				s, err := spec.Parse(name, text)
				if err != nil {
					var list spec.ErrorList
					if !errors.As(err, &list) {
						return err
					}
					bad = append(bad, list...)
					continue
				}
				out := s.Format()
				switch same := bytes.Equal(out, text); {
				case check && !same:
					differs = true
					_, err = fmt.Fprintln(cmd.OutOrStdout(), name)
				case write && !same:
					err = replaceFile(name, out)
				case !check && !write:
					_, err = cmd.OutOrStdout().Write(out)
				}
				if err != nil {
					return err
				}
			}
			switch {
			case len(bad) > 0:
				return bad
			case differs:
				return silent(statusFailed)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&write, "write", "w", false, "write the result to the file, if it differs")
	f.BoolVar(&check, "check", false, "print the names of files that differ")
	return cmd
}

// replaceFile writes a file by a rename, keeping its mode. A link stays, and the file that it leads to is replaced.
func replaceFile(name string, text []byte) error {
	path, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Chmod(info.Mode().Perm()), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(f.Name(), path)
}
