package progress

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// JSONHelp documents what JSON prints: it is the text of `obx help progress`, where users find it.
const JSONHelp = `With --progress json, obx prints one JSON object a line to standard output. Every object has "event" and "time"
(RFC 3339, UTC). Fields whose value would be empty, zero or false are left out, except in "done". Readers must ignore
events and fields that they do not know.

  plan     All keys are known. "stages", "steps": how many there are. "platform": os/arch[/variant].
  stage    The log of a stage begins. "stage": its name (none for the outermost), "image": as the spec has it,
           "ref", "digest": what that was resolved to, "key": of the base image.
  op       An operation of the spec, in order. "stage", "line": in the spec, "workdir", "op": as text; "step": its
           number, if it is a run or a copy. Steps are numbered from 1 in the whole build.
  start    A step runs now. "stage", "step".
  wait     Another obx builds the same step at this moment: its result is waited for. "stage", "step".
  output   What a step prints, or what a cached one printed when it ran. "stage", "step", and "text", or "base64" if
           the bytes are no UTF-8. Joined in order they give the output byte for byte.
  step     A step has its result. "stage", "step", "key"; "cached" and "where" ("store" or a cache), if it did not
           run now; "seconds": how long it took when it ran.
  stage-done  A stage is complete. "stage".
  pull     Bytes of a layer arrive. "stage", "blob": digest, "bytes": so far, "total": -1 if unknown. There are at
           most five a second of a blob, and one when it is complete.
  push     All that a step or output needs is done, and results are waited for that are on their way to a cache. "left":
           how many are not there yet, "bytes": sent so far.
  warning  "message". It is on standard error too.
  failed   Why the build fails. "message"; for a step: "stage", "step", "line", and "reason": exit, signal, timeout,
           oom, disk or inodes for its command ("exitCode", "signal"), else "start" or "copy".
  done     The last line, always. "hits": steps from the store or a cache, "runs": steps that ran, "pulledBytes",
           "pushedBytes", "seconds": of the build, "savedSeconds": what the cached steps took when they ran; "ok",
           and "key" of the result if so.

Example:

  {"event":"step","time":"2026-01-02T15:04:05.6Z","step":2,"key":"9c1f...","cached":true,"where":"store","seconds":1.5}`

// pullInterval is how long nothing is told of a blob after something was.
const pullInterval = 200 * time.Millisecond

// JSON prints one event a line, as JSONHelp says.
type JSON struct {
	enc      *json.Encoder
	warnings io.Writer
	partial  map[*keys.Step][]byte // the beginning of a character whose other bytes have not come yet
	pulls    map[string]time.Time  // when a blob's bytes were last told
	err      error
}

// NewJSON prints events to out, and warnings to warnings as well.
func NewJSON(out, warnings io.Writer) *JSON {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	return &JSON{enc: enc, warnings: warnings, partial: map[*keys.Step][]byte{}, pulls: map[string]time.Time{}}
}

// head is what all events have.
type head struct {
	Event string    `json:"event"`
	Time  time.Time `json:"time"`
	Stage string    `json:"stage,omitempty"`
	Step  int       `json:"step,omitempty"`
}

type jsonPlan struct {
	head
	Stages   int    `json:"stages"`
	Steps    int    `json:"steps"`
	Platform string `json:"platform"`
}

type jsonStage struct {
	head
	Image  string        `json:"image"`
	Ref    string        `json:"ref,omitempty"`
	Digest digest.Digest `json:"digest,omitempty"`
	Key    string        `json:"key"`
}

type jsonOp struct {
	head
	Line    int    `json:"line,omitempty"`
	Workdir string `json:"workdir"`
	Op      string `json:"op"`
}

type jsonOutput struct {
	head
	Text   string `json:"text,omitempty"`
	Base64 []byte `json:"base64,omitempty"`
}

type jsonStep struct {
	head
	Key     string  `json:"key"`
	Cached  bool    `json:"cached,omitempty"`
	Where   string  `json:"where,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

type jsonPull struct {
	head
	Blob  string `json:"blob"`
	Bytes int64  `json:"bytes"`
	Total int64  `json:"total"`
}

type jsonPush struct {
	head
	Left  int   `json:"left"`
	Bytes int64 `json:"bytes"`
}

type jsonWarning struct {
	head
	Message string `json:"message"`
}

type jsonFailed struct {
	head
	Line     int    `json:"line,omitempty"`
	Message  string `json:"message"`
	Reason   string `json:"reason,omitempty"`
	ExitCode int    `json:"exitCode,omitempty"`
	Signal   int    `json:"signal,omitempty"`
}

type jsonDone struct {
	head
	OK           bool    `json:"ok"`
	Key          string  `json:"key,omitempty"`
	Hits         int     `json:"hits"`
	Runs         int     `json:"runs"`
	PulledBytes  int64   `json:"pulledBytes"`
	PushedBytes  int64   `json:"pushedBytes"`
	Seconds      float64 `json:"seconds"`
	SavedSeconds float64 `json:"savedSeconds"`
}

func (j *JSON) Event(e build.Event) {
	h := head{Event: string(e.Kind), Time: e.Time.UTC()}
	if e.Step != nil {
		h.Step, h.Stage = e.Step.Number, e.Step.Stage.Name
	} else if e.Stage != nil {
		h.Stage = e.Stage.Name
	}
	switch e.Kind {
	case build.Planned:
		j.print(jsonPlan{head: h, Stages: len(e.Plan.Stages), Steps: len(e.Plan.Steps), Platform: platform(e.Plan)})
	case build.StageOpen:
		s := e.Stage
		j.print(jsonStage{head: h, Image: s.Spec.From.Image, Ref: s.Base.Ref, Digest: s.Base.Digest, Key: s.BaseKey.String()})
	case build.OpOpen:
		j.print(jsonOp{head: h, Line: e.Op.Position().Line, Workdir: e.Workdir, Op: spec.Heading(e.Op)})
	case build.Output:
		j.output(h, e.Step, e.Data)
	case build.Finished:
		j.flush(h, e.Step)
		j.print(jsonStep{head: h, Key: e.Key, Cached: e.Cached, Where: e.Where, Seconds: seconds(e.Took)})
	case build.Pulling:
		if last, ok := j.pulls[e.Blob]; ok && e.Bytes != e.Total && e.Time.Sub(last) < pullInterval {
			return
		}
		j.pulls[e.Blob] = e.Time
		j.print(jsonPull{head: h, Blob: e.Blob, Bytes: e.Bytes, Total: e.Total})
	case build.Pushing:
		j.print(jsonPush{head: h, Left: e.Left, Bytes: e.Bytes})
	case build.Warned:
		warn(j.warnings, e)
		j.print(jsonWarning{head: h, Message: e.Message})
	case build.Failed:
		j.failed(h, e)
	case build.Done:
		d := jsonDone{
			head: h, OK: e.Err == nil, Hits: e.Report.Hits, Runs: e.Report.Runs, PulledBytes: e.Report.PulledBytes,
			PushedBytes: e.Report.PushedBytes, Seconds: seconds(e.Report.Took), SavedSeconds: seconds(e.Report.Saved),
		}
		if d.OK {
			d.Key = e.Report.Key
		}
		j.print(d)
	default:
		j.print(h)
	}
}

// output prints what a step wrote. Chunks end anywhere: a character that is cut waits for its other bytes.
func (j *JSON) output(h head, s *keys.Step, data []byte) {
	b := append(j.partial[s], data...)
	n := len(b)
	for i := 1; i <= min(utf8.UTFMax-1, len(b)); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-i:]) {
				n -= i
			}
			break
		}
	}
	if n < len(b) {
		j.partial[s] = append([]byte(nil), b[n:]...)
	} else {
		delete(j.partial, s)
	}
	j.printOutput(h, b[:n])
}

// flush prints the bytes that wait in vain.
func (j *JSON) flush(h head, s *keys.Step) {
	if b := j.partial[s]; len(b) > 0 {
		delete(j.partial, s)
		h.Event = string(build.Output)
		j.printOutput(h, b)
	}
}

func (j *JSON) printOutput(h head, b []byte) {
	switch {
	case len(b) == 0:
	case utf8.Valid(b):
		j.print(jsonOutput{head: h, Text: string(b)})
	default:
		j.print(jsonOutput{head: h, Base64: b})
	}
}

func (j *JSON) failed(h head, e build.Event) {
	f := jsonFailed{head: h, Message: e.Err.Error()}
	if e.Step != nil {
		j.flush(h, e.Step)
		f.Line = e.Step.Op.Position().Line
		var exit *executor.ExitError
		var start *executor.StartError
		switch {
		case errors.As(e.Err, &exit):
			f.Reason, f.ExitCode, f.Signal = string(exit.Reason), exit.Code, exit.Signal
		case errors.As(e.Err, &start):
			f.Reason = "start"
		default:
			if _, ok := e.Step.Op.(*spec.Copy); ok {
				f.Reason = "copy"
			}
		}
	}
	j.print(f)
}

func (j *JSON) print(v any) {
	if err := j.enc.Encode(v); err != nil && j.err == nil {
		j.err = fmt.Errorf("write events: %w", err)
	}
}

func (j *JSON) Close() error { return j.err }

// seconds is a time with a precision that means something.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond)) / float64(time.Second)
}

func platform(p *keys.Plan) string {
	s := p.Platform.OS + "/" + p.Platform.Architecture
	if p.Platform.Variant != "" {
		s += "/" + p.Platform.Variant
	}
	return s
}
