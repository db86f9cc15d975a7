package build

import (
	"time"

	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// A Kind says what an Event tells.
type Kind string

// What each kind of event carries, beside Time. Events of one stage come in the order of its operations; those of
// different stages interleave.
const (
	Planned   Kind = "plan"       // Plan: all keys are known
	StageOpen Kind = "stage"      // Stage: its base is known. Its log starts here with (from IMAGE)
	OpOpen    Kind = "op"         // Stage, Op, Workdir; Step if the operation is a step: a heading of the log
	Started   Kind = "start"      // Step: it has a job slot and runs now
	Waiting   Kind = "wait"       // Step: another process or stage builds the same key; its output is followed
	Output    Kind = "output"     // Step, Data: what it prints, or what a cached step printed when it ran
	Finished  Kind = "step"       // Step, Key, Cached, Where, Took
	StageDone Kind = "stage-done" // Stage; Key if its files were needed
	Pulling   Kind = "pull"       // Stage, Blob, Bytes, Total: bytes of one blob so far
	Pushing   Kind = "push"       // Bytes, Left: nothing runs any more, results are waited for that are on their way to a cache
	Warned    Kind = "warning"    // Message
	Failed    Kind = "failed"     // Step (nil if it is not a step's), Err
	Done      Kind = "done"       // Report; the last event, of failed builds too
)

// An Event is one thing that happened in a build. Fields that its Kind does not name are zero.
type Event struct {
	Kind    Kind
	Time    time.Time
	Plan    *keys.Plan
	Stage   *keys.Stage
	Step    *keys.Step
	Op      spec.Op
	Workdir string // of OpOpen: the directory before the operation
	Key     string // content key
	Cached  bool
	Where   string        // of a cached step: "store", or the name of a cache
	Took    time.Duration // how long the step took when it ran
	Data    []byte        // valid during the call only
	Blob    string
	Bytes   int64
	Total   int64 // -1 if unknown
	Left    int   // of Pushing: results that are not there yet; Bytes are those sent so far
	Message string
	Err     error
	Report  *Report
}

// A Report sums a build up.
type Report struct {
	Key         string // of the outermost stage's last step: what `Got:` prints
	Hits        int    // steps taken from the store or a cache
	Runs        int    // steps that ran
	PulledBytes int64  // compressed, base images included
	PushedBytes int64
	Took        time.Duration          // of the whole build
	Saved       time.Duration          // what cached steps took when they ran
	Results     map[*keys.Stage]string `json:"-"` // content key of each stage that was needed

	result *results.Result // of Key
}
