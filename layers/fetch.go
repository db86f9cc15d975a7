package layers

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
)

// A Progress is told of the bytes of layers as they arrive. A blob begins again at 0 if another source has to be tried. Calls come from several
// goroutines.
type Progress func(blob digest.Digest, done, total int64)

// fetchDomain is where the locks of layers that are fetched are.
const fetchDomain = "obx.layers"

// A SourceError is the fault of where a layer comes from: it cannot be opened, or read to its end.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return e.Err.Error() }
func (e *SourceError) Unwrap() error { return e.Err }

// Fetch makes sure that the store has a layer in a form, of which the blob and the diff id are known. What is there is not fetched, and several that want
// the same layer at a time, here or in other processes, fetch it once. open gives its bytes; nil: what is not in the store is cas.ErrNotFound.
func Fetch(ctx context.Context, st *cas.Store, l Layer, form Form, lim Limits, p Progress, open func() (io.ReadCloser, error)) (Layer, error) {
	if have, ok := l.in(st, form); ok {
		return have, nil
	}
	if _, ok := l.in(st, Bytes); !ok && open == nil {
		return l, fmt.Errorf("layer %s: %w", l.Blob.Digest, cas.ErrNotFound)
	}
	lock, err := st.Lock(ctx, fetchDomain, l.Blob.Digest.Encoded())
	if err != nil {
		return l, err
	}
	defer lock.Unlock()
	have, ok := l.in(st, form) // somebody else may have brought it
	if ok {
		return have, nil
	}
	if _, ok := l.in(st, Bytes); ok {
		if have, err = Unpack(ctx, st, have); err == nil || open == nil {
			return have, err
		}
	}
	if open == nil {
		return l, fmt.Errorf("layer %s: %w", l.Blob.Digest, cas.ErrNotFound)
	}
	rc, err := open()
	if err != nil {
		return l, &SourceError{err}
	}
	defer rc.Close()
	src := &source{r: rc}
	if p != nil {
		src.tell = func(done int64) { p(l.Blob.Digest, done, l.Blob.Size) }
	}
	have, err = Load(ctx, st, l.Blob, l.DiffID, src, form, lim)
	if err != nil && src.err != nil {
		err = &SourceError{err}
	}
	return have, err
}

// in gives a layer with its directory, if the store has that, and tells whether the store has it in a form.
func (l Layer) in(st *cas.Store, form Form) (Layer, bool) {
	if dir := DirName(l.DiffID); l.Dir == "" && st.HasLayer(dir) {
		l.Dir = dir
	}
	size, ok := st.HasBlob(l.Blob.Digest)
	return l, (form == Bytes || l.Dir != "") && (form == Files || ok && size == l.Blob.Size)
}

// A source remembers its error, which is not one of where the bytes go, and tells how many bytes were read.
type source struct {
	r    io.Reader
	err  error
	done int64
	tell func(done int64) // may be nil
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && err != io.EOF {
		s.err = err
	}
	if s.done += int64(n); n > 0 && s.tell != nil {
		s.tell(s.done)
	}
	return n, err
}
