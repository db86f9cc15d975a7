package repo

import (
	"errors"
	"fmt"
	"io"
	"net/http"
)

var errWrongRange = errors.New("the registry sent other bytes than asked for")

// resumingReader reads a blob of known size from a server, and goes on behind the last byte when a connection breaks. It reads no more
// than the size, and reports an end before it as an error. It does not verify the bytes.
type resumingReader struct {
	open  func(offset int64) (io.ReadCloser, error)
	pause func(tries int) error // before another try; its error is final
	size  int64

	offset   int64
	body     io.ReadCloser // nil without a connection
	began    int64         // offset of the connection's first byte
	failures int
	err      error // final
}

const (
	maxFailures   = 6       // of connections one after another: some 8 s of waiting
	enoughBetween = 1 << 20 // bytes of a connection after which it counts as a good one
)

func newResumingReader(size int64, open func(offset int64) (io.ReadCloser, error), pause func(tries int) error) *resumingReader {
	return &resumingReader{open: open, pause: pause, size: size}
}

func (r *resumingReader) Read(p []byte) (int, error) {
	for {
		switch {
		case r.err != nil:
			return 0, r.err
		case r.offset == r.size:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		if r.begin() != nil {
			continue
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.size-r.offset)])
		r.offset += int64(n)
		if n > 0 {
			return n, nil // an error comes again with the next Read
		}
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			r.disconnect()
			if r.offset-r.began >= enoughBetween {
				r.failures = 0
			}
			r.fail(err)
		}
	}
}

// begin makes a connection if there is none and bytes are wanted.
func (r *resumingReader) begin() error {
	for r.err == nil && r.body == nil && r.offset < r.size {
		if err := r.connect(); r.offset > 0 && isTransient(nil, err) {
			r.fail(err)
		} else if err != nil {
			r.err = err // more tries would not help, or have been made by the transport
		}
	}
	return r.err
}

// fail waits before the next try, or sets the final error.
func (r *resumingReader) fail(err error) {
	if r.failures++; r.failures > maxFailures {
		r.err = fmt.Errorf("the transfer broke %d times, at last at byte %d of %d: %w", r.failures, r.offset, r.size, err)
		return
	}
	if err := r.pause(r.failures - 1); err != nil {
		r.err = err
	}
}

func (r *resumingReader) connect() (err error) {
	r.body, err = r.open(r.offset)
	r.began = r.offset
	return err
}

func (r *resumingReader) disconnect() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}

func (r *resumingReader) Close() error {
	r.disconnect()
	r.err = http.ErrBodyReadAfterClose
	return nil
}
