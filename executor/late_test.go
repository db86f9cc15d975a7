package executor_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// A counted executor counts what is done with it.
type counted struct{ opened, prepared, closed atomic.Int32 }

func (*counted) Platform() ocispec.Platform { panic("nobody asks what is made") }

func (c *counted) Open(context.Context, []layers.Layer) (executor.Root, error) {
	c.opened.Add(1)
	return nil, nil
}

func (c *counted) Prepare() error   { c.prepared.Add(1); return nil }
func (c *counted) ReadsBytes() bool { return true }
func (c *counted) Close() error     { c.closed.Add(1); return nil }

func TestLateIsMadeOnce(t *testing.T) {
	var made atomic.Int32
	c := &counted{}
	linux := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	l := executor.NewLate(linux, func() (executor.Executor, error) { made.Add(1); return c, nil })
	if p := l.Platform(); p.OS != linux.OS || p.Architecture != linux.Architecture || made.Load() != 0 {
		t.Errorf("Platform is %v, with %d executors made", p, made.Load())
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := l.Prepare(); err != nil {
				t.Error(err)
			}
			if _, err := l.Open(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if !l.ReadsBytes() {
		t.Error("ReadsBytes is not the executor's")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if made.Load() != 1 || c.opened.Load() != 4 || c.prepared.Load() != 4 || c.closed.Load() != 1 {
		t.Errorf("made %d times, opened %d, prepared %d, closed %d", made.Load(), c.opened.Load(), c.prepared.Load(), c.closed.Load())
	}
}

func TestLateIsNotMadeToBeClosed(t *testing.T) {
	l := executor.NewLate(ocispec.Platform{}, func() (executor.Executor, error) { t.Error("it is made"); return nil, nil })
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestLateKeepsItsError(t *testing.T) {
	broken, made := errors.New("broken"), 0
	l := executor.NewLate(ocispec.Platform{}, func() (executor.Executor, error) { made++; return (*counted)(nil), broken })
	if err := l.Prepare(); err != broken {
		t.Errorf("Prepare: %v", err)
	}
	if _, err := l.Open(t.Context(), nil); err != broken {
		t.Errorf("Open: %v", err)
	}
	if l.ReadsBytes() {
		t.Error("ReadsBytes of an executor that is not there")
	}
	if err := l.Close(); err != nil || made != 1 {
		t.Errorf("Close: %v, made %d times", err, made)
	}
}
