package main

import (
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/keys/spec"
)

func checkCommand() *cobra.Command {
	var (
		platform string
		reach    policyFlags
		config   string
	)
	cmd := &cobra.Command{
		Use:   "check [flags] SPEC...",
		Short: "Find the mistakes in specs",
		Long: `Find the mistakes in specs: all that obx run would find before it runs anything, but for what depends on files and
registries. Each is printed to standard error as FILE:LINE:COLUMN: message. With --untrusted or a policy, what a spec may
not reach is a mistake too (obx help policy). What is right, but most likely not meant, is a warning. obx help spec tells the
language.

Exit status: 0 no mistakes, 2 mistakes.`,
		Example:           "  obx check *.sexp",
		GroupID:           groupSpec,
		Args:              args(1, -1, "SPEC..."),
		ValidArgsFunction: completeSpecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePlatform(platform)
			if err != nil {
				return err
			}
			file, err := readConfig(config)
			if err != nil {
				return err
			}
			if err := reach.settle(file); err != nil {
				return err
			}
			var all spec.ErrorList
			for _, name := range args {
				name, text, err := readFile(cmd, name)
				if err != nil {
					return err
				}
				s, errs := spec.ParsePartial(name, text)
				all = append(all, checkSpec(s, errs, p.OS, reach.policy, nil)...)
				for _, w := range s.Warnings() {
					warn(cmd.ErrOrStderr(), w.Error())
				}
			}
			if len(all) > 0 {
				return all
			}
			return nil
		},
	}
	addPlatform(cmd, &platform)
	reach.add(cmd)
	addConfig(cmd, &config)
	return cmd
}
