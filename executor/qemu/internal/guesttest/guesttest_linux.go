package guesttest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"io"
	"net"
	"os"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/qemu/wire"
)

// A Recorded connection gives what was Recorded, and takes everything.
type Recorded struct {
	io.Reader
	io.Writer
}

func (Recorded) Close() error                     { return nil }
func (Recorded) LocalAddr() net.Addr              { return nil }
func (Recorded) RemoteAddr() net.Addr             { return nil }
func (Recorded) SetDeadline(time.Time) error      { return nil }
func (Recorded) SetReadDeadline(time.Time) error  { return nil }
func (Recorded) SetWriteDeadline(time.Time) error { return nil }

// Said is what an agent answers to each request.
func Said(frames ...func(io.Writer) error) []byte {
	var b bytes.Buffer
	for _, f := range frames {
		if err := f(&b); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// Says is one frame of it: bytes, or what becomes JSON.
func Says(k wire.Kind, v any) func(io.Writer) error {
	return func(w io.Writer) error {
		if b, ok := v.([]byte); ok {
			return wire.Write(w, k, b)
		}
		return wire.WriteJSON(w, k, v)
	}
}

// SmallTar is a tar with a file, its directory and a link.
func SmallTar() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o644, Size: 4})
	_, _ = w.Write([]byte("data"))
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc/passwd"})
	_ = w.Close()
	return b.Bytes()
}

// Allocated is how much memory this process has taken in all, in bytes.
func Allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// CheckError fails if an error is long, or, with plain, does more to a terminal than to fill some lines.
func CheckError(t testing.TB, s string, plain bool) {
	t.Helper()
	if len(s) > 64<<10 || plain && strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) && r != utf8.RuneError }) {
		t.Errorf("the error is %.300q", s)
	}
}

// Pair is two ends of a connection, as QEMU has it to a machine's port.
func Pair(t testing.TB) (ours, theirs net.Conn) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range p {
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
	}
	return ends[0], ends[1]
}

// A Machine is one with nothing in it: it ends when it fails, or when somebody asks why it has ended.
type Machine struct {
	mu    sync.Mutex
	ended chan struct{}
	cause error
}

// NewMachine is a Machine that ends with the test, if not before.
func NewMachine(t testing.TB) *Machine {
	m := &Machine{ended: make(chan struct{})}
	t.Cleanup(func() { m.Fail(nil) })
	return m
}

func (m *Machine) Ended() <-chan struct{} { return m.ended }

func (m *Machine) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.ended:
	default:
		m.cause = err
		close(m.ended)
	}
}

func (m *Machine) Why(err error) error {
	select {
	case <-m.ended:
	case <-time.After(time.Second):
		m.Fail(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return cmp.Or(m.cause, err)
}
