// Package wire is how obx and its agent in a virtual machine talk: frames on a byte stream, which is a virtio-serial port, or
// a session of ssh.
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
const Version = 2

// Names of the virtio-serial ports.
const (
	PortControl = "obx.control"
	PortInput   = "obx.input" // the standard input of processes, in frames of kind Input
)

// CarriedDir is a tmpfs of a Linux machine that has the agent, if its disk does not: what is not on the disk is no part of a result.
const CarriedDir = "/run/obx-carried"

// MaxFrame is the longest content of a frame. Only requests with secrets need as much.
const MaxFrame = 64 << 20

// A Kind says what a frame has.
type Kind byte

const (
	KindHello   Kind = 'H' // guest: Hello
	KindRequest Kind = 'Q' // host: Request
	KindReply   Kind = 'R' // guest: Reply, the last frame of an answer
	KindBeat    Kind = 'B' // guest: nothing; it comes each BeatEvery while an answer is made
	KindOutput  Kind = 'O' // guest: bytes that the process has written, or that a file has
	KindTar     Kind = 'T' // bytes of the tar of a change; an empty frame ends it
	KindCache   Kind = 'C' // guest: CacheChange, a tar of it follows
	KindFiles   Kind = 'F' // guest: a list of File
	KindInput   Kind = 'I' // host: bytes of the input; an empty frame ends it
	KindSize    Kind = 'S' // host, with the input: WindowSize of the terminal
)

// Marker comes before the greeting of an agent that talks by ssh: what comes before it is what the login's shell has to say.
const Marker = "\x00obx's agent\x00\n"

// BeatEvery is how often an agent that works on an answer says so: it may take hours until a process says something, and a system that has
// crashed never does.
const BeatEvery = 20 * time.Second

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

	// Of a machine's own files, if it has booted from a disk.
	List   *List   `json:",omitempty"`
	Read   *Read   `json:",omitempty"`
	Unpack *Unpack `json:",omitempty"`
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
type Freeze struct {
	ShutDown bool // such a machine then ends
}

// Export sends what is not frozen yet, and changes nothing.
type Export struct{}

// List asks for the files in a directory, or for one file alone: frames of kind Files come.
type List struct {
	Name []byte // an fs.FS path, of the root; it may be no UTF-8
	Dir  bool   // what is in it
}

// Read asks for the bytes of a regular file: frames of kind Output come.
type Read struct{ Name []byte }

// Unpack unpacks a tar over a directory, which is made if it is missing. The frames of the tar follow the request.
type Unpack struct {
	Dir   string      // absolute, as processes name it
	Cache *CacheMount `json:",omitempty"` // the directory is new, and hides what is there until the next process has ended
}

// A CacheMount is a cache in a machine whose agent cannot mount one.
type CacheMount struct {
	Number   int // in Run.Caches
	UID, GID int
}

// A File describes a file. It is gone if its Type is 0.
type File struct {
	Name     []byte // the last part
	Type     byte   // as in a tar
	Mode     int64  // as in a tar
	UID, GID int
	Size     int64
	Modified time.Time
	Link     []byte            `json:",omitempty"`
	Xattrs   map[string][]byte `json:",omitempty"`
}

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

// A TarReader reads the tar that comes in frames, to its end.
type TarReader struct {
	r    *Reader
	left []byte
	end  error
}

// NewTarReader reads from r, from the next frame on.
func NewTarReader(r *Reader) *TarReader { return &TarReader{r: r} }

func (t *TarReader) Read(p []byte) (int, error) {
	for len(t.left) == 0 {
		if t.end != nil {
			return 0, t.end
		}
		kind, b, err := t.r.Next()
		switch {
		case errors.Is(err, io.EOF): // that is not how a tar ends
			t.end = io.ErrUnexpectedEOF
		case err != nil:
			t.end = err
		case kind != KindTar:
			t.end = fmt.Errorf("%q among the frames of a tar", kind)
		case len(b) == 0:
			t.end = io.EOF
		default:
			t.left = b
		}
	}
	n := copy(p, t.left)
	t.left = t.left[n:]
	return n, nil
}

// Drain reads what is left.
func (t *TarReader) Drain() error {
	_, err := io.Copy(io.Discard, t)
	return err
}
