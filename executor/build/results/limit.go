package results

import (
	"fmt"
	"io"
	"math"
	"slices"
	"sync/atomic"
)

// DefaultLogLimit is how much of a step's output is kept and shown, in bytes.
const DefaultLogLimit = 100 << 20

// manyLogs is how many times the limit of one log the logs may have together that a run repeats, or a record brings.
// They come compressed: a few bytes of a cache could else become more than any disk, or any person's patience, has room for.
const manyLogs = 10

// A LogLimit passes on the beginning of a log, and one line that says so where it ends it. It is the same for what a step
// prints now and for what is repeated: so a log that was cut is repeated as it was shown.
type LogLimit struct {
	limit int64
	total *LogTotal // nil: this log is the only one that counts
	size  int64
	full  bool
}

// NewLogLimit begins to count a log. 0 bytes are the default.
func NewLogLimit(bytes int64) *LogLimit {
	if bytes <= 0 {
		bytes = DefaultLogLimit
	}
	return &LogLimit{limit: min(bytes, math.MaxInt64/manyLogs)}
}

// A LogTotal is how many bytes several logs may have together.
type LogTotal struct {
	each, limit int64
	used        atomic.Int64
}

// NewLogTotal begins to count logs, of which each has the limit of NewLogLimit.
func NewLogTotal(bytes int64) *LogTotal {
	each := NewLogLimit(bytes).limit
	return &LogTotal{each: each, limit: manyLogs * each}
}

// Next begins to count the next log.
func (t *LogTotal) Next() *LogLimit { return &LogLimit{limit: t.each, total: t} }

// take counts n bytes, and says how many of them there is room for.
func (t *LogTotal) take(n int64) int64 {
	if t == nil {
		return n
	}
	return min(n, max(0, t.limit-t.used.Add(n)+n))
}

// Pass gives what is shown of the next bytes.
func (l *LogLimit) Pass(p []byte) []byte {
	if l.full {
		return nil
	}
	n := min(int64(len(p)), l.limit-l.size)
	line := fmt.Sprintf("\n[obx: this log is over its limit of %d bytes; the rest is dropped]\n", l.limit)
	if room := l.total.take(n); room < n {
		n, line = room, fmt.Sprintf("\n[obx: the logs of earlier runs are over their limit of %d bytes in all; the rest is dropped]\n", l.total.limit)
	}
	l.size += n
	if n == int64(len(p)) {
		return p
	}
	l.full = true
	return append(slices.Clip(p[:n]), line...)
}

// Reader gives a log as far as its limit lets it pass. No more is read than that.
func (l *LogLimit) Reader(log io.Reader) io.Reader { return &limitedLog{log: log, limit: l} }

type limitedLog struct {
	log   io.Reader
	limit *LogLimit
	rest  []byte // passed, but not read yet
}

func (l *limitedLog) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		if l.limit.full {
			return 0, io.EOF
		}
		n, err := l.log.Read(p)
		l.rest = l.limit.Pass(p[:n])
		if len(l.rest) == 0 {
			return 0, err
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}
