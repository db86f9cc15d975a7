// Package progress shows a build while it happens: to a person on a terminal, as a log, or to a program.
//
// A Printer gets the build's events and nothing else: it looks nothing up, and decides nothing. Events of one stage
// arrive in the order of its operations, those of several stages interleave.
package progress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/ocurrent/obx/cmd/obx/internal/safe"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// A Printer shows a build.
type Printer interface {
	// Event shows one event. It is called by one goroutine at a time.
	Event(build.Event)

	// Close ends the display, whatever was shown so far, and gives the first error of writing it. It may be
	// called again.
	Close() error
}

// Operation says in one line what a step does, for tables and displays.
func Operation(op spec.Op) string {
	switch op := op.(type) {
	case *spec.Run:
		return "run " + strings.Join(strings.Fields(op.Command), " ")
	case *spec.Copy:
		from := ""
		if op.From != "" {
			from = "from " + spec.Quote(op.From) + " "
		}
		src := make([]string, len(op.Src))
		for i, s := range op.Src {
			src[i] = spec.Quote(s)
		}
		return "copy " + from + strings.Join(src, " ") + " to " + spec.Quote(op.Dst)
	}
	return strings.Join(strings.Fields(spec.Heading(op)), " ")
}

// stepName is a step's number, with the name of its stage where there is one.
func stepName(s *keys.Step) string {
	if s.Stage.Name == "" {
		return fmt.Sprint(s.Number)
	}
	return fmt.Sprintf("%s %d", s.Stage.Name, s.Number)
}

// Duration prints a time for people: 0.4s, 12.0s, 3m05s, 2h10m.
func Duration(d time.Duration) string {
	switch d = d.Round(100 * time.Millisecond); {
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// Bytes prints a size for people: 12.3MB.
func Bytes(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// Summary says in a line what a build did: steps, bytes, time.
func Summary(r *build.Report) string {
	s := fmt.Sprintf("%s from cache, %d run", Count(r.Hits, "step"), r.Runs)
	if r.PulledBytes > 0 {
		s += ", " + Bytes(r.PulledBytes) + " pulled"
	}
	if r.PushedBytes > 0 {
		s += ", " + Bytes(r.PushedBytes) + " pushed"
	}
	s += ", " + Duration(r.Took)
	if r.Saved >= 100*time.Millisecond {
		s += " (saved " + Duration(r.Saved) + ")"
	}
	return s
}

// pushing says how much is not pushed yet when the steps are done.
func pushing(e build.Event) string {
	s := Count(e.Left, "result")
	if e.Bytes > 0 {
		s += ", " + Bytes(e.Bytes) + " sent so far"
	}
	return s
}

// pinned says which images the names in a plan's spec were resolved to, where the spec does not say it itself.
func pinned(p *keys.Plan) []string {
	var all []string
	for _, s := range p.Stages {
		if s.Base.Digest == "" || strings.Contains(s.Spec.From.Image, "@") {
			continue
		}
		text := fmt.Sprintf("%s is %s@%s", s.Spec.From.Image, s.Base.Ref, s.Base.Digest)
		if !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	return all
}

// Count prints a number of things.
func Count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// warn prints a warning as every command of obx does.
func warn(w io.Writer, e build.Event) {
	fmt.Fprintln(w, "obx: warning:", safe.Message(e.Message))
}
