// Package wire is how obx and its agent in a virtual machine talk: frames on a byte stream, which is a virtio-serial port.
//
// The host sends one request at a time, and waits for its reply. Before the reply the guest may send what the request is
// about: output of a process, the tar of a change. Both ends are made from one source and go together, so there is
// nothing to negotiate; the greeting names a version all the same, since a saved machine may have an older agent.
//
// What comes from a guest is hostile: lengths are bounded, and nothing is taken for more than it is.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ocurrent/obx/executor"
)

// Version goes up when one end would not understand the other.
const Version = 1

// Names of the virtio-serial ports.
const (
	PortControl = "obx.control"
	PortInput   = "obx.input" // the standard input of processes, in frames of kind Input
)

// MaxFrame is the longest content of a frame. Only requests with secrets need as much.
const MaxFrame = 64 << 20

// A Kind says what a frame has.
type Kind byte

const (
	KindHello   Kind = 'H' // guest: Hello
	KindRequest Kind = 'Q' // host: Request
	KindReply   Kind = 'R' // guest: Reply, the last frame of an answer
	KindOutput  Kind = 'O' // guest: bytes that the process has written
	KindTar     Kind = 'T' // guest: bytes of the tar of a change; an empty frame ends it
	KindCache   Kind = 'C' // guest: CacheChange, a tar of it follows
	KindInput   Kind = 'I' // host: bytes of the input; an empty frame ends it
	KindSize    Kind = 'S' // host, on the input port: WindowSize of the terminal
)

// Hello is the agent's greeting, once it is ready for requests.
type Hello struct {
	Version int
	Err     string // what went wrong while it started
}

// A Request has exactly one of its pointers set.
type Request struct {
	Now    time.Time // the guest's clock is set by it: that of a restored machine stands still
	Begin  *Begin    `json:",omitempty"`
	Attach *Attach   `json:",omitempty"`
	Run    *Run      `json:",omitempty"`
	Freeze *Freeze   `json:",omitempty"`
	Export *Export   `json:",omitempty"`
}

// Begin is the first request to a machine, be it booted or restored.
type Begin struct {
	Seed []byte // random: a restored machine would repeat what its copies have drawn
}

// Attach mounts an image that is on the disk of layers, and puts the layers in it on top of the root.
type Attach struct {
	Offset, Size int64 // in bytes
	Layers       []int // directories of the image, base first
	Keep         bool  // stays until the machine ends; else the caches of the next Run are in it
}

// Run runs a process.
type Run struct {
	Process    executor.Process // Stdin is nil
	Caches     []Cache          // the caches of its mounts, each once
	Input      bool             // frames come on the input port
	Rows, Cols uint16           // of the terminal
}

// A Cache is what a cache mount has at the beginning: directories of the last image that was attached, base first.
type Cache struct {
	executor.Cache
	Dirs []int
}

// A CacheChange announces the tar of what a process has changed in the cache with a number in Run.Caches.
type CacheChange struct {
	Number int
}

// Freeze ends a step. The tar of its change comes, unless nothing has changed. In a machine that has booted from a disk, that has it afterwards.
type Freeze struct{}

// Export sends what is not frozen yet, and changes nothing.
type Export struct{}

// A Reply ends the answer to a request. Without any field it is success.
type Reply struct {
	Err     string              `json:",omitempty"` // of the infrastructure
	Start   string              `json:",omitempty"` // an executor.StartError
	Exit    *executor.ExitError `json:",omitempty"`
	Changed bool                `json:",omitempty"` // to Freeze and Export: there was a tar
}

// WindowSize is a terminal's.
type WindowSize struct{ Rows, Cols uint16 }

const headerSize = 5

// Write writes one frame with one call of w.
func Write(w io.Writer, k Kind, content []byte) error {
	if len(content) > MaxFrame {
		return fmt.Errorf("a message of %d bytes is too long", len(content))
	}
	b := make([]byte, headerSize, headerSize+len(content))
	b[0] = byte(k)
	binary.LittleEndian.PutUint32(b[1:], uint32(len(content)))
	_, err := w.Write(append(b, content...))
	return err
}

// WriteJSON writes one frame.
func WriteJSON(w io.Writer, k Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return Write(w, k, b)
}

// A Reader reads frames.
type Reader struct {
	r      io.Reader
	header [headerSize]byte
	buf    []byte
}

// NewReader reads from r, which should be buffered.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next reads a frame. Its content is valid until the next call.
func (r *Reader) Next() (Kind, []byte, error) {
	if _, err := io.ReadFull(r.r, r.header[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.LittleEndian.Uint32(r.header[1:]))
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("a message of %d bytes is too long", n)
	}
	// Memory is taken as bytes come, not as they are announced.
	r.buf = r.buf[:0]
	for len(r.buf) < n {
		at := len(r.buf)
		if cap(r.buf) == at {
			r.buf = append(r.buf, make([]byte, min(n-at, max(64<<10, at)))...)
		} else {
			r.buf = r.buf[:min(n, cap(r.buf))]
		}
		if _, err := io.ReadFull(r.r, r.buf[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
	}
	return Kind(r.header[0]), r.buf, nil
}

// A FrameWriter makes a frame of each Write.
type FrameWriter struct {
	W    io.Writer
	Kind Kind
}

func (f FrameWriter) Write(p []byte) (int, error) {
	const most = 256 << 10
	for at := 0; at < len(p); at += most {
		if err := Write(f.W, f.Kind, p[at:min(at+most, len(p))]); err != nil {
			return at, err
		}
	}
	return len(p), nil
}
