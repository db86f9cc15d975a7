package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/cmd/obx/internal/safe"
)

func addProgress(cmd *cobra.Command, mode *string) {
	cmd.Flags().StringVar(mode, "progress", "auto", "show progress in a `MODE`: auto, tty, plain, json or quiet (see: obx help progress)")
	fixedValues(cmd, "progress", "auto", "tty", "plain", "json", "quiet")
}

// newRunPrinter makes the printer of a run. The log goes to standard error when standard output is an output's.
func newRunPrinter(cmd *cobra.Command, mode string, stdoutTaken bool) (progress.Printer, error) {
	out, err := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if stdoutTaken {
		if isTerminal(out) {
			return nil, usage("redirect it to a file or another command", "standard output is a terminal: an output cannot go there")
		}
		out = err
	}
	return newPrinter(out, err, mode)
}

func newPrinter(out, err io.Writer, mode string) (progress.Printer, error) {
	switch mode {
	case "plain":
		return newPlain(out, err), nil
	case "json":
		return progress.NewJSON(out, err), nil
	case "quiet":
		return progress.NewQuiet(out, err), nil
	case "tty":
		return progress.NewTTY(screen(err)), nil
	case "auto":
		if s := screen(err); s.Live {
			return progress.NewTTY(s), nil
		}
		return newPlain(out, err), nil
	}
	return nil, usage("modes are: auto, tty, plain, json, quiet", "--progress %s: unknown mode", mode)
}

// newPlain makes the printer of the plain log.
func newPlain(out, err io.Writer) progress.Printer {
	if !isTerminal(out) {
		return progress.NewPlain(out, err, nil)
	}
	size := screen(out).Size
	return progress.NewPlain(out, err, func() int { width, _ := size(); return width })
}

// newShellPrinter makes the printer of what runs before a shell, whose own standard output is. It is quieter.
func newShellPrinter(cmd *cobra.Command, mode string) (progress.Printer, error) {
	err := cmd.ErrOrStderr()
	if mode == "quiet" || mode == "auto" && !screen(err).Live {
		return progress.NewQuiet(io.Discard, err), nil
	}
	return newPrinter(err, err, mode)
}

// screen says what can be drawn on w. Colours obey NO_COLOR (no-color.org) and dumb terminals.
func screen(w io.Writer) progress.Screen {
	s := progress.Screen{Out: w, Size: func() (int, int) { return 80, 24 }}
	f, ok := terminal(w)
	if !ok {
		return s
	}
	s.Size = func() (int, int) {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 && height > 0 {
			return width, height
		}
		return 80, 24
	}
	if kind := os.Getenv("TERM"); kind != "dumb" && kind != "" {
		s.Out, s.Live, s.Color = f, true, os.Getenv("NO_COLOR") == ""
	}
	return s
}

// guarded is what commands write to instead of a terminal: it lets nothing pass that would do more than to stand there.
// Displays, which draw, are the only ones to write to the terminal itself.
func guarded(f *os.File) io.Writer {
	if _, ok := terminal(f); ok {
		return &safe.Writer{Terminal: f}
	}
	return f
}

// terminal gives the terminal that a command reads from or writes to, guarded or not.
func terminal(w any) (*os.File, bool) {
	if guard, ok := w.(*safe.Writer); ok {
		return guard.Terminal, true
	}
	f, ok := w.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

func isTerminal(w any) bool {
	_, ok := terminal(w)
	return ok
}

// progressTopic is `obx help progress`.
func progressTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "progress",
		Short: "What --progress prints",
		Long: `--progress says how a build is shown. All but tty go to standard output; tty, warnings and errors to standard error.

  auto   tty if standard error is a terminal, else plain
  tty    what runs now, and a line for each step that ended
  plain  OBuilder's log, in the order of the spec, with the logs of cached steps; on a terminal, each line that a step
         prints is marked, and control characters other than colours are shown as escapes
  json   one event a line
  quiet  the key of the result

When an --output goes to standard output, plain, json and quiet go to standard error.

` + progress.JSONHelp,
	}
}
