package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	big := strings.Repeat("0123456789", 100_000)
	for _, content := range []string{"x", "", big, "y"} {
		if err := Write(&b, KindOutput, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := (FrameWriter{&b, KindTar}).Write([]byte(big)); err != nil {
		t.Fatal(err)
	}
	r := NewReader(iotest.HalfReader(&b))
	for _, want := range []string{"x", "", big, "y"} {
		k, got, err := r.Next()
		if err != nil || k != KindOutput || string(got) != want {
			t.Fatalf("got %q of %d bytes, %v", k, len(got), err)
		}
	}
	var all []byte
	for {
		k, got, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || k != KindTar {
			t.Fatalf("%q, %v", k, err)
		}
		all = append(all, got...)
	}
	if string(all) != big {
		t.Errorf("%d bytes came of %d", len(all), len(big))
	}
	if err := Write(io.Discard, KindOutput, make([]byte, MaxFrame+1)); err == nil {
		t.Error("a frame that is too long is written")
	}
	for _, bad := range []string{"O\xff\xff\xff\xff", "O\x05\x00\x00\x00ab", "O\x05"} {
		if _, _, err := NewReader(strings.NewReader(bad)).Next(); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("O\x02\x00\x00\x00abR\x00\x00\x00\x00"))
	f.Add([]byte("T\xff\xff\xff\x03x"))
	f.Add([]byte("T\x01\x00\x00\x00xT\x00\x00\x00\x00Q\x02\x00\x00\x00{}"))
	f.Add([]byte("T\x01\x00\x00\x00xQ\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What is read is what was written, up to the first thing that is no frame.
		var again, tar bytes.Buffer
		ended := false // the tar that may begin here
		for r := NewReader(bytes.NewReader(b)); ; {
			k, content, err := r.Next()
			if err != nil {
				if errors.Is(err, io.EOF) != (again.Len() == len(b)) {
					t.Fatalf("after %d of %d bytes: %v", again.Len(), len(b), err)
				}
				break
			}
			if err := Write(&again, k, content); err != nil {
				t.Fatal(err)
			}
			if ended = ended || k != KindTar || len(content) == 0; !ended {
				tar.Write(content)
			}
		}
		if !bytes.HasPrefix(b, again.Bytes()) {
			t.Fatalf("%x is read of %x", again.Bytes(), b)
		}
		// The frames of a tar are read as one stream, which ends well only with the empty frame.
		got, err := io.ReadAll(NewTarReader(NewReader(bytes.NewReader(b))))
		if !bytes.Equal(got, tar.Bytes()) {
			t.Fatalf("the tar is %x, want %x (%v)", got, tar.Bytes(), err)
		}
	})
}

// The tar that comes in frames ends where it ends, and what follows it is left.
func TestTarReader(t *testing.T) {
	var b bytes.Buffer
	for _, f := range []struct {
		kind    Kind
		content string
	}{{KindTar, "one "}, {KindTar, "two"}, {KindTar, ""}, {KindRequest, "next"}, {KindTar, "x"}, {KindRequest, "in between"}} {
		if err := Write(&b, f.kind, []byte(f.content)); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&b)
	tar := NewTarReader(r)
	if got, err := io.ReadAll(tar); err != nil || string(got) != "one two" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := tar.Drain(); err != nil {
		t.Error(err)
	}
	if kind, content, err := r.Next(); err != nil || kind != KindRequest || string(content) != "next" {
		t.Errorf("what follows is %q %q, %v", kind, content, err)
	}
	if err := NewTarReader(r).Drain(); err == nil {
		t.Error("another frame is taken for the tar")
	}
	if err := NewTarReader(r).Drain(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a tar without an end: %v", err)
	}
}
