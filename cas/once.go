package cas

import (
	"context"
	"io"
	"sync"
)

// A Once makes values once, however many goroutines ask for the same at a time. Processes share work by Store.Lock instead. The zero Once is ready to use.
type Once[K comparable, V any] struct {
	mu    sync.Mutex
	calls map[K]*call[V]
}

// A call is one value that is made, or was.
type call[V any] struct {
	done      chan struct{}
	value     V
	err       error
	cancelled bool // who made it gave up: the value may well be had
}

// Do gives the value of a key: that of the first call of do that succeeded. Those who ask meanwhile wait, and share a failure; who asks later tries again.
func (o *Once[K, V]) Do(ctx context.Context, key K, do func(context.Context) (V, error)) (V, error) {
	for {
		o.mu.Lock()
		c, ok := o.calls[key]
		if !ok {
			if o.calls == nil {
				o.calls = make(map[K]*call[V])
			}
			c = &call[V]{done: make(chan struct{})}
			o.calls[key] = c
		}
		o.mu.Unlock()
		if !ok {
			c.value, c.err = do(ctx)
			c.cancelled = ctx.Err() != nil
			if c.err != nil {
				o.mu.Lock()
				delete(o.calls, key)
				o.mu.Unlock()
			}
			close(c.done)
			return c.value, c.err
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			var none V
			return none, context.Cause(ctx)
		}
		if c.err == nil || !c.cancelled {
			return c.value, c.err
		}
		if ctx.Err() != nil {
			return c.value, context.Cause(ctx)
		}
	}
}

// Claims let one goroutine at a time do what concerns a key. The zero Claims are ready to use.
type Claims[K comparable] struct {
	mu   sync.Mutex
	busy map[K]chan struct{}
}

// Claim waits until nobody else has the key. The caller calls release.
func (c *Claims[K]) Claim(ctx context.Context, key K) (release func(), err error) {
	for {
		c.mu.Lock()
		busy, ok := c.busy[key]
		if !ok {
			if c.busy == nil {
				c.busy = make(map[K]chan struct{})
			}
			mine := make(chan struct{})
			c.busy[key] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.busy, key)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Reader gives the bytes of r until ctx ends: then its error.
func Reader(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}

// Marked gives the bytes of r, and its errors as mark makes them: so they can be told from those of where the bytes go.
func Marked(r io.Reader, mark func(error) error) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		if err != nil && err != io.EOF {
			err = mark(err)
		}
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
