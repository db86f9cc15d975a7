package layerdisk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/qemu/internal/guesttest"
)

// A modelDisk is a disk of layers beside its bytes, which are put together in another way than the disk does it.
type modelDisk struct {
	disk    *Disk
	content []byte
	lost    [2]int64 // what cannot be read
}

func newModelDisk(t testing.TB) *modelDisk {
	t.Helper()
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m := &modelDisk{disk: &Disk{}}
	place := func(names ...string) {
		var list []*Layer
		for _, name := range names {
			l, err := ReadLayer(filepath.Join(dir, name))
			check(err)
			list = append(list, l)
		}
		at, size, err := m.disk.Add(list)
		check(err)
		img := m.disk.images[len(m.disk.images)-1]
		m.content = append(m.content, make([]byte, at+size+3*blockSize-int64(len(m.content)))...)
		copy(m.content[at:], img.meta)
		for _, l := range img.layers {
			for _, f := range l.files {
				b, err := os.ReadFile(filepath.Join(l.dir, f.at.String()))
				check(err)
				copy(m.content[at+l.start+f.block*blockSize:], b)
				if f.at.Name() == "cut" {
					m.lost = [2]int64{at + l.start + f.block*blockSize + 5000, at + l.start + f.block*blockSize + f.size}
				}
			}
		}
	}
	for i, name := range []string{"empty", "small", "large"} {
		check(os.MkdirAll(filepath.Join(dir, name, "d"), 0o755))
		for _, size := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 10 * blockSize}[:3*i] {
			check(os.WriteFile(filepath.Join(dir, name, fmt.Sprint("f", size)), bytes.Repeat([]byte{byte(size + i)}, size), 0o644))
		}
	}
	check(os.Symlink("/etc/passwd", filepath.Join(dir, "large", "link")))
	check(unix.Mkfifo(filepath.Join(dir, "large", "fifo"), 0o600))
	check(os.Link(filepath.Join(dir, "large", "f1"), filepath.Join(dir, "large", "d", "same")))
	check(os.WriteFile(filepath.Join(dir, "large", "cut"), bytes.Repeat([]byte("c"), 10000), 0o644))
	check(os.WriteFile(filepath.Join(dir, "small", "last"), []byte("behind it"), 0o644))
	place("small", "empty", "large", "empty", "small")
	place("empty")
	place("small")
	check(os.Truncate(filepath.Join(dir, "large", "cut"), 5000))
	return m
}

// expect is the answer to one request: what follows the answer's head, and the error in it.
func (m *modelDisk) expect(kind uint16, off int64, size uint32) (data []byte, errno unix.Errno) {
	switch {
	case kind == nbdCmdFlush:
		return nil, 0
	case kind != nbdCmdRead || off < 0 || off > diskSize-int64(size):
		return nil, unix.EINVAL
	case max(off, m.lost[0]) < min(off+int64(size), m.lost[1]):
		return nil, unix.EIO
	}
	data = make([]byte, size)
	if off < int64(len(m.content)) {
		copy(data, m.content[off:])
	}
	return data, 0
}

// nbdHello is what QEMU begins with.
func nbdHello() []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, 3)
	for _, option := range []uint32{8, nbdOptGo} { // structured replies, which are refused
		b = be.AppendUint64(b, nbdOptMagic)
		b = be.AppendUint32(b, option)
		b = be.AppendUint32(b, 6)
		b = append(b, 0, 0, 0, 0, 0, 0)
	}
	return b
}

// FuzzNBD sends what a QEMU that a machine has taken over might: the disk gives the bytes that layers have there, or an error, and nothing else.
// Requests are 12 bytes each: flags and kind, size, offset.
func FuzzNBD(f *testing.F) {
	m := newModelDisk(f)
	hello := nbdHello()
	req := func(kind byte, off int64, size int) []byte {
		b := binary.BigEndian.AppendUint16([]byte{kind, 0}, uint16(size))
		return binary.BigEndian.AppendUint64(b, uint64(off))
	}
	const whole, huge = 0x80, 0x40 // flags: the offset is not reduced to where there is something; the size is a little more than can be
	lost := m.lost
	for _, requests := range [][]byte{
		req(nbdCmdRead, diskAlign, 4096), req(nbdCmdRead, diskAlign+1000, 60000), req(nbdCmdFlush, 0, 0), req(nbdCmdDisc, 0, 0), req(1, 0, 10),
		req(whole|nbdCmdRead, diskSize-1, 1), req(whole|nbdCmdRead, diskSize-1, 2), req(whole|nbdCmdRead, -1, 1), req(whole|nbdCmdRead, 1<<62, 0xffff),
		req(huge|nbdCmdRead, 0, 1), req(nbdCmdRead, lost[0]-100, 100), req(nbdCmdRead, lost[0]-100, 101), req(nbdCmdRead, lost[1]-1, 1), req(nbdCmdRead, lost[1], 9000),
		append(req(nbdCmdRead, int64(len(m.content))-10, 100), req(nbdCmdRead, 2*diskAlign-5000, 10000)...),
	} {
		f.Add(hello, requests)
	}
	f.Add(hello[:7], []byte{})
	f.Add(append(hello[:4:4], "IHAVEOPT\x00\x00\x00\x02\x00\x00\x00\x00"...), []byte{})
	f.Add(append(hello[:4:4], "IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"...), []byte{})
	f.Fuzz(func(t *testing.T, begin, requests []byte) {
		be := binary.BigEndian
		var in, want, got bytes.Buffer
		in.Write(begin)
		wantErr := false
		open := true
		for n := 0; len(requests) >= 12 && n < 16; n++ {
			kind, size, off := uint16(requests[0]&0x0f), uint32(be.Uint16(requests[2:])), int64(be.Uint64(requests[4:]))
			if requests[0]&whole == 0 {
				off = int64(uint64(off) % uint64(len(m.content)+blockSize))
			}
			if requests[0]&huge != 0 {
				size += nbdMaxRead
			}
			requests = requests[12:]
			b := be.AppendUint32(nil, nbdRequestMagic)
			b = be.AppendUint32(b, uint32(kind))
			b = be.AppendUint64(b, uint64(n)<<32|0xabcd)
			b = be.AppendUint64(b, uint64(off))
			in.Write(be.AppendUint32(b, size))
			if !open {
				continue
			}
			if size > nbdMaxRead {
				wantErr, open = true, false
				continue
			}
			if kind == nbdCmdDisc {
				open = false
				continue
			}
			data, errno := m.expect(kind, off, size)
			wantErr = wantErr || errno == unix.EIO
			want.Write(be.AppendUint32(nil, nbdSimpleMagic))
			want.Write(be.AppendUint32(nil, uint32(errno)))
			want.Write(be.AppendUint64(nil, uint64(n)<<32|0xabcd))
			want.Write(data)
		}
		sent := in.Len()
		disk := Disk{images: m.disk.images, next: m.disk.next} // each serves one client
		err := disk.Serve(guesttest.Recorded{Reader: &in, Writer: &got})
		if !bytes.Equal(begin, hello) { // then it is all one stream of bytes
			if total := sent; got.Len() > 18+5*total+total/28*nbdMaxRead {
				t.Errorf("%d bytes come of %d", got.Len(), total)
			}
			return
		}
		const greeting = 18 + 20 + 20 + 12 + 20 // the hello, a refusal, the export, its end
		if got.Len() < greeting || !bytes.Equal(got.Bytes()[greeting:], want.Bytes()) {
			t.Errorf("%d bytes of answers are not the %d that were to come", got.Len()-greeting, want.Len())
		}
		if (err != nil) != wantErr {
			t.Errorf("it ends with %v; an error is to come: %v", err, wantErr)
		}
	})
}
