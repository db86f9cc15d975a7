package progress

import (
	"fmt"
	"io"

	"github.com/ocurrent/obx/executor/build"
)

// Quiet prints the key of a build that succeeded, and nothing else.
type Quiet struct {
	out, warnings io.Writer
	err           error
}

// NewQuiet prints the key to out, and warnings to warnings.
func NewQuiet(out, warnings io.Writer) *Quiet { return &Quiet{out: out, warnings: warnings} }

func (q *Quiet) Event(e build.Event) {
	switch e.Kind {
	case build.Warned:
		warn(q.warnings, e)
	case build.Done:
		if e.Err == nil {
			_, q.err = fmt.Fprintln(q.out, e.Report.Key)
		}
	}
}

func (q *Quiet) Close() error { return q.err }
