package layers

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"time"
)

// A logged is a line of the log: an entry, or that something was moved.
type logged struct {
	Header *tar.Header // nil if something was moved
	At     string      // the file that the entry has made, or what was moved
	Kept   int         // to there, if not 0
}

// append writes a line: numbers as varints, and texts, which may be any bytes, after their lengths.
func (e *logged) append(b []byte) []byte {
	b = appendText(b, e.At)
	b = binary.AppendVarint(b, int64(e.Kept))
	if e.Kept != 0 {
		return b
	}
	h := e.Header
	b = appendText(appendText(append(b, h.Typeflag), h.Name), h.Linkname)
	for _, n := range []int64{
		h.Size, h.Mode, int64(h.Uid), int64(h.Gid), h.ModTime.Unix(), int64(h.ModTime.Nanosecond()), h.Devmajor, h.Devminor, int64(len(h.PAXRecords)),
	} {
		b = binary.AppendVarint(b, n)
	}
	for name, value := range h.PAXRecords {
		b = appendText(appendText(b, name), value)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendVarint(b, int64(len(s))), s...)
}

var errSequence = errors.New("the layer's sequence of entries is lost or damaged: obx cache rm removes the result that has it")

// A logReader reads lines. Once one is damaged, all that follows is zero.
type logReader struct {
	rest []byte
	bad  bool
}

func (s *logReader) line() (logged, error) {
	e := logged{At: s.text(), Kept: int(s.number())}
	if e.Kept == 0 {
		h := &tar.Header{Typeflag: s.byte(), Name: s.text(), Linkname: s.text()}
		h.Size, h.Mode, h.Uid, h.Gid = s.number(), s.number(), int(s.number()), int(s.number())
		h.ModTime = time.Unix(s.number(), s.number())
		h.Devmajor, h.Devminor = s.number(), s.number()
		if n := s.number(); n > 0 {
			h.PAXRecords = map[string]string{}
			for ; n > 0 && !s.bad; n-- {
				name := s.text()
				h.PAXRecords[name] = s.text()
			}
		}
		e.Header = h
	}
	if s.bad {
		return logged{}, errSequence
	}
	return e, nil
}

func (s *logReader) number() int64 {
	n, size := binary.Varint(s.rest)
	if size <= 0 {
		s.bad, s.rest = true, nil
		return 0
	}
	s.rest = s.rest[size:]
	return n
}

func (s *logReader) byte() byte {
	if b := s.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (s *logReader) text() string { return string(s.take(s.number())) }

func (s *logReader) take(n int64) []byte {
	if n < 0 || n > int64(len(s.rest)) {
		s.bad, s.rest = true, nil
		return nil
	}
	b := s.rest[:n]
	s.rest = s.rest[n:]
	return b
}
