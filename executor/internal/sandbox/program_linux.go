package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"
)

// A program is a list of system calls, which the child of a starter makes. Building one keeps account of the file descriptors that it will have: the
// kernel gives out the lowest that is free, and a program is one thread.
type program struct {
	calls []call
	data  bytes.Buffer
	free  int // the lowest descriptor that is not open
	err   error
}

type call struct {
	what  string // is being done
	words [callSize / 8]uint64
}

// do adds a call. Those errors do not matter. Without what, it belongs to the call before.
func (p *program) do(what string, errs []unix.Errno, number uintptr, args ...uint64) {
	if what == "" && len(p.calls) > 0 {
		what = p.calls[len(p.calls)-1].what
	}
	c := call{what: what}
	c.words[0] = uint64(number)
	copy(c.words[1:7], args)
	for _, e := range errs {
		c.words[7] |= 1 << e
	}
	p.calls = append(p.calls, c)
}

// open adds a call that opens a descriptor.
func (p *program) open(what string, number uintptr, args ...uint64) (fd uint64) {
	p.do(what, nil, number, args...)
	p.free++
	return uint64(p.free - 1)
}

// close closes the descriptor that was opened last.
func (p *program) close(fd uint64) {
	if p.free--; uint64(p.free) != fd {
		p.err = fmt.Errorf("the descriptor %d is closed out of turn", fd)
	}
	p.do("", nil, unix.SYS_CLOSE, fd)
}

// bytes adds data, aligned for the kernel.
func (p *program) bytes(b []byte) (address uint64) {
	p.data.Write(make([]byte, -p.data.Len()&7))
	address = dataAddress + uint64(p.data.Len())
	p.data.Write(b)
	return address
}

func (p *program) string(s string) uint64 { return p.bytes(append([]byte(s), 0)) }

// words adds numbers and addresses.
func (p *program) words(w ...uint64) uint64 {
	var b []byte
	for _, n := range w {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return p.bytes(b)
}

// strings adds what execve takes: the addresses of strings, and a zero.
func (p *program) strings(list []string) uint64 {
	var all []uint64
	for _, s := range list {
		all = append(all, p.string(s))
	}
	return p.words(append(all, 0)...)
}

// check says whether the program can be run.
func (p *program) check() error {
	if p.err != nil {
		return p.err
	}
	if len(p.calls) >= maxCalls {
		return errors.New("it needs too many system calls")
	}
	return nil
}

// A failure is what a program has reported.
type failure struct {
	what    string // was being done
	errno   unix.Errno
	skipped []unix.Errno // did not matter before
	last    bool         // it was the end: no program was there to execute
}

// failure reads what a child has left in the area: nil if there was no failure.
func (p *program) failure(report [3]uint64) (*failure, error) {
	if report == [3]uint64{} {
		return nil, nil
	}
	n := int(report[1]-callAddress) / callSize
	if n < 0 || n >= len(p.calls) {
		return nil, fmt.Errorf("the container's first program reported a call at %#x", report[1])
	}
	f := &failure{what: p.calls[n].what, errno: unix.Errno(report[0]), last: n == len(p.calls)-1}
	for m := report[2]; m != 0; m &= m - 1 {
		f.skipped = append(f.skipped, unix.Errno(bits.TrailingZeros64(m)))
	}
	return f, nil
}

func (f failure) wasSkipped(e unix.Errno) bool { return slices.Contains(f.skipped, e) }
