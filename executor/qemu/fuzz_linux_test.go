package qemu

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// A recorded connection gives what was recorded, and takes everything.
type recorded struct {
	io.Reader
	io.Writer
}

func (recorded) Close() error                     { return nil }
func (recorded) LocalAddr() net.Addr              { return nil }
func (recorded) RemoteAddr() net.Addr             { return nil }
func (recorded) SetDeadline(time.Time) error      { return nil }
func (recorded) SetReadDeadline(time.Time) error  { return nil }
func (recorded) SetWriteDeadline(time.Time) error { return nil }

// A modelDisk is a disk of layers beside its bytes, which are put together in another way than the disk does it.
type modelDisk struct {
	disk    *layerDisk
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
	m := &modelDisk{disk: newLayerDisk()}
	place := func(names ...string) {
		var list []*layerMeta
		for _, name := range names {
			l, err := metaOf(filepath.Join(dir, name))
			check(err)
			list = append(list, l)
		}
		img, err := newImage(list)
		check(err)
		at, err := m.disk.add(img)
		check(err)
		m.content = append(m.content, make([]byte, at+img.size+3*erofsBlock-int64(len(m.content)))...)
		copy(m.content[at:], img.meta)
		for _, l := range img.layers {
			for _, f := range l.files {
				b, err := os.ReadFile(filepath.Join(l.dir, f.at.String()))
				check(err)
				copy(m.content[at+l.start+f.block*erofsBlock:], b)
				if f.at.Name() == "cut" {
					m.lost = [2]int64{at + l.start + f.block*erofsBlock + 5000, at + l.start + f.block*erofsBlock + f.size}
				}
			}
		}
	}
	for i, name := range []string{"empty", "small", "large"} {
		check(os.MkdirAll(filepath.Join(dir, name, "d"), 0o755))
		for _, size := range []int{0, 1, erofsBlock - 1, erofsBlock, erofsBlock + 1, 10 * erofsBlock}[:3*i] {
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
				off = int64(uint64(off) % uint64(len(m.content)+erofsBlock))
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
		disk := layerDisk{images: m.disk.images, next: m.disk.next} // each serves one client
		err := disk.serve(recorded{&in, &got})
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

// deadProcess is a machine's that has ended.
func deadProcess(t testing.TB) *os.Process {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process
}

// said is what an agent answers to each request.
func said(frames ...func(io.Writer) error) []byte {
	var b bytes.Buffer
	for _, f := range frames {
		if err := f(&b); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func says(k wire.Kind, v any) func(io.Writer) error {
	return func(w io.Writer) error {
		if b, ok := v.([]byte); ok {
			return wire.Write(w, k, b)
		}
		return wire.WriteJSON(w, k, v)
	}
}

func smallTar() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o644, Size: 4})
	_, _ = w.Write([]byte("data"))
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc/passwd"})
	_ = w.Close()
	return b.Bytes()
}

// allocated is how much memory this process has taken in all, in bytes.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// FuzzGuest has a machine's agent say anything in answer to what it is asked. That ends, takes memory in proportion to what is said, and whatever
// comes of it is what it may be: names that are names, an error that can be printed, and no file outside of the store's temporary directory.
func FuzzGuest(f *testing.F) {
	conformance.RequireRoot(f)
	const (
		greets = iota
		runs
		freezes
		caches
		lists
		writes
		reads
		kinds
	)
	ok := says(wire.KindReply, wire.Reply{})
	when := time.Unix(1e9, 0)
	list := says(wire.KindFiles, []wire.File{
		{Name: []byte("a"), Type: tar.TypeReg, Mode: 0o644, Size: 4, Modified: when, Xattrs: map[string][]byte{"user.a": []byte("b"), "trusted.overlay.redirect": []byte("/")}},
		{Name: []byte("d"), Type: tar.TypeDir, Mode: 0o1755, UID: 1, GID: 2, Modified: when},
		{Name: []byte("l"), Type: tar.TypeSymlink, Link: []byte("/etc")}, {Name: []byte("p"), Type: tar.TypeFifo},
	})
	one := says(wire.KindFiles, []wire.File{{Name: []byte("."), Type: tar.TypeDir, Mode: 0o755}})
	none := says(wire.KindFiles, []byte("null"))
	f.Add(byte(greets), said(says(wire.KindHello, wire.Hello{Version: wire.Version})))
	f.Add(byte(greets), said(says(wire.KindHello, wire.Hello{Version: wire.Version, Err: "\x1b[31mno"})))
	f.Add(byte(runs), said(says(wire.KindBeat, []byte{}), says(wire.KindOutput, []byte("out")), says(wire.KindInput, []byte{}), says(wire.KindReply, wire.Reply{Exit: &executor.ExitError{Code: 3}})))
	f.Add(byte(runs), said(says(wire.KindReply, wire.Reply{Exit: &executor.ExitError{Reason: executor.OOM, Limit: "\x1b"}})))
	f.Add(byte(runs), said(says(wire.KindReply, wire.Reply{Start: "\x1b[31mno"})))
	f.Add(byte(runs), said(says(wire.KindReply, []byte(`{"Exit":{"Code":`+strings.Repeat("1", 70<<10)+`}}`))))
	f.Add(byte(freezes), said(says(wire.KindTar, smallTar()), says(wire.KindTar, []byte{}), says(wire.KindReply, wire.Reply{Changed: true})))
	f.Add(byte(freezes), said(says(wire.KindTar, smallTar()), says(wire.KindTar, []byte{}), ok))
	f.Add(byte(freezes), said(says(wire.KindReply, wire.Reply{Changed: true})))
	f.Add(byte(caches), said(says(wire.KindCache, wire.CacheChange{Number: 1}), says(wire.KindTar, smallTar()), says(wire.KindTar, []byte{}), ok))
	f.Add(byte(caches), said(says(wire.KindCache, wire.CacheChange{Number: -1}), ok))
	f.Add(byte(caches), said(says(wire.KindCache, wire.CacheChange{}), says(wire.KindTar, smallTar()), ok))
	f.Add(byte(lists), said(one, ok, list, ok, says(wire.KindOutput, []byte("data")), ok, none, ok))
	f.Add(byte(writes), said(one, ok, list, ok, says(wire.KindOutput, []byte("data")), ok, none, ok))
	f.Add(byte(lists), said(one, ok, says(wire.KindFiles, []byte("["+strings.Repeat("{},", 60_000)+"{}]")), ok))
	f.Add(byte(lists), said(one, ok, says(wire.KindFiles, []wire.File{{Name: []byte("x"), Type: '0'}, {Name: []byte("x"), Type: '5'}}), ok))
	f.Add(byte(lists), said(one, ok, says(wire.KindFiles, []wire.File{{Name: bytes.Repeat([]byte("x"), 5000), Type: '0'}}), ok))
	f.Add(byte(lists), said(one, ok, says(wire.KindFiles, []wire.File{{Name: []byte("../x"), Type: '0'}}), ok))
	f.Add(byte(reads), said(one, ok, says(wire.KindFiles, []wire.File{{Name: []byte("f"), Type: '0', Size: 4}}), ok, says(wire.KindOutput, []byte("data")), ok))
	st := conformance.OpenStore(f)
	tmp, err := os.MkdirTemp(st.TempDir(), "fuzz-")
	if err != nil {
		f.Fatal(err)
	}
	process := deadProcess(f)
	ended := make(chan struct{})
	close(ended)
	e := &Executor{options: Options{Store: st}, tmp: tmp, warned: map[string]bool{}}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		before := allocated()
		src := bytes.NewReader(b)
		conn := recorded{src, io.Discard}
		m := &machine{
			process: process, ended: ended, control: conn, input: conn, in: wire.NewReader(src), patience: agentPatience, layers: newLayerDisk(), online: true,
		}
		ctx := context.Background()
		g := &guest{e: e, m: m, free: semaphore.NewWeighted(1)}
		tree := &guestTree{ctx: ctx, guest: g, tmp: tmp, dirs: map[string][]fs.DirEntry{}, infos: map[string]*guestInfo{}}
		var err error
		switch kind % kinds {
		case greets:
			err = m.greeting(ctx, time.Minute)
		case runs:
			var out bytes.Buffer
			err = e.run(ctx, m, 1<<30, executor.Process{Argv: []string{"x"}}, &out)
			if out.Len() > len(b) {
				t.Errorf("%d bytes of output come of %d", out.Len(), len(b))
			}
		case freezes:
			var dir string
			dir, err = (&root{e: e, m: m}).fetch(ctx, wire.Request{Freeze: &wire.Freeze{}})
			if dir != "" {
				if err != nil || filepath.Dir(dir) != tmp {
					t.Errorf("the change is in %s; %v", dir, err)
				}
				_ = st.Trash(dir)
			}
		case caches:
			set := &cacheSet{e: e, m: m}
			for i := range 2 {
				set.list = append(set.list, &cacheUse{times: i + 1, use: &rootfs.CacheUse{Close: func() error { return nil }, Commit: os.RemoveAll}})
			}
			_, err = m.ask(ctx, wire.Request{Run: &wire.Run{}}, func(k wire.Kind, b []byte) error { return set.frame(ctx, k, b) })
			err = errors.Join(err, set.close(err == nil))
		case lists:
			err = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				return checkGuestFile(t, tree, name)
			})
		case writes:
			err = layers.WriteTree(ctx, io.Discard, tree)
		case reads:
			_, err = fs.ReadFile(tree, "d/f")
		}
		if err != nil {
			// Names of files, of which the errors of all trees speak, are made harmless where they are printed.
			checkError(t, err.Error(), kind%kinds < lists)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
		// Bytes of JSON become strings, and those of a list entries of maps.
		if took := allocated() - before; took > 4<<20+100*uint64(len(b)) {
			t.Errorf("%d bytes said have taken %d of memory (%v)", len(b), took, err)
		}
	})
}

// checkGuestFile looks at a file that a machine has described.
func checkGuestFile(t *testing.T, tree *guestTree, name string) error {
	t.Helper()
	i, err := tree.Lstat(name)
	if err != nil {
		return err
	}
	h := i.Sys().(*tar.Header)
	wrong := name != path.Clean(name) || path.IsAbs(name) || strings.HasPrefix(name, "../") || name == ".." || strings.Contains(name, "\x00") || len(name) > 3*maxPath ||
		h.Mode&^0o7777 != 0 || h.Size < 0 || h.Uid < 0 || h.Uid > 1<<32-2 || h.Gid < 0 || h.Gid > 1<<32-2 || i.Mode()&fs.ModeDevice != 0 || i.IsDir() != (h.Typeflag == tar.TypeDir)
	xattrs, err := tree.Xattrs(name)
	for k := range xattrs {
		wrong = wrong || !layers.KeepXattr(k)
	}
	list := tree.dirs[path.Dir(name)]
	for n, d := range list {
		wrong = wrong || n > 0 && list[n-1].Name() >= d.Name()
	}
	if wrong {
		t.Errorf("%q is %+v, %v", name, h, xattrs)
	}
	return err
}

// checkError fails if an error is long, or, with plain, does more to a terminal than to fill some lines.
func checkError(t *testing.T, s string, plain bool) {
	t.Helper()
	if len(s) > 64<<10 || plain && strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) && r != utf8.RuneError }) {
		t.Errorf("the error is %.300q", s)
	}
}
