package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/internal/guesttest"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// FuzzGuest has a machine's agent say anything in answer to what it is asked. That ends, takes memory in proportion to what is said, and whatever
// comes of it is what it may be: names that are names, an error that can be printed, and no file stays.
func FuzzGuest(f *testing.F) {
	const (
		greets = iota
		runs
		lists
		writes
		reads
		kinds
	)
	says, said := guesttest.Says, guesttest.Said
	ok := says(wire.KindReply, wire.Reply{})
	when := time.Unix(1e9, 0)
	list := says(wire.KindFiles, []wire.File{
		{
			Name: []byte("a"), Type: tar.TypeReg, Mode: 0o644, Size: 4, Modified: when,
			Xattrs: map[string][]byte{"user.a": []byte("b"), "trusted.overlay.redirect": []byte("/")},
		},
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
	f.Add(byte(lists), said(one, ok, list, ok, says(wire.KindOutput, []byte("data")), ok, none, ok))
	f.Add(byte(writes), said(one, ok, list, ok, says(wire.KindOutput, []byte("data")), ok, none, ok))
	f.Add(byte(lists), said(one, ok, says(wire.KindFiles, []byte("["+strings.Repeat("{},", 60_000)+"{}]")), ok))
	f.Add(byte(lists), said(one, ok, says(wire.KindFiles, []wire.File{{Name: []byte("x"), Type: '0'}, {Name: []byte("x"), Type: '5'}}), ok))
	f.Add(byte(lists), said(one, ok, says(wire.KindFiles, []wire.File{{Name: bytes.Repeat([]byte("x"), 5000), Type: '0'}}), ok))
	f.Add(byte(lists), said(one, ok, says(wire.KindFiles, []wire.File{{Name: []byte("../x"), Type: '0'}}), ok))
	f.Add(byte(reads), said(one, ok, says(wire.KindFiles, []wire.File{{Name: []byte("f"), Type: '0', Size: 4}}), ok, says(wire.KindOutput, []byte("data")), ok))
	tmp := f.TempDir()
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		before := guesttest.Allocated()
		src := bytes.NewReader(b)
		conn := guesttest.Recorded{Reader: src, Writer: io.Discard}
		m := guesttest.NewMachine(t)
		m.Fail(nil) // whatever it is, it has ended
		a := NewAgent(m, conn, conn)
		ctx := context.Background()
		g := &Guest{agent: a, free: semaphore.NewWeighted(1)}
		files := g.Files(ctx, tmp).(*tree)
		var err error
		switch kind % kinds {
		case greets:
			err = a.Greet(ctx, time.Minute)
		case runs:
			var out bytes.Buffer
			var reply wire.Reply
			change := func(wire.Kind, []byte) error { return errors.New("a change of nothing") }
			reply, err = a.Run(ctx, executor.Process{Argv: []string{"x"}}, nil, &out, change)
			guesttest.CheckError(t, reply.Start, true)
			if reply.Exit != nil {
				guesttest.CheckError(t, reply.Exit.Error(), true)
			}
			if out.Len() > len(b) {
				t.Errorf("%d bytes of output come of %d", out.Len(), len(b))
			}
		case lists:
			err = fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				return checkGuestFile(t, files, name)
			})
		case writes:
			err = layers.WriteTree(ctx, io.Discard, files)
		case reads:
			_, err = fs.ReadFile(files, "d/f")
		}
		if err != nil {
			// Names of files, of which the errors of all trees speak, are made harmless where they are printed.
			guesttest.CheckError(t, err.Error(), kind%kinds < lists)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
		// Bytes of JSON become strings, and those of a list entries of maps.
		if took := guesttest.Allocated() - before; took > 4<<20+100*uint64(len(b)) {
			t.Errorf("%d bytes said have taken %d of memory (%v)", len(b), took, err)
		}
	})
}

// checkGuestFile looks at a file that a machine has described.
func checkGuestFile(t *testing.T, files *tree, name string) error {
	t.Helper()
	i, err := files.Lstat(name)
	if err != nil {
		return err
	}
	h := i.Sys().(*tar.Header)
	wrong := name != path.Clean(name) || path.IsAbs(name) || strings.HasPrefix(name, "../") || name == ".." ||
		strings.Contains(name, "\x00") || len(name) > 3*maxPath ||
		h.Mode&^0o7777 != 0 || h.Size < 0 || h.Uid < 0 || h.Uid > 1<<32-2 || h.Gid < 0 || h.Gid > 1<<32-2 ||
		i.Mode()&fs.ModeDevice != 0 || i.IsDir() != (h.Typeflag == tar.TypeDir)
	xattrs, err := files.Xattrs(name)
	for k := range xattrs {
		wrong = wrong || !layers.KeepXattr(k)
	}
	list := files.dirs[path.Dir(name)]
	for n, d := range list {
		wrong = wrong || n > 0 && list[n-1].Name() >= d.Name()
	}
	if wrong {
		t.Errorf("%q is %+v, %v", name, h, xattrs)
	}
	return err
}
