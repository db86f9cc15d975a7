package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write man pages",
		Long:    "Write a man page for each command to DIR, which is made if missing.",
		Example: "  obx man /usr/local/share/man/man1",
		GroupID: groupOther,
		Args:    args(1, 1, "one DIR"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return usage("", "write man pages: %w", err)
			}
			if err := writeManPages(newRoot(nil), args[0]); err != nil {
				return fmt.Errorf("write man pages: %w", err)
			}
			return nil
		},
	}
}

func writeManPages(cmd *cobra.Command, dir string) error {
	for _, c := range withPages(cmd) {
		if err := writeManPages(c, dir); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, pageName(cmd)+".1"), []byte(manPage(cmd)), 0o644)
}

// withPages are the commands directly below one that have man pages.
func withPages(cmd *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(cmd.Commands()), func(c *cobra.Command) bool {
		return !c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand()
	})
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage is a command's help as a man page. The package for this, cobra/doc, would take texts for Markdown, which they are not, and costs each start
// of obx the tables of a Markdown parser.
func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	// The same program writes the same pages: they have the date of its source.
	date, _ := time.Parse(time.RFC3339, readVersion().Time)
	month := ""
	if !date.IsZero() {
		month = date.Format("Jan 2006")
	}
	fmt.Fprintf(&b, ".nh\n.TH %q 1 %q obx obx\n", strings.ToUpper(pageName(cmd)), month)
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", pageName(cmd), roff(cmd.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n\\fB%s\\fP\n", roff(cmd.UseLine()))
	about := cmd.Long
	if about == "" {
		about = cmd.Short
	}
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s\n", roff(about))
	cmd.InitDefaultHelpFlag()
	if cmd.HasAvailableLocalFlags() {
		b.WriteString(".SH OPTIONS\n")
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				writeOption(&b, f)
			}
		})
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, ".SH EXAMPLE\n.EX\n%s\n.EE\n", roff(cmd.Example))
	}
	var also []string
	if cmd.HasParent() {
		also = append(also, pageName(cmd.Parent())+"(1)")
	}
	for _, c := range withPages(cmd) {
		also = append(also, pageName(c)+"(1)")
	}
	fmt.Fprintf(&b, ".SH SEE ALSO\n%s\n", roff(strings.Join(also, ", ")))
	return b.String()
}

func writeOption(b *strings.Builder, f *pflag.Flag) {
	b.WriteString(".TP\n")
	if f.Shorthand != "" {
		fmt.Fprintf(b, "\\fB\\-%s\\fP, ", f.Shorthand)
	}
	value, text := pflag.UnquoteUsage(f)
	fmt.Fprintf(b, "\\fB\\-\\-%s\\fP", roff(f.Name))
	if value != "" {
		fmt.Fprintf(b, " \\fI%s\\fP", roff(value))
	}
	if !slices.Contains([]string{"", "0", "0s", "[]", "false"}, f.DefValue) {
		text += " (default " + f.DefValue + ")"
	}
	fmt.Fprintf(b, "\n%s\n", roff(text))
}

// roff is text for a man page. Of itself it fills paragraphs, and leaves lines alone that begin with a space, as all texts of obx want it.
func roff(text string) string {
	lines := strings.Split(strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
