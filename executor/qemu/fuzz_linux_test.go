package qemu

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
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
			process: process, ended: ended, control: conn, input: conn, in: wire.NewReader(src), patience: agentPatience, online: true,
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
