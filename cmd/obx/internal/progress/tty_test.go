package progress

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rivo/uniseg"

	"github.com/ocurrent/obx/cmd/obx/internal/safe"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys/spec"
)

func FuzzFit(f *testing.F) {
	f.Add("red\t中 e\u0301")
	f.Fuzz(func(t *testing.T, line string) {
		s := safe.Line(line)
		for _, w := range []int{0, 1, 2, 7} {
			if got := uniseg.StringWidth(fit(s, w)); got > w {
				t.Fatalf("%q has %d columns, not %d", fit(s, w), got, w)
			}
		}
	})
}

func TestFit(t *testing.T) {
	for _, test := range []struct {
		in    string
		width int
		want  string
	}{
		{"short", 5, "short"}, {"longer", 5, "long…"}, {"中文字", 6, "中文字"}, {"中文字", 5, "中文…"}, {"中文字", 4, "中…"},
		{"e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"}, {"e\u0301e\u0301e\u0301", 2, "e\u0301…"}, {"x", 0, ""}, {"xy", 1, "…"},
	} {
		if got := fit(test.in, test.width); got != test.want {
			t.Errorf("fit(%q, %d) = %q, want %q", test.in, test.width, got, test.want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0s", 1234 * time.Millisecond: "1.2s", 59960 * time.Millisecond: "1m00s", 185 * time.Second: "3m05s", 130 * time.Minute: "2h10m",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %s instead of %s", d, got, want)
		}
	}
}

// A terminal shows what is written to it, as far as TTY's sequences go. Lines that are wider than it are broken.
type terminal struct {
	width, height int
	rows          []string
	row           int
	hidden        bool
	writes        int
}

var sequence = regexp.MustCompile(`\x1b\[(\??)(\d*)([A-Za-z])`)

func (t *terminal) Write(p []byte) (int, error) {
	t.writes++
	for s := string(p); s != ""; {
		if m := sequence.FindStringSubmatchIndex(s); m != nil && m[0] == 0 {
			n, _ := strconv.Atoi(s[m[4]:m[5]])
			switch s[m[6]:m[7]] {
			case "A":
				t.row = max(0, t.row-n)
			case "J":
				t.rows = t.rows[:min(t.row, len(t.rows))]
			case "h", "l":
				t.hidden = s[m[6]:m[7]] == "l"
			case "m":
			default:
				panic("unknown sequence " + s[:m[1]])
			}
			s = s[m[1]:]
			continue
		}
		i := strings.IndexAny(s, "\n\x1b\r")
		if i < 0 {
			i = len(s)
		}
		if i > 0 {
			t.put(s[:i])
		}
		if i < len(s) && s[i] == '\n' {
			t.row++
		}
		if i < len(s) && s[i] != '\x1b' {
			i++
		}
		s = s[i:]
	}
	return len(p), nil
}

func (t *terminal) put(s string) {
	for len(t.rows) <= t.row {
		t.rows = append(t.rows, "")
	}
	t.rows[t.row] += s
}

func (t *terminal) String() string { return strings.Join(t.rows, "\n") + "\n" }

func (t *terminal) check(tt *testing.T) {
	tt.Helper()
	if t.hidden {
		tt.Error("the cursor is hidden")
	}
	for _, r := range t.rows {
		if uniseg.StringWidth(r) >= t.width {
			tt.Errorf("%q is too wide", r)
		}
	}
}

// display makes a TTY whose pictures are drawn when the test says so.
func display(term *terminal, color bool) (*TTY, *time.Time) {
	now := time.Unix(1000, 0)
	t := newTTY(Screen{Out: term, Size: func() (int, int) { return term.width, term.height }, Color: color}, func() time.Time { return now })
	t.screen.Live = true // without its ticker
	return t, &now
}

func TestTTY(t *testing.T) {
	term := &terminal{width: 60, height: 20}
	d, now := display(term, true)
	r := record("dev", "")
	for _, e := range slices.Concat([]build.Event{r.planned()}, r.open("dev"), []build.Event{r.output("dev", "replayed\n")}, r.finish("dev", true)) {
		d.Event(e)
	}
	d.Event(build.Event{Kind: build.Pulling, Stage: r.stages[""], Blob: "sha256:0123456789abcdef", Bytes: 1e6, Total: 5e6})
	*now = now.Add(2 * time.Second)
	d.Event(build.Event{Kind: build.Pulling, Stage: r.stages[""], Blob: "sha256:0123456789abcdef", Bytes: 3e6, Total: 5e6})
	d.draw(true)
	term.check(t)
	want := `CACHED  [dev 1] run make dev
PULLING 0123456789ab  3MB of 5MB  1MB/s
[+] 2.0s  1 of 2 steps: 1 cached, 0 run, 0 running
`
	if got := term.String(); got != want {
		t.Errorf("while pulling:\n%s\nwant:\n%s", got, want)
	}

	for _, e := range append(r.open(""), r.start(""), r.output("", "one\ntwo\x1b[2J\nthree\n1%\r99%")) {
		d.Event(e)
	}
	*now = now.Add(1500 * time.Millisecond)
	d.draw(true)
	term.check(t)
	want = `CACHED  [dev 1] run make dev
RUNNING [2] run make                                   1.5s
  | one
  | two
  | three
  | 99%
[+] 3.5s  1 of 2 steps: 1 cached, 0 run, 1 running
`
	if got := term.String(); got != want {
		t.Errorf("while running:\n%s\nwant:\n%s", got, want)
	}

	// A terminal that got narrower has broken the lines of the old picture.
	d.draw(true)
	finished := r.finish("", false)
	finished[0].Took = 2 * time.Second
	for _, e := range finished {
		d.Event(e)
	}
	d.Event(build.Event{Kind: build.Pushing, Left: 2})
	d.Event(build.Event{Kind: build.Pushing, Left: 1, Bytes: 12e6})
	*now = now.Add(500 * time.Millisecond)
	d.draw(true)
	want = `CACHED  [dev 1] run make dev
DONE    [2] run make                                   2.0s
PUSHING 1 result, 12MB sent so far
[+] 4.0s  2 of 2 steps: 1 cached, 1 run, 0 running
`
	if got := term.String(); got != want {
		t.Errorf("while pushing:\n%s\nwant:\n%s", got, want)
	}
	d.Event(build.Event{Kind: build.Done, Report: &build.Report{Key: strings.Repeat("ab", 32), Hits: 1, Runs: 1, Took: 4 * time.Second, PulledBytes: 5e6, Saved: time.Minute}})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if term.hidden {
		t.Error("the cursor is hidden")
	}
	want = `CACHED  [dev 1] run make dev
DONE    [2] run make                                   2.0s
BUILT   abababababab  1 step from cache, 1 run, 5MB pulled, 4.0s (saved 1m00s)
`
	if got := term.String(); got != want {
		t.Errorf("at the end:\n%s\nwant:\n%s", got, want)
	}
}

// Names from outside act on the terminal as little as what steps print: the test's terminal knows few sequences.
func TestTTYHostile(t *testing.T) {
	term := &terminal{width: 60, height: 20}
	d, _ := display(term, true)
	r := record("evil\x1b[2J", "")
	r.plan.Steps[0].Op.(*spec.Run).Command = "make \x1b]0;x\a\r\u202e all"
	r.stages[""].Base.Ref, r.stages[""].Base.Digest = "host/\x1b[5n", "sha256:\x1b[6n"
	r.stages[""].Spec.From.Image = "\x1b[2Jx"
	name := "evil\x1b[2J"
	show(d, r.planned(), build.Event{Kind: build.Pulling, Stage: r.stages[""], Blob: "\x1b[2J", Bytes: 1, Total: 2}, r.start(name),
		build.Event{Kind: build.Warned, Message: "says \x1b[2J\nBUILT"}, r.fail("", errors.New("x")))
	if out := term.String(); strings.ContainsAny(out, "\x1b\a\r\u202e") || strings.Contains(out, "\nBUILT") {
		t.Errorf("the terminal shows %q", out)
	}
	d2, _ := display(term, true)
	d2.Event(r.planned())
	d2.Event(build.Event{Kind: build.Pulling, Stage: r.stages[""], Blob: "\x1b[2J", Bytes: 1, Total: 2})
	d2.draw(true)
	if out := term.String(); strings.Contains(out, "\x1b") || !strings.Contains(out, "PULLING") {
		t.Errorf("the terminal shows %q", out)
	}
	d2.Close()
}

// No row of a line that is wider than the terminal begins with what a step printed or a server said.
func TestTTYRows(t *testing.T) {
	forged := "BUILT   forged"
	family := strings.Repeat("\U0001f468\u200d\U0001f469\u200d\U0001f467", 9) + strings.Repeat("x", 2) // 60 columns where each is shown
	for _, text := range []string{strings.Repeat(" ", 56) + forged, family + forged} {
		term := &terminal{width: 60, height: 20}
		d, _ := display(term, true)
		r := record("")
		show(d, r.planned(), r.start(""), r.output("", text), build.Event{Kind: build.Warned, Message: "cache x says\r" + text[4:] + strings.Repeat(" ", 60) + forged},
			r.fail("", errors.New("x")))
		if out := term.String(); strings.Contains(out, "\nBUILT") || !strings.Contains(out, forged) || !strings.Contains(out, "cache x says") {
			t.Errorf("the terminal shows %q", out)
		}
	}
	if s := fit(family+forged, 59); strings.Contains(s, forged) {
		t.Errorf("a line of the picture is wider than its terminal: %q", s)
	}
}

// The picture never has more lines than the terminal, whatever runs.
func TestTTYSmall(t *testing.T) {
	names := []string{}
	for i := range 12 {
		names = append(names, fmt.Sprintf("stage%d", i))
	}
	for height := 1; height < 30; height++ {
		term := &terminal{width: 30, height: height}
		d, _ := display(term, false)
		r := record(append(names, "")...)
		d.Event(r.planned())
		for i, n := range names {
			d.Event(r.start(n))
			d.Event(r.output(n, strings.Repeat("a long line of wide characters 中文字 中文字\n", 10)))
			d.Event(build.Event{Kind: build.Pulling, Stage: r.stages[""], Blob: fmt.Sprint("sha256:", i), Bytes: 1, Total: 2})
		}
		d.draw(true)
		term.check(t)
		if n := len(term.rows); n > max(height, 3) {
			t.Errorf("%d lines on a terminal of %d", n, height)
		}
		d.Close()
	}
}

// After a resize the old picture is found again, though the terminal has broken its lines.
func TestTTYResize(t *testing.T) {
	term := &terminal{width: 60, height: 20}
	d, _ := display(term, false)
	r := record("")
	d.Event(r.planned())
	d.Event(r.start(""))
	d.draw(true)
	before := term.rows
	term.width, term.rows = 25, nil
	for _, row := range before {
		for uniseg.StringWidth(row) > 25 {
			term.rows, row = append(term.rows, row[:25]), row[25:]
		}
		term.rows = append(term.rows, row)
	}
	term.row = len(term.rows)
	d.draw(true)
	if got, want := term.String(), "RUNNING [1] run ma… 0.0s\n[+] 0.0s  0 of 1 step: …\n"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	d.Close()
}

func TestTTYFailure(t *testing.T) {
	term := &terminal{width: 70, height: 20}
	d, _ := display(term, true)
	r := record("dev", "")
	show(d, r.planned(), r.start("dev"), r.open(""), r.start(""), r.output("", "before\nafter\n"), r.fail("", errors.New("exit status 3")))
	want := `STOPPED [dev 1] run make dev                                     0.0s
FAILED  [2] run make                                             0.0s
  | before
  | after
`
	if got := term.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// On what is no terminal there are only lines, and no sequences at all.
func TestTTYNotLive(t *testing.T) {
	var out bytes.Buffer
	d := NewTTY(Screen{Out: &out, Size: func() (int, int) { return 80, 24 }})
	r := record("")
	if err := show(d, r.planned(), r.open(""), r.start(""), r.output("", "x\n"), r.finish("", false), done()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "\x1b") || !strings.HasPrefix(out.String(), "DONE    [1] run make") {
		t.Errorf("got %q", out.String())
	}
}

// However much a step prints, little of it is kept.
func TestTTYMemory(t *testing.T) {
	var out bytes.Buffer
	d := NewTTY(Screen{Out: &out, Size: func() (int, int) { return 80, 24 }})
	r := record("")
	d.Event(r.planned())
	d.Event(r.start(""))
	chunk := strings.Repeat("y\n", 5000)
	for range 1000 {
		d.Event(r.output("", chunk))
	}
	if n := cap(d.running[0].tail); n > 4*tailBytes {
		t.Errorf("%d bytes are kept", n)
	}
	d.Close()
}
