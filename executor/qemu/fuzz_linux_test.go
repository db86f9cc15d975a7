package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/internal/guesttest"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// FuzzChanges has a machine's agent say anything in answer to what is run and frozen. That ends, takes memory in proportion to what is said, and whatever
// comes of it is an error that can be printed, or a change in the store's temporary directory.
func FuzzChanges(f *testing.F) {
	conformance.RequireRoot(f)
	const (
		runs = iota
		freezes
		caches
		kinds
	)
	says, said := guesttest.Says, guesttest.Said
	whole := guesttest.SmallTar()
	ok := says(wire.KindReply, wire.Reply{})
	f.Add(byte(runs), said(says(wire.KindBeat, []byte{}), says(wire.KindOutput, []byte("out")), says(wire.KindInput, []byte{}), says(wire.KindReply, wire.Reply{Exit: &executor.ExitError{Code: 3}})))
	f.Add(byte(runs), said(says(wire.KindReply, wire.Reply{Exit: &executor.ExitError{Reason: executor.OOM, Limit: "\x1b"}})))
	f.Add(byte(runs), said(says(wire.KindReply, wire.Reply{Start: "\x1b[31mno"})))
	f.Add(byte(runs), said(says(wire.KindReply, []byte(`{"Exit":{"Code":`+strings.Repeat("1", 70<<10)+`}}`))))
	f.Add(byte(freezes), said(says(wire.KindTar, whole), says(wire.KindTar, []byte{}), says(wire.KindReply, wire.Reply{Changed: true})))
	f.Add(byte(freezes), said(says(wire.KindTar, whole), says(wire.KindTar, []byte{}), ok))
	f.Add(byte(freezes), said(says(wire.KindReply, wire.Reply{Changed: true})))
	f.Add(byte(caches), said(says(wire.KindCache, wire.CacheChange{Number: 1}), says(wire.KindTar, whole), says(wire.KindTar, []byte{}), ok))
	f.Add(byte(caches), said(says(wire.KindCache, wire.CacheChange{Number: -1}), ok))
	f.Add(byte(caches), said(says(wire.KindCache, wire.CacheChange{}), says(wire.KindTar, whole), ok))
	st := conformance.OpenStore(f)
	tmp, err := os.MkdirTemp(st.TempDir(), "fuzz-")
	if err != nil {
		f.Fatal(err)
	}
	e := &Executor{options: vm.Options{Store: st}, tmp: tmp}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		before := guesttest.Allocated()
		src := bytes.NewReader(b)
		conn := guesttest.Recorded{Reader: src, Writer: io.Discard}
		ended := guesttest.NewMachine(t)
		ended.Fail(nil)
		m := &vm.Machine{Agent: guest.NewAgent(ended, conn, conn)}
		ctx := context.Background()
		var err error
		switch kind % kinds {
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
			_, err = m.Agent.Ask(ctx, wire.Request{Run: &wire.Run{}}, nil, func(k wire.Kind, b []byte) error { return set.frame(ctx, k, b) })
			err = errors.Join(err, set.close(err == nil))
		}
		if err != nil {
			guesttest.CheckError(t, err.Error(), true)
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
