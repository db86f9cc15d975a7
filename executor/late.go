package executor

import (
	"context"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/layers"
)

// A Late is an Executor that is made when it is first used, so that a build whose steps are all known needs none.
type Late struct {
	platform ocispec.Platform
	get      func() (Executor, error)

	mu   sync.Mutex
	made Executor // nil if it was not
}

// NewLate gives an Executor of a platform that is made by a call of new, or not at all. If that fails, each use gives its error.
func NewLate(p ocispec.Platform, new func() (Executor, error)) *Late {
	l := &Late{platform: p}
	l.get = sync.OnceValues(func() (Executor, error) {
		e, err := new()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.made = e
		return e, nil
	})
	return l
}

// Platform is as of Executor.
func (l *Late) Platform() ocispec.Platform { return l.platform }

// Open is as of Executor.
func (l *Late) Open(ctx context.Context, chain []layers.Layer) (Root, error) {
	e, err := l.get()
	if err != nil {
		return nil, err
	}
	return e.Open(ctx, chain)
}

// Prepare is as of Preparer.
func (l *Late) Prepare() error {
	e, err := l.get()
	if err != nil {
		return err
	}
	if p, ok := e.(Preparer); ok {
		return p.Prepare()
	}
	return nil
}

// ReadsBytes is as of BytesReader.
func (l *Late) ReadsBytes() bool {
	e, _ := l.get()
	r, ok := e.(BytesReader)
	return ok && r.ReadsBytes()
}

// Close ends the executor if it was made.
func (l *Late) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made == nil {
		return nil
	}
	return l.made.Close()
}
