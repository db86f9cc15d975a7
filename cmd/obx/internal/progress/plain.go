package progress

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/ocurrent/obx/cmd/obx/internal/safe"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// Plain prints OBuilder's log. The log has the order of the spec, whatever runs at the same time: the first stage
// that is not finished streams, those behind it are spooled until their turn comes.
//
// On a terminal, a step's output is made harmless, and each line of it is marked: what a step prints cannot pass for what
// obx says. Elsewhere it is as the step printed it, byte for byte.
//
// When a build breaks off, the stages that did finish are printed, and then the one that failed; what others were
// doing is dropped.
type Plain struct {
	notes io.Writer
	width func() int // of the terminal; nil: the log goes elsewhere

	out    *bufio.Writer
	order  []*stageLog // as the log has them
	logs   map[*keys.Stage]*stageLog
	head   int                  // index in order of the stage that streams
	headed map[*keys.Stage]bool // whose `(build "NAME" …)` is printed
	failed *keys.Stage
	pushes bool // it is told that pushes are waited for
	mid    bool // the log's last line is not ended
	err    error
}

// A stageLog is where one stage's part of the log is.
type stageLog struct {
	stage   *keys.Stage
	opened  bool
	done    bool
	printed bool
	spool   spool
	step    safe.Escaper // of the step whose output comes now, on a terminal
}

// stepMark begins each line of a step's output on a terminal.
const stepMark = "  | "

// NewPlain prints the log to out. What the log has no place for goes to notes: warnings, and what the names of base
// images were resolved to. width says how wide the terminal is that out is; it is nil if out is none.
func NewPlain(out, notes io.Writer, width func() int) *Plain {
	return &Plain{out: bufio.NewWriter(out), notes: notes, width: width, logs: map[*keys.Stage]*stageLog{}, headed: map[*keys.Stage]bool{}}
}

func (p *Plain) Event(e build.Event) {
	switch e.Kind {
	case build.Planned:
		for _, s := range e.Plan.Stages {
			l := &stageLog{stage: s, step: safe.Escaper{Prefix: stepMark, Width: p.width}}
			p.order = append(p.order, l)
			p.logs[s] = l
		}
		for _, base := range pinned(e.Plan) {
			fmt.Fprintln(p.notes, "obx:", safe.Message(base))
		}
	case build.StageOpen:
		l := p.logs[e.Stage]
		l.opened = true
		if p.streams(l) {
			p.headings(l)
		}
		p.printf(l, "%s\n---> using %q from cache\n", spec.HeadingFrom(e.Stage.Spec.From), e.Stage.BaseKey)
	case build.OpOpen:
		p.printf(p.logs[e.Stage], "%s\n", spec.HeadingIn(e.Workdir, e.Op))
	case build.Output:
		l := p.logs[e.Step.Stage]
		if p.width == nil {
			p.write(l, e.Data)
		} else {
			p.write(l, l.step.Append(nil, e.Data))
		}
	case build.Finished:
		p.endOutput(e.Step.Stage)
		format := "---> saved as %q\n"
		if e.Cached {
			format = "---> using %q from cache\n"
		}
		p.printf(p.logs[e.Step.Stage], format, e.Key)
	case build.StageDone:
		l := p.logs[e.Stage]
		if l.stage.Name != "" {
			p.printf(l, "--> finished %s\n", quoted(l.stage.Name))
		}
		l.done = true
		p.advance()
	case build.Pushing:
		if !p.pushes {
			p.giveWay()
			fmt.Fprintln(p.notes, "obx: pushing "+pushing(e))
		}
		p.pushes = true
	case build.Warned:
		p.giveWay()
		warn(p.notes, e)
	case build.Failed:
		if e.Step != nil {
			p.failed = e.Step.Stage
			p.endOutput(p.failed)
		}
	case build.Done:
		p.finish(e)
	}
	p.note(p.out.Flush())
}

// endOutput ends a step's output, so that what obx says of the step begins a line.
func (p *Plain) endOutput(s *keys.Stage) {
	if l := p.logs[s]; p.width != nil && l != nil {
		p.write(l, l.step.End(nil))
	}
}

// giveWay ends a line that a step has begun on the terminal, and its colours: a note else stood in the step's line, and what the step
// prints next stood, without its mark, in a line of its own.
func (p *Plain) giveWay() {
	if p.head < len(p.order) {
		p.endOutput(p.order[p.head].stage)
		p.note(p.out.Flush())
	}
}

// quoted prints a name in quotes, as the log does even where the language would need none.
func quoted(name string) string {
	if q := spec.Quote(name); strings.HasPrefix(q, `"`) {
		return q
	}
	return `"` + name + `"`
}

// streams reports whether a stage's output goes straight to the log.
func (p *Plain) streams(l *stageLog) bool { return p.head < len(p.order) && p.order[p.head] == l }

// headings opens a stage in the log: `(build "NAME" …)` for each stage around it that is not open yet, and for itself.
func (p *Plain) headings(l *stageLog) {
	var open []*keys.Stage
	for s := l.stage; s != nil && s.Name != "" && !p.headed[s]; s = s.Parent {
		open = append(open, s)
	}
	for i := len(open) - 1; i >= 0; i-- {
		p.headed[open[i]] = true
		p.print(p.own([]byte("(build " + quoted(open[i].Name) + " …)\n")))
	}
	l.printed = true
}

// advance goes to the first stage that is not finished, and prints what that one has spooled.
func (p *Plain) advance() {
	for p.head < len(p.order) && p.order[p.head].done {
		p.head++
		if p.head < len(p.order) && p.order[p.head].opened {
			p.show(p.order[p.head])
		}
	}
}

// show prints what a stage has spooled.
func (p *Plain) show(l *stageLog) {
	if !l.printed {
		p.headings(l)
	}
	p.note(l.spool.drain(writerFunc(p.print)))
}

// finish prints what is still spooled when a build ends.
func (p *Plain) finish(e build.Event) {
	if e.Err == nil {
		for _, l := range p.order[min(p.head, len(p.order)):] {
			if l.opened {
				p.show(l)
			}
		}
		p.print([]byte(fmt.Sprintf("Got: %q\n", e.Report.Key)))
		return
	}
	for _, l := range p.order {
		if l.done {
			p.breakOff()
			p.show(l)
		}
	}
	if l := p.logs[p.failed]; l != nil && !l.printed {
		p.breakOff()
		p.show(l)
	}
	p.breakOff()
}

// breakOff ends the line of a log that ends in the middle of one, because something else follows.
func (p *Plain) breakOff() {
	if p.mid {
		p.print([]byte("\n"))
	}
}

// printf adds what obx says.
func (p *Plain) printf(l *stageLog, format string, args ...any) {
	p.write(l, p.own(fmt.Appendf(nil, format, args...)))
}

// own makes lines of obx fit to be shown: on a terminal, no row of one begins with what the spec has put into it.
func (p *Plain) own(lines []byte) []byte {
	if p.width == nil {
		return lines
	}
	e := safe.Escaper{Rest: "    ", Width: p.width}
	return e.Append(nil, lines)
}

// write adds to a stage's part of the log.
func (p *Plain) write(l *stageLog, b []byte) {
	if p.streams(l) {
		p.print(b)
		return
	}
	_, err := l.spool.Write(b)
	p.note(err)
}

// print adds to the log itself.
func (p *Plain) print(b []byte) (int, error) {
	if len(b) > 0 {
		p.mid = b[len(b)-1] != '\n'
	}
	n, err := p.out.Write(b)
	p.note(err)
	return n, err
}

func (p *Plain) note(err error) {
	if p.err == nil && err != nil {
		p.err = fmt.Errorf("write the log: %w", err)
	}
}

func (p *Plain) Close() error {
	p.note(p.out.Flush())
	for _, l := range p.order {
		l.spool.Close()
	}
	return p.err
}

// A writerFunc is a function as an io.Writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
