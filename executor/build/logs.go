package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
)

// Log writes the recorded log of a key.
func (b *Builder) Log(ctx context.Context, key string, w io.Writer) error {
	rec, err := b.Record(key)
	if err != nil {
		return err
	}
	known := results.Step{Step: registry.Step{Log: registry.Log{Data: rec.Log, Blob: rec.LogBlob}}}
	log, err := b.places(nil).OpenLog(ctx, known)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", key, err)
	}
	defer log.Close()
	_, err = io.Copy(w, log)
	return err
}

// replay emits a log, but for what was seen of it already, as the output of a step.
func (r *run) replay(ctx context.Context, s *keys.Step, known results.Step, seen int64) {
	log, err := r.places.OpenLog(ctx, known)
	if err != nil {
		r.warn(s.Stage, "the log of step %d is lost: %v", s.Number, err)
		return
	}
	defer log.Close()
	out := writerFunc(func(p []byte) { r.emit(Event{Kind: Output, Stage: s.Stage, Step: s, Data: p}) })
	limited := r.repeated.Next().Reader(log)
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
	var limit *results.LogLimit
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
				seen, fresh, limit = 0, false, results.NewLogLimit(s.LogLimit)
			}
			if p := limit.Pass(buf[:n]); len(p) > 0 {
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
	limit *results.LogLimit
	size  int64 // of the file
}

func (s *stage) newLog(step *keys.Step, path string) (*stepLog, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the log of step %d: %w", step.Number, err)
	}
	l := &stepLog{stage: s, step: step, file: file, start: time.Now(), limit: results.NewLogLimit(s.LogLimit)}
	return l, nil
}

// Write never fails because of the limit: a step that prints too much is no failure, its log just ends.
func (l *stepLog) Write(p []byte) (int, error) {
	n := len(p)
	if p = l.limit.Pass(p); len(p) == 0 {
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
	if l.size <= results.InlineLog {
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
