package progress

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ocurrent/obx/cmd/obx/internal/safe"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
)

const (
	redraw    = 100 * time.Millisecond // how often a person can use a new picture
	tailLines = 6                      // of a running step's output
	tailBytes = 64 << 10               // of a step's output, kept to be shown if it fails
)

// A Screen is the terminal that TTY draws on.
type Screen struct {
	Out   io.Writer
	Size  func() (width, height int) // asked before each picture, so that a resize needs no signal
	Color bool
	Live  bool // whether the cursor can be moved: else there are only lines, for each step that ends
}

// TTY shows what runs now at the bottom of a terminal, and above it a line for each step that ended, which scrolls
// away as any output does.
//
// A picture is one write: it hides the cursor, draws over the picture before, and shows the cursor again, below all.
// So the terminal is in order whenever obx ends, however it does.
type TTY struct {
	screen Screen
	now    func() time.Time
	stop   chan struct{}
	ticker sync.WaitGroup

	mu      sync.Mutex
	start   time.Time
	steps   int // of the plan
	cached  int
	ran     int
	running []*running
	pulls   []*pulling
	blobs   map[string]*pulling
	pushes  string       // what is said of pushes that are waited for
	pending bytes.Buffer // lines above the picture that are not written yet
	drawn   []int        // widths of the picture's lines
	ended   bool
	err     error
}

// A running step.
type running struct {
	step    *keys.Step
	start   time.Time
	waiting bool
	tail    []byte
	cut     bool // tail is not all
}

// A pulling blob.
type pulling struct {
	stage        *keys.Stage
	blob         string
	start        time.Time
	first        int64 // bytes that were there when the first event came
	bytes, total int64
}

// NewTTY starts a display. It draws until Close.
func NewTTY(s Screen) *TTY { return newTTY(s, time.Now) }

func newTTY(s Screen, now func() time.Time) *TTY {
	t := &TTY{screen: s, now: now, stop: make(chan struct{}), blobs: map[string]*pulling{}}
	t.start = t.now()
	if s.Live {
		t.ticker.Go(func() {
			tick := time.NewTicker(redraw)
			defer tick.Stop()
			for {
				select {
				case <-t.stop:
					return
				case <-tick.C:
					t.mu.Lock()
					t.draw(true)
					t.mu.Unlock()
				}
			}
		})
	}
	return t
}

func (t *TTY) Event(e build.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e.Kind {
	case build.Planned:
		t.steps = len(e.Plan.Steps)
		for _, base := range pinned(e.Plan) {
			t.rows(ownRows, t.paint(dim, "FROM   ")+" "+safe.Line(base))
		}
	case build.Waiting:
		t.begin(e.Step).waiting = true
	case build.Started:
		t.begin(e.Step).waiting = false
		t.pulled(e.Step.Stage)
	case build.Output:
		if r := t.find(e.Step); r != nil {
			r.write(e.Data)
		}
	case build.Finished:
		t.finished(e)
	case build.Pulling:
		t.pulling(e)
	case build.Pushing:
		t.pushes = pushing(e)
	case build.Warned:
		t.rows(ownRows, t.paint(yellow, "WARNING")+" "+safe.Message(e.Message)) // a carriage return hides nothing of it
	case build.Failed:
		t.failed(e)
	case build.Done:
		if e.Err == nil {
			t.line("%s %s  %s", t.paint(green, "BUILT  "), short(e.Report.Key), Summary(e.Report))
		}
	}
	if !t.screen.Live {
		t.draw(false)
	}
}

func (t *TTY) find(s *keys.Step) *running {
	for _, r := range t.running {
		if r.step == s {
			return r
		}
	}
	return nil
}

// begin notes that a step runs, or waits, from now on.
func (t *TTY) begin(s *keys.Step) *running {
	r := t.find(s)
	if r == nil {
		r = &running{step: s}
		t.running = append(t.running, r)
	}
	r.start = t.now()
	return r
}

func (t *TTY) end(s *keys.Step) *running {
	for i, r := range t.running {
		if r.step == s {
			t.running = append(t.running[:i:i], t.running[i+1:]...)
			return r
		}
	}
	return nil
}

func (r *running) write(p []byte) {
	r.tail = append(r.tail, p...)
	if len(r.tail) > 2*tailBytes {
		r.tail = append(r.tail[:0], r.tail[len(r.tail)-tailBytes:]...)
		r.cut = true
	}
}

// last gives the last lines of a step's output, fit to be shown.
func (r *running) last(n int) []string {
	lines := make([]string, 0, n)
	rest := bytes.TrimRight(r.tail, "\r\n")
	for len(rest) > 0 && len(lines) < n {
		i := bytes.LastIndexByte(rest, '\n')
		lines = append(lines, safe.Line(string(rest[i+1:])))
		rest = rest[:max(i, 0)]
	}
	slices.Reverse(lines)
	return lines
}

func (t *TTY) finished(e build.Event) {
	t.end(e.Step)
	word, took := t.paint(green, "DONE   "), Duration(e.Took)
	if e.Cached {
		t.cached++
		word, took = t.paint(cyan, "CACHED "), ""
	} else {
		t.ran++
	}
	t.stepLine(word, e.Step, took)
}

// failed shows what was stopped, and last the step that failed, if it is a step's failure.
func (t *TTY) failed(e build.Event) {
	r := t.end(e.Step)
	for _, other := range t.running {
		t.stepLine(t.paint(yellow, "STOPPED"), other.step, Duration(t.now().Sub(other.start)))
	}
	t.running = nil
	if e.Step == nil {
		return
	}
	if r == nil {
		t.stepLine(t.paint(red, "FAILED "), e.Step, "")
		return
	}
	t.stepLine(t.paint(red, "FAILED "), e.Step, Duration(t.now().Sub(r.start)))
	if r.cut {
		t.line("  | ... (the last %s; --progress plain shows all)", Bytes(int64(len(r.tail))))
	}
	for _, l := range r.last(bytes.Count(r.tail, []byte("\n")) + 1) {
		t.rows(safe.Escaper{Prefix: stepMark}, l)
	}
}

func (t *TTY) pulling(e build.Event) {
	p := t.blobs[e.Blob]
	if p == nil {
		p = &pulling{stage: e.Stage, blob: e.Blob, start: t.now(), first: e.Bytes}
		t.blobs[e.Blob] = p
		t.pulls = append(t.pulls, p)
	}
	p.bytes, p.total = e.Bytes, e.Total
}

// pulled notes that a stage has all that it needs.
func (t *TTY) pulled(s *keys.Stage) {
	t.pulls = slices.DeleteFunc(t.pulls, func(p *pulling) bool { return p.stage == s })
}

// ownRows has the rows of a line of obx, but the first, stand in from its beginning.
var ownRows = safe.Escaper{Rest: "    "}

// line adds a line above the picture.
func (t *TTY) line(format string, args ...any) {
	fmt.Fprintf(&t.pending, format+"\n", args...)
}

// rows adds a line from outside that may be wider than the terminal. Each row of it begins as e says.
func (t *TTY) rows(e safe.Escaper, line string) {
	e.Width = func() int { width, _ := t.screen.Size(); return width }
	t.pending.Write(e.Append(nil, []byte(line+"\n")))
}

// stepLine adds the line of a step that ended.
func (t *TTY) stepLine(word string, s *keys.Step, took string) {
	width, _ := t.screen.Size()
	fmt.Fprintf(&t.pending, "%s %s\n", word, stepColumns(s, took, width-8))
}

// stepColumns is a step's name and operation, with a time at the right end of the width.
func stepColumns(s *keys.Step, took string, width int) string {
	text := fmt.Sprintf("[%s] %s", safe.Line(stepName(s)), safe.Line(Operation(s.Op)))
	if took == "" {
		return fit(text, width-1)
	}
	room := width - len(took) - 2
	return pad(fit(text, room), room) + " " + took
}

// draw writes the lines that are pending and, if there is to be one, a new picture over the one before.
func (t *TTY) draw(picture bool) {
	width, height := t.screen.Size()
	var b bytes.Buffer
	if len(t.drawn) > 0 {
		// After a resize, lines of the old picture may have been broken.
		up := 0
		for _, w := range t.drawn {
			up += max(1, (w+width-1)/width)
		}
		fmt.Fprintf(&b, "\x1b[?25l\r\x1b[%dA\x1b[J", up)
	} else if t.pending.Len() == 0 && !picture {
		return
	}
	t.pending.WriteTo(&b)
	hidden := len(t.drawn) > 0
	t.drawn = t.drawn[:0]
	if picture && !t.ended {
		for _, l := range t.picture(width, height) {
			b.WriteString(l.painted + "\n")
			t.drawn = append(t.drawn, l.width)
		}
	}
	if hidden {
		b.WriteString("\x1b[?25h")
	}
	if _, err := t.screen.Out.Write(b.Bytes()); err != nil && t.err == nil {
		t.err = fmt.Errorf("draw progress: %w", err)
	}
}

// A pictureLine is one line of the picture: with its colours, and how wide it is without.
type pictureLine struct {
	painted string
	width   int
}

// picture is what happens now, in at most as many lines as the terminal has.
func (t *TTY) picture(width, height int) []pictureLine {
	if t.steps == 0 && len(t.pulls) == 0 {
		return nil
	}
	now := t.now()
	room := max(1, height-2) // one for the cursor, one for the line of totals
	var lines []pictureLine
	add := func(color, s string) {
		if len(lines) < room {
			s = fit(safe.Line(s), width-1)
			lines = append(lines, pictureLine{t.paint(color, s), columns(s)})
		}
	}
	for _, p := range t.active(now, room/2) {
		add("", p)
	}
	// Each step gets its line; what is left is shared out for their output.
	tail := 0
	if n := len(t.running); n > 0 {
		tail = min(tailLines, max(0, room-len(lines)-n)/n)
	}
	for _, r := range t.running {
		elapsed := Duration(now.Sub(r.start))
		if r.waiting {
			add("", "WAITING "+stepColumns(r.step, "another obx builds it  "+elapsed, width-8))
		} else {
			add("", "RUNNING "+stepColumns(r.step, elapsed, width-8))
		}
		for _, l := range r.last(tail) {
			add(dim, "  | "+l)
		}
	}
	if t.pushes != "" {
		add("", "PUSHING "+t.pushes)
	}
	room++
	add("", fmt.Sprintf("[+] %s  %d of %s: %d cached, %d run, %d running",
		Duration(now.Sub(t.start)), t.cached+t.ran, Count(t.steps, "step"), t.cached, t.ran, len(t.running)))
	return lines
}

// active lists layers that are being pulled, with bytes and rate.
func (t *TTY) active(now time.Time, room int) []string {
	var lines []string
	more := 0
	for _, p := range t.pulls {
		if p.total >= 0 && p.bytes >= p.total {
			continue
		}
		if len(lines) == room {
			more++
			continue
		}
		s := "PULLING " + short(p.blob) + "  " + Bytes(p.bytes)
		if p.total > 0 {
			s += " of " + Bytes(p.total)
		}
		if d := now.Sub(p.start).Seconds(); d >= 0.5 {
			s += "  " + Bytes(int64(float64(p.bytes-p.first)/d)) + "/s"
		}
		lines = append(lines, s)
	}
	if more > 0 {
		lines = append(lines, "PULLING "+Count(more, "layer")+" more")
	}
	return lines
}

// Close removes the picture and leaves the lines.
func (t *TTY) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return t.err
	}
	t.ended = true
	close(t.stop)
	t.draw(false)
	t.mu.Unlock()
	t.ticker.Wait()
	t.mu.Lock()
	return t.err
}

// Colours, as SGR parameters.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	dim    = "2"
)

func (t *TTY) paint(color, s string) string {
	if !t.screen.Color || color == "" || s == "" {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

// short is enough of a key or digest for people.
func short(s string) string {
	if _, hex, ok := strings.Cut(s, ":"); ok {
		s = hex
	}
	return s[:min(12, len(s))]
}
