package layers

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

const (
	teeBlock  = 256 << 10
	teeFirst  = 16 << 10 // the first one: most streams need no other, and to touch new memory is what is slow then
	teeBlocks = 16       // in flight: 4 MiB a tee
)

// A tee passes one stream to several readers, each in a goroutine of its own, so that decompressing, hashing and
// writing files use several processors. It holds teeBlocks blocks at most: the slowest reader sets the pace.
type tee struct {
	readers []*teeReader
	free    chan *teeBuf
	made    int // blocks
	cur     *teeBuf
	err     error // what readers see at the end; set before their channels are closed

	stop    chan struct{} // closed when a reader gives up
	once    sync.Once
	stopErr error
}

type teeBuf struct {
	data []byte
	refs atomic.Int32
}

func newTee(readers int) *tee {
	t := &tee{free: make(chan *teeBuf, teeBlocks), stop: make(chan struct{})}
	for range teeBlocks {
		t.free <- nil // allocated when first used: most streams are small
	}
	for range readers {
		t.readers = append(t.readers, &teeReader{t: t, in: make(chan *teeBuf, teeBlocks)})
	}
	return t
}

// Write waits while the readers are behind. It fails with a reader's error after that reader has given up.
func (t *tee) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		if t.cur == nil {
			select {
			case b := <-t.free:
				if b == nil {
					size := teeBlock
					if t.made == 0 {
						size = teeFirst
					}
					t.made++
					b = &teeBuf{data: make([]byte, 0, size)}
				}
				b.data = b.data[:0]
				t.cur = b
			case <-t.stop:
				return n, t.stopErr
			}
		}
		k := min(len(p), cap(t.cur.data)-len(t.cur.data))
		t.cur.data = append(t.cur.data, p[:k]...)
		n, p = n+k, p[k:]
		if len(t.cur.data) == cap(t.cur.data) {
			t.flush()
		}
	}
	return n, nil
}

// flush never waits: a reader's channel holds as many blocks as there are.
func (t *tee) flush() {
	if t.cur == nil {
		return
	}
	t.cur.refs.Store(int32(len(t.readers)))
	for _, r := range t.readers {
		r.in <- t.cur
	}
	t.cur = nil
}

// close ends the stream: readers get err after the last byte, io.EOF if it is nil.
func (t *tee) close(err error) {
	if err == nil {
		t.flush()
	}
	t.err = err
	for _, r := range t.readers {
		close(r.in)
	}
}

type teeReader struct {
	t    *tee
	in   chan *teeBuf
	cur  *teeBuf
	rest []byte
}

func (r *teeReader) next() error {
	if r.cur != nil {
		if r.cur.refs.Add(-1) == 0 {
			r.t.free <- r.cur
		}
		r.cur = nil
	}
	b, ok := <-r.in
	if !ok {
		if r.t.err != nil {
			return r.t.err
		}
		return io.EOF
	}
	r.cur, r.rest = b, b.data
	return nil
}

func (r *teeReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// WriteTo saves io.Copy its buffer.
func (r *teeReader) WriteTo(w io.Writer) (int64, error) {
	var n int64
	for {
		k, err := w.Write(r.rest)
		n, r.rest = n+int64(k), r.rest[k:]
		if err != nil {
			return n, err
		}
		if err := r.next(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

var errReaderGone = errors.New("the reader has stopped")

// close gives up: the writer's next wait fails with err. Every reader is closed, after its end too.
func (r *teeReader) close(err error) {
	if err == nil {
		err = errReaderGone
	}
	r.t.once.Do(func() {
		r.t.stopErr = err
		close(r.t.stop)
	})
}
