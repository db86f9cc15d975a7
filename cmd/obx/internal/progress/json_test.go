package progress

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
)

// lines decodes what JSON printed.
func lines(t *testing.T, out *bytes.Buffer) []map[string]any {
	t.Helper()
	var all []map[string]any
	for s := bufio.NewScanner(out); s.Scan(); {
		var m map[string]any
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			t.Fatalf("%s: %v", s.Text(), err)
		}
		all = append(all, m)
	}
	return all
}

func TestJSON(t *testing.T) {
	r := record("dev", "")
	var out bytes.Buffer
	report := &build.Report{Key: "key-", Hits: 1, Runs: 1, PulledBytes: 5, Took: 1500e6, Saved: 250e6}
	err := show(NewJSON(&out, io.Discard), r.planned(),
		r.open("dev"), r.output("dev", "replayed\n"), r.finish("dev", true),
		build.Event{Kind: build.Pulling, Stage: r.stages[""], Blob: "sha256:1", Bytes: 5, Total: -1},
		r.open(""), r.start(""), r.output("", "<hé>\n"), r.finish("", false),
		build.Event{Kind: build.Pushing, Left: 2, Bytes: 7},
		build.Event{Kind: build.Done, Report: report})
	if err != nil {
		t.Fatal(err)
	}
	got := lines(t, &out)
	var kinds []string
	for _, m := range got {
		kinds = append(kinds, m["event"].(string))
		if _, ok := m["time"].(string); !ok {
			t.Errorf("no time: %v", m)
		}
		if !strings.Contains(JSONHelp, "\n  "+m["event"].(string)+" ") {
			t.Errorf("event %q is not documented", m["event"])
		}
		for field := range m {
			if !strings.Contains(JSONHelp, `"`+field+`"`) {
				t.Errorf("field %q of %q is not documented", field, m["event"])
			}
		}
	}
	if want := "plan stage op op output step stage-done pull stage op op start output step stage-done push done"; strings.Join(kinds, " ") != want {
		t.Errorf("got %v", kinds)
	}
	if m := got[5]; m["stage"] != "dev" || m["step"] != 1.0 || m["cached"] != true || m["where"] != "store" || m["key"] != "key-dev" {
		t.Errorf("step: %v", m)
	}
	if m := got[12]; m["text"] != "<hé>\n" {
		t.Errorf("output: %v", m)
	}
	last := got[len(got)-1]
	delete(last, "time")
	want := map[string]any{
		"event": "done", "ok": true, "key": "key-", "hits": 1.0, "runs": 1.0, "pulledBytes": 5.0, "pushedBytes": 0.0, "seconds": 1.5, "savedSeconds": 0.25,
	}
	for k, v := range want {
		if last[k] != v {
			t.Errorf("done: %s is %v instead of %v", k, last[k], v)
		}
	}
	if len(last) != len(want) {
		t.Errorf("done has %v", last)
	}
}

// A large blob arrives in many small pieces: not each is told.
func TestJSONPulls(t *testing.T) {
	r := record("")
	var out bytes.Buffer
	p := NewJSON(&out, io.Discard)
	start := time.Unix(1000, 0)
	for i := range 1001 {
		for _, blob := range []string{"a", "b"} {
			p.Event(build.Event{Kind: build.Pulling, Time: start.Add(time.Duration(i) * time.Millisecond), Stage: r.stages[""], Blob: blob, Bytes: int64(i), Total: 1000})
		}
	}
	got := lines(t, &out)
	if len(got) > 2*6 {
		t.Errorf("%d lines", len(got))
	}
	if last := got[len(got)-1]; last["bytes"] != 1000.0 || last["blob"] != "b" {
		t.Errorf("the last is %v", last)
	}
}

// Output survives byte for byte, however it is cut.
func TestJSONOutput(t *testing.T) {
	for _, text := range []string{"", "plain", "é→🙂 wide 中文\n", "\xff\xfe binary \x00", "half a character \xf0\x9f", "é\xc3", "\x80\x80\x80\x80"} {
		for size := 1; size <= len(text)+1; size++ {
			r := record("")
			var out bytes.Buffer
			p := NewJSON(&out, io.Discard)
			for rest := text; rest != ""; rest = rest[min(size, len(rest)):] {
				p.Event(r.output("", rest[:min(size, len(rest))]))
			}
			if err := show(p, r.finish("", false)); err != nil {
				t.Fatal(err)
			}
			var joined []byte
			for _, m := range lines(t, &out) {
				if s, ok := m["text"].(string); ok {
					joined = append(joined, s...)
				}
				if s, ok := m["base64"].(string); ok {
					b, err := base64.StdEncoding.DecodeString(s)
					if err != nil {
						t.Fatal(err)
					}
					joined = append(joined, b...)
				}
			}
			if string(joined) != text {
				t.Errorf("%q in chunks of %d: got %q", text, size, joined)
			}
		}
	}
}

func TestJSONFailed(t *testing.T) {
	r := record("")
	var out bytes.Buffer
	exit := &executor.ExitError{Reason: executor.Exited, Code: 3}
	show(NewJSON(&out, io.Discard), r.planned(), r.open(""), r.fail("", &build.StepError{Step: r.plan.Steps[0], Err: exit}))
	got := lines(t, &out)
	failed, done := got[len(got)-2], got[len(got)-1]
	if failed["event"] != "failed" || failed["step"] != 1.0 || failed["line"] != 7.0 || failed["reason"] != "exit" || failed["exitCode"] != 3.0 {
		t.Errorf("failed: %v", failed)
	}
	if done["event"] != "done" || done["ok"] != false || done["hits"] != 0.0 {
		t.Errorf("done: %v", done)
	}
}
