package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// tarOfLines makes tars of lines: a letter for the type, a name, and for links a target after a tab. A line "-" begins another tar.
func tarsOfLines(text string) (tars [][]byte) {
	types := map[byte]byte{'f': tar.TypeReg, 'd': tar.TypeDir, 'l': tar.TypeSymlink, 'h': tar.TypeLink, 'p': tar.TypeFifo, 'c': tar.TypeChar}
	for part := range strings.SplitSeq(text, "\n-\n") {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for line := range strings.SplitSeq(part, "\n") {
			if line == "" {
				continue
			}
			name, link, _ := strings.Cut(line[1:], "\t")
			h := &tar.Header{Typeflag: types[line[0]], Name: name, Linkname: link, Mode: 0o751, Uid: os.Getuid(), Gid: os.Getgid(), ModTime: time.Unix(1e9, 0)}
			if h.Typeflag == tar.TypeReg {
				h.Size, h.Linkname = int64(len(link)), ""
			}
			if w.WriteHeader(h) == nil && h.Typeflag == tar.TypeReg {
				_, _ = io.WriteString(w, link)
			}
		}
		_ = w.Close()
		tars = append(tars, b.Bytes())
	}
	return tars
}

// shown describes all files in a directory, and the directory itself.
func shown(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		s, err := stateOf(name)
		rel, _ := filepath.Rel(dir, name)
		all[rel] = fmt.Sprint(i.Mode(), i.Size(), i.ModTime().UnixNano(), s)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// scratch is a directory in memory, if there is memory to have one in.
func scratch(t testing.TB) string {
	t.Helper()
	at := "/dev/shm"
	if _, err := os.Stat(at); err != nil {
		at = ""
	}
	dir, err := os.MkdirTemp(at, "obx-agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// FuzzUnpack holds that the layers of a cache change nothing outside of it, whatever links are in them.
func FuzzUnpack(f *testing.F) {
	for _, text := range []string{
		"da\nfa/b\tdata\nla/l\t../outside\nhc\ta/b\npd/fifo",
		"ll\t../outside\n-\ndl\nfl/.wh..wh..opq\nfl/f\tnew",
		"ll\t../outside\nfl/f\tnew", "ll\t../outside\nhx\tl/f", "ll\t../outside\nfl/.wh.f", "ll\t../outside\nfl/.wh..wh..opq",
		"f.wh...", "fa/.wh...", "f.wh..", "f../outside/f", "d..", "f.", "fd/../../outside/f\tx", "f\tx", "d/", "f.wh..wh..opq",
		"da\nda/b\nfa\tx\nla\t../outside\n", "da\nda/f\n-\nla\t../outside",
		"ll\tx\nlx\t../outside\ndl/d", "lself\tself\ndself\nfself/f\t1", "cnull\ndq",
	} {
		f.Add(text)
	}
	tmp := scratch(f)
	outside := filepath.Join(tmp, "outside")
	if err := errors.Join(os.MkdirAll(filepath.Join(outside, "d"), 0o755), os.WriteFile(filepath.Join(outside, "f"), []byte("data"), 0o644)); err != nil {
		f.Fatal(err)
	}
	before := shown(f, outside)
	cache := filepath.Join(tmp, "cache")
	f.Fuzz(func(t *testing.T, text string) {
		defer os.RemoveAll(cache)
		for _, b := range tarsOfLines(text) {
			err := unpacker{dir: cache, confined: true}.unpack(bytes.NewReader(b))
			if after := shown(t, outside); !maps.Equal(before, after) {
				t.Fatalf("outside is %v, was %v (%v)", after, before, err)
			}
			if all, err := os.ReadDir(tmp); err != nil || len(all) != 2 {
				t.Fatalf("beside the cache are %v, %v", all, err)
			}
			if i, err := os.Lstat(cache); err != nil || !i.IsDir() {
				t.Fatalf("the cache is %v, %v", i, err)
			}
		}
	})
}

// FuzzAnswers holds that an agent answers each whole request once, with whole frames, reads no further than what belongs to it, and ends with an
// error at the first thing that is not a request.
func FuzzAnswers(f *testing.F) {
	var good bytes.Buffer
	for _, req := range []wire.Request{
		{Begin: &wire.Begin{Seed: []byte("seed")}},
		{Run: &wire.Run{Process: executor.Process{Argv: []string{"true"}, Dir: "/"}}},
		{List: &wire.List{Name: []byte("\xff"), Dir: true}}, {Freeze: &wire.Freeze{}},
		{Unpack: &wire.Unpack{Dir: "/x"}},
	} {
		if err := wire.WriteJSON(&good, wire.KindRequest, req); err != nil {
			f.Fatal(err)
		}
	}
	for _, b := range tarsOfLines("da\nfa/b\tdata") {
		_ = wire.Write(&good, wire.KindTar, b)
	}
	f.Add(append(good.Bytes(), 0, 0, 0))
	_ = wire.Write(&good, wire.KindTar, nil)
	f.Add(good.Bytes())
	f.Add([]byte("Q\x02\x00\x00\x00{}Q\x04\x00\x00\x00nullQ\x02\x00\x00\x00[]"))
	f.Add([]byte("T\x00\x00\x00\x00"))
	f.Add([]byte("Q\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		src := bytes.NewReader(b)
		in := wire.NewReader(src)
		var out bytes.Buffer
		asked := 0
		err := answerAll(in, &out, func(_ context.Context, req wire.Request) (reply wire.Reply, err error) {
			asked++
			switch {
			case req.Unpack != nil:
				return reply, wire.NewTarReader(in).Drain()
			case req.Run != nil:
				_, err = command(req.Run.Process)
			case req.List != nil:
				err = wire.Write(&out, wire.KindFiles, []byte("[]"))
			}
			return reply, err
		})
		if err == nil || src.Len() > 0 && errors.Is(err, io.EOF) {
			t.Fatalf("it ends with %v, and %d bytes are left", err, src.Len())
		}
		replies := 0
		for r := wire.NewReader(&out); ; {
			kind, _, err := r.Next()
			if errors.Is(err, io.EOF) && out.Len() == 0 {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if kind == wire.KindReply {
				replies++
			}
		}
		if replies != asked {
			t.Fatalf("%d replies to %d requests", replies, asked)
		}
	})
}
