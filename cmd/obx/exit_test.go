package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

func TestReport(t *testing.T) {
	step := &build.StepError{Step: &keys.Step{Number: 3}, Err: &executor.ExitError{Reason: executor.Exited, Code: 7}}
	mistake := &spec.Error{File: "f", Pos: spec.Pos{Line: 1, Col: 2}, Msg: "no"}
	for _, test := range []struct {
		err    error
		status int
		text   string
	}{
		{nil, 0, ""},
		{step, 1, "obx: step 3: exit status 7\n"},
		{failed("%w", step.Err), 1, "obx: exit status 7\n"},
		{silent(1), 1, ""},
		{usage("a hint", "a %s", "mistake"), 2, "obx: a mistake\n  a hint\n"},
		{usage("", "a mistake"), 2, "obx: a mistake\n"},
		{spec.ErrorList{mistake, mistake}, 2, "f:1:2: no\nf:1:2: no\n"},
		{fmt.Errorf("parse: %w", mistake), 2, "f:1:2: no\n"},
		{errors.New("disk full"), 3, "obx: disk full\n"},
		{errors.New("fetch: the server says \x1b[2J\u202e\nobx: all is well"), 3, "obx: fetch: the server says \\x1b[2J\\u202e\n  obx: all is well\n"},
		{usage("a \x1b[2Jhint", "no \x1b]0;x\a"), 2, "obx: no \\x1b]0;x\\x07\n  a \\x1b[2Jhint\n"},
		{&spec.Error{File: "f\x1b[2J", Pos: mistake.Pos, Msg: "no\nf:1:3: forged"}, 2, "f\\x1b[2J:1:2: no\n  f:1:3: forged\n"},
		{silent(3), 3, ""},
		{fmt.Errorf("%w: 3 steps saved", errInterrupted), 130, "obx: interrupted: 3 steps saved\n"},
		{context.Canceled, 130, "obx: context canceled\n"},
	} {
		var out bytes.Buffer
		if got := report(&out, test.err); got != test.status || out.String() != test.text {
			t.Errorf("%v: status %d, %q", test.err, got, &out)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"": "''", "plain-1.2_3/x:y=z@q": "plain-1.2_3/x:y=z@q", "two words": "'two words'", "it's": `'it'\''s'`, "$HOME": "'$HOME'", "~": "'~'", "é": "'é'",
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}
