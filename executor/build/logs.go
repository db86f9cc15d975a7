package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
)

// DefaultLogLimit is how much of a step's output is kept and shown, in bytes.
const DefaultLogLimit = 100 << 20

// manyLogs is how many times the limit of one log the logs may have together that a run repeats, or a record brings.
// They come compressed: a few bytes of a cache could else become more than any disk, or any person's patience, has room for.
const manyLogs = 10

// A logLimit passes on the beginning of a log, and one line that says so where it ends it. It is the same for what a step
// prints now and for what is repeated: so a log that was cut is repeated as it was shown.
type logLimit struct {
	limit int64
	total *logTotal // nil: this log is the only one that counts
	size  int64
	full  bool
}

// A logTotal is how many bytes several logs may have together.
type logTotal struct {
	limit int64
	used  atomic.Int64
}

// limitLog begins to count a log, among those that have a limit in common.
func (b *Builder) limitLog(total *logTotal) *logLimit {
	return &logLimit{limit: b.logLimit(), total: total}
}

func (b *Builder) logLimit() int64 {
	if b.LogLimit <= 0 {
		return DefaultLogLimit
	}
	return min(b.LogLimit, math.MaxInt64/manyLogs)
}

func (b *Builder) newTotal() *logTotal { return &logTotal{limit: manyLogs * b.logLimit()} }

// take counts n bytes, and says how many of them there is room for.
func (t *logTotal) take(n int64) int64 {
	if t == nil {
		return n
	}
	return min(n, max(0, t.limit-t.used.Add(n)+n))
}

// pass gives what is shown of the next bytes.
func (l *logLimit) pass(p []byte) []byte {
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

// A limitedLog is a log as far as its limit lets it pass. No more is read than that.
type limitedLog struct {
	log   io.Reader
	limit *logLimit
	rest  []byte // passed, but not read yet
}

func (l *limitedLog) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		if l.limit.full {
			return 0, io.EOF
		}
		n, err := l.log.Read(p)
		l.rest = l.limit.pass(p[:n])
		if len(l.rest) == 0 {
			return 0, err
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// openLog reads a log that is in the store.
func (b *Builder) openLog(l registry.Log) (io.ReadCloser, error) {
	if l.Blob == "" {
		return io.NopCloser(bytes.NewReader(l.Data)), nil
	}
	return b.Store.Blob(l.Blob)
}

// Log writes the recorded log of a key.
func (b *Builder) Log(ctx context.Context, key string, w io.Writer) error {
	rec, err := b.Record(key)
	if err != nil {
		return err
	}
	log, err := b.openLog(registry.Log{Data: rec.Log, Blob: rec.LogBlob})
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", key, err)
	}
	defer log.Close()
	_, err = io.Copy(w, log)
	return err
}

// replay emits a log, but for what was seen of it already, as the output of a step.
func (r *run) replay(ctx context.Context, s *keys.Step, f fact, seen int64) {
	open := func() (io.ReadCloser, error) { return r.openLog(f.Log) }
	if f.cache != nil {
		open = func() (io.ReadCloser, error) { return f.cache.OpenLog(ctx, f.Log) }
	}
	log, err := open()
	if err != nil {
		r.warn(s.Stage, "the log of step %d is lost: %v", s.Number, err)
		return
	}
	defer log.Close()
	out := writerFunc(func(p []byte) { r.emit(Event{Kind: Output, Stage: s.Stage, Step: s, Data: p}) })
	limited := &limitedLog{log: log, limit: r.limitLog(r.repeated)}
	if _, err = io.CopyN(io.Discard, limited, seen); err == nil {
		_, err = io.Copy(out, limited)
	}
	if err != nil && err != io.EOF {
		r.warn(s.Stage, "read the log of step %d: %v", s.Number, err)
	}
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// keepLogs brings the logs of a record's steps into the store. Those of up to inline bytes stay in memory.
func (s *stage) keepLogs(ctx context.Context, c *registry.Cache, p *Pulled, inline int) error {
	total, kept := s.newTotal(), map[digest.Digest]registry.Log{}
	p.Steps, p.Others = slices.Clone(p.Steps), slices.Clone(p.Others)
	for _, list := range [][]registry.Step{p.Steps, p.Others} {
		for i, step := range slices.Backward(list) { // the result's own log comes first
			d := step.Log.Desc.Digest
			if d == "" {
				continue
			}
			l, ok := kept[d]
			if !ok {
				var err error
				if l, err = s.keepLog(ctx, c, step.Log, s.limitLog(total), inline); err != nil {
					return err
				}
				kept[d] = l
			}
			list[i].Log = l
		}
	}
	return nil
}

// keepLog brings a log into the store. One that is lost is empty from now on.
func (s *stage) keepLog(ctx context.Context, c *registry.Cache, l registry.Log, limit *logLimit, inline int) (registry.Log, error) {
	r, err := c.OpenLog(ctx, l)
	if err != nil {
		s.warn(s.Stage, "cache %s: a log is lost: %v", c.Name(), err)
		return registry.Log{}, ctx.Err()
	}
	defer r.Close()
	limited := &limitedLog{log: r, limit: limit}
	data, err := io.ReadAll(io.LimitReader(limited, int64(inline)+1))
	if err == nil && len(data) <= inline {
		return registry.Log{Data: data}, nil
	}
	w, werr := s.Store.NewBlob()
	if werr != nil {
		return registry.Log{}, fmt.Errorf("keep a log: %w", werr)
	}
	defer w.Close()
	if err == nil {
		_, err = io.Copy(w, io.MultiReader(bytes.NewReader(data), limited))
	}
	if err != nil {
		s.warn(s.Stage, "cache %s: a log is lost: %v", c.Name(), err)
		return registry.Log{}, ctx.Err()
	}
	d, _, err := w.Commit("")
	if err != nil {
		return registry.Log{}, fmt.Errorf("keep a log: %w", err)
	}
	return registry.Log{Blob: d}, nil
}

// follow shows what is written to a log until it is told to stop, and says how many bytes it has shown.
func (s *stage) follow(step *keys.Step, path string, stop <-chan struct{}) (seen int64) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var file *os.File
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	buf := make([]byte, 32<<10)
	var limit *logLimit
	fresh := false // nothing of the file was shown yet: it may be the empty one of this process, which has the lock now
	for {
		select {
		case <-stop:
			return seen
		case <-tick.C:
		}
		// Each holder of the lock has a file of its own.
		if info, err := os.Stat(path); err != nil {
			continue
		} else if file != nil {
			if old, err := file.Stat(); err != nil || !os.SameFile(info, old) {
				file.Close()
				file = nil
			}
		}
		if file == nil {
			var err error
			if file, err = os.Open(path); err != nil {
				continue
			}
			fresh = true
		}
		for {
			n, _ := file.Read(buf)
			if n == 0 {
				break
			}
			if fresh {
				seen, fresh, limit = 0, false, s.limitLog(nil)
			}
			if p := limit.pass(buf[:n]); len(p) > 0 {
				seen += int64(len(p))
				s.emit(Event{Kind: Output, Stage: s.Stage, Step: step, Data: p})
			}
		}
	}
}

// A stepLog shows what a step prints and keeps it in a file that other processes can follow.
type stepLog struct {
	stage *stage
	step  *keys.Step
	file  *os.File
	start time.Time
	limit *logLimit
	size  int64 // of the file
}

func (s *stage) newLog(step *keys.Step, path string) (*stepLog, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the log of step %d: %w", step.Number, err)
	}
	l := &stepLog{stage: s, step: step, file: file, start: time.Now(), limit: s.limitLog(nil)}
	return l, nil
}

// Write never fails because of the limit: a step that prints too much is no failure, its log just ends.
func (l *stepLog) Write(p []byte) (int, error) {
	n := len(p)
	if p = l.limit.pass(p); len(p) == 0 {
		return n, nil
	}
	if _, err := l.file.Write(p); err != nil {
		return 0, fmt.Errorf("write the log of step %d: %w", l.step.Number, err)
	}
	l.size += int64(len(p))
	l.stage.emit(Event{Kind: Output, Stage: l.stage.Stage, Step: l.step, Data: p})
	return n, nil
}

// finish gives the whole log: its bytes if it is small, else the blob that it was stored as.
func (l *stepLog) finish(st *cas.Store) ([]byte, digest.Digest, error) {
	if _, err := l.file.Seek(0, io.SeekStart); err != nil {
		return nil, "", fmt.Errorf("read the log of step %d: %w", l.step.Number, err)
	}
	if l.size <= inlineLog {
		data, err := io.ReadAll(l.file)
		return data, "", err
	}
	w, err := st.NewBlob()
	if err != nil {
		return nil, "", fmt.Errorf("keep the log of step %d: %w", l.step.Number, err)
	}
	defer w.Close()
	if _, err := io.Copy(w, l.file); err != nil {
		return nil, "", fmt.Errorf("keep the log of step %d: %w", l.step.Number, err)
	}
	d, _, err := w.Commit("")
	if err != nil {
		return nil, "", fmt.Errorf("keep the log of step %d: %w", l.step.Number, err)
	}
	return nil, d, nil
}
