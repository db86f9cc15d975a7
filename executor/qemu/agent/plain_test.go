package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// helperVar makes this program the process that a test has run: it does what the variable says.
const helperVar = "OBX_TEST_DO"

func TestMain(m *testing.M) {
	if do := os.Getenv(helperVar); do != "" {
		os.Exit(help(do))
	}
	os.Exit(m.Run())
}

func help(do string) (code int) {
	what, arg, _ := strings.Cut(do, " ")
	var err error
	switch what {
	case "exit":
		_, err = fmt.Sscan(arg, &code)
	case "print": // on both streams in turn
		for i, word := range strings.Fields(arg) {
			fmt.Fprintln([]*os.File{os.Stdout, os.Stderr}[i%2], word)
		}
	case "copy":
		_, err = io.Copy(os.Stdout, os.Stdin)
	case "where":
		var dir string
		dir, err = os.Getwd()
		fmt.Println(filepath.ToSlash(dir), os.Getenv("A"), os.Getenv("HOME") != "" || os.Getenv("USERPROFILE") != "" || runtime.GOOS == "windows")
	case "wait":
		fmt.Println("waits")
		time.Sleep(time.Minute)
	case "leave": // a process that waits behind
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), helperVar+"=wait")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		err = cmd.Start()
	case "write": // NAME=CONTENT...
		for _, f := range strings.Fields(arg) {
			name, content, _ := strings.Cut(f, "=")
			err = errors.Join(err, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644))
		}
	case "remove":
		err = os.RemoveAll(arg)
	case "replace":
		err = errors.Join(os.RemoveAll(arg), os.WriteFile(arg, []byte("file"), 0o644))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	return code
}

// A client talks with a server without a sandbox that runs in this process.
type client struct {
	t     *testing.T
	in    *wire.Reader
	to    io.Writer
	ended bool // the end of the input was sent
}

func newClient(t *testing.T) *client {
	t.Helper()
	theirIn, to := io.Pipe()
	from, theirOut := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- servePlain(theirIn, theirOut) }()
	t.Cleanup(func() {
		to.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	marker := make([]byte, len(wire.Marker))
	if _, err := io.ReadFull(from, marker); err != nil || string(marker) != wire.Marker {
		t.Fatalf("it begins with %q, %v", marker, err)
	}
	c := &client{t: t, in: wire.NewReader(from), to: to}
	if kind, b, err := c.in.Next(); err != nil || kind != wire.KindHello {
		t.Fatalf("it greets with %q %s, %v", kind, b, err)
	}
	return c
}

// ask sends a request, and what follows it, and gives what comes back, by kind.
func (c *client) ask(req wire.Request, send func(io.Writer) error) (reply wire.Reply, got map[wire.Kind][]byte) {
	c.t.Helper()
	if err := wire.WriteJSON(c.to, wire.KindRequest, req); err != nil {
		c.t.Fatal(err)
	}
	if send != nil {
		if err := send(c.to); err != nil {
			c.t.Fatal(err)
		}
	}
	got = map[wire.Kind][]byte{}
	for {
		kind, b, err := c.in.Next()
		if err != nil {
			c.t.Fatal(err)
		}
		if kind == wire.KindReply {
			if err := json.Unmarshal(b, &reply); err != nil {
				c.t.Fatal(err)
			}
			return reply, got
		}
		if kind == wire.KindInput && !c.ended { // it wants the end of its input
			if err := wire.Write(c.to, wire.KindInput, nil); err != nil {
				c.t.Fatal(err)
			}
		}
		got[kind] = append(got[kind], b...)
	}
}

// process is this program, which does something in a directory.
func process(t *testing.T, dir, do string) executor.Process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := executor.Process{Argv: []string{program}, Dir: filepath.ToSlash(dir), Env: []string{helperVar + "=" + do, "A=b c"}}
	if uid := os.Getuid(); uid > 0 {
		p.UID, p.GID = uid, os.Getgid()
	}
	return p
}

// run runs a process and gives what it prints.
func (c *client) run(p executor.Process, send func(io.Writer) error) (wire.Reply, string) {
	c.t.Helper()
	reply, got := c.ask(wire.Request{Run: &wire.Run{Process: p, Input: send != nil}}, send)
	return reply, strings.ReplaceAll(string(got[wire.KindOutput]), "\r\n", "\n")
}

func TestProcess(t *testing.T) {
	c := newClient(t)
	dir := t.TempDir()
	for _, test := range []struct {
		do, want string
		code     int
	}{
		{"print one two three four", "one\ntwo\nthree\nfour\n", 0},
		{"exit 3", "", 3},
		{"copy", "", 0}, // of nothing
		{"leave", "", 0},
	} {
		reply, out := c.run(process(t, dir, test.do), nil)
		code := 0
		if reply.Exit != nil {
			code = reply.Exit.Code
		}
		if out = strings.TrimSuffix(out, "waits\n"); out != test.want || code != test.code || reply.Err != "" || reply.Start != "" {
			t.Errorf("%s: printed %q, %+v", test.do, out, reply)
		}
	}
	made := filepath.Join(dir, "made", "here")
	want := filepath.ToSlash(made) + " b c true\n"
	if reply, out := c.run(process(t, made, "where"), nil); reply != (wire.Reply{}) || !strings.EqualFold(out, want) {
		t.Errorf("printed %q, want %q, %+v", out, want, reply)
	}
	for range 2 { // the second is not confused by the first
		c.ended = true
		reply, out := c.run(process(t, dir, "copy"), func(w io.Writer) error {
			return errors.Join(wire.Write(w, wire.KindInput, []byte("typed ")), wire.Write(w, wire.KindInput, []byte("words")), wire.Write(w, wire.KindInput, nil))
		})
		if out != "typed words" || reply != (wire.Reply{}) {
			t.Errorf("copied %q, %+v", out, reply)
		}
		c.ended = false
		reply, _ = c.run(process(t, dir, "exit 3"), func(w io.Writer) error { return wire.Write(w, wire.KindInput, []byte("never read")) })
		if reply.Exit == nil || reply.Exit.Code != 3 {
			t.Errorf("got %+v", reply)
		}
	}
	p := process(t, dir, "print x")
	p.Argv = []string{"no-such-program"}
	if reply, _ := c.run(p, nil); !strings.Contains(reply.Start, "no-such-program") {
		t.Errorf("got %+v", reply)
	}
	p = process(t, dir, "print x")
	p.Env = append(p.Env, "B=\x00")
	if reply, _ := c.run(p, nil); !strings.Contains(reply.Start, "zero byte") {
		t.Errorf("got %+v", reply)
	}
}

// A process that takes too long is ended with all that it has started.
func TestTimeout(t *testing.T) {
	c := newClient(t)
	p := process(t, t.TempDir(), "wait")
	p.Limits.Timeout = 500 * time.Millisecond
	start := time.Now()
	reply, _ := c.run(p, nil)
	if reply.Exit == nil || reply.Exit.Reason != executor.TimedOut || reply.Exit.Limit != "500ms" || time.Since(start) > 30*time.Second {
		t.Errorf("got %+v after %v", reply, time.Since(start))
	}
}

// tarOf is the frames of a tar.
func tarOf(t *testing.T, headers ...tar.Header) func(io.Writer) error {
	return func(w io.Writer) error {
		tw := tar.NewWriter(wire.FrameWriter{W: w, Kind: wire.KindTar})
		for _, h := range headers {
			content := h.Linkname
			h.Uid, h.Gid = os.Getuid(), os.Getgid()
			if runtime.GOOS == "windows" {
				h.Uid, h.Gid = 0, 0
			}
			if h.Typeflag == tar.TypeReg {
				h.Size, h.Linkname = int64(len(content)), ""
			}
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
			if h.Typeflag == tar.TypeReg {
				if _, err := io.WriteString(tw, content); err != nil {
					return err
				}
			}
		}
		return errors.Join(tw.Close(), wire.Write(w, wire.KindTar, nil))
	}
}

func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content, Mode: 0o644, ModTime: time.Unix(1e9, 0)}
}

func directory(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: time.Unix(1e9, 0)}
}

// contents are all files in a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		all[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestUnpack(t *testing.T) {
	c := newClient(t)
	dir := t.TempDir()
	unpack := func(headers ...tar.Header) {
		t.Helper()
		reply, _ := c.ask(wire.Request{Unpack: &wire.Unpack{Dir: filepath.ToSlash(dir)}}, tarOf(t, headers...))
		if reply != (wire.Reply{}) {
			t.Fatalf("got %+v", reply)
		}
	}
	unpack(directory("a"), file("a/x", "1"), file("a/y", "2"), directory("b"), file("b/z", "3"), file("f", "4"),
		tar.Header{Typeflag: tar.TypeLink, Name: "a/same", Linkname: "a/x"})
	i, err := os.Stat(filepath.Join(dir, "a"))
	if err != nil || !i.ModTime().Equal(time.Unix(1e9, 0)) {
		t.Errorf("a is of %v, %v", i.ModTime(), err)
	}
	unpack(file("a/.wh.x", ""), file("b/.wh..wh..opq", ""), file("b/new", "5"), directory("f"), file("f/g", "6"))
	want := map[string]string{"a/y": "2", "a/same": "1", "b/new": "5", "f/g": "6"}
	if got := contents(t, dir); !maps.Equal(got, want) {
		t.Errorf("there is %v, want %v", got, want)
	}
	// A directory that is a link stays one.
	link := filepath.Join(dir, "link")
	if err := os.Symlink("a", link); err != nil {
		t.Logf("no links here: %v", err)
	} else if i, err := os.Stat(link); err != nil || !i.IsDir() {
		t.Logf("links to directories lead nowhere here (Wine): %v", err)
	} else {
		unpack(directory("link"), file("link/through", "7"))
		if b, err := os.ReadFile(filepath.Join(dir, "a", "through")); err != nil || string(b) != "7" {
			t.Errorf("got %q, %v", b, err)
		}
	}
	// After a bad tar the next request is understood.
	reply, _ := c.ask(wire.Request{Unpack: &wire.Unpack{Dir: filepath.ToSlash(dir)}}, func(w io.Writer) error {
		return errors.Join(wire.Write(w, wire.KindTar, bytes.Repeat([]byte("no tar "), 1000)), wire.Write(w, wire.KindTar, []byte("more")), wire.Write(w, wire.KindTar, nil))
	})
	if reply.Err == "" {
		t.Error("it unpacks what is no tar")
	}
	unpack(file("last", "8"))
}

func TestFiles(t *testing.T) {
	c := newClient(t)
	dir := t.TempDir()
	if passing(dir) { // it is in memory, which is left out: this package's directory is on a disk
		here, err := os.Getwd()
		if err == nil {
			dir, err = os.MkdirTemp(here, "files-")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o640), os.Mkdir(filepath.Join(dir, "d"), 0o755)); err != nil {
		t.Fatal(err)
	}
	slashed := filepath.ToSlash(dir)
	if runtime.GOOS == "windows" {
		slashed = slashed[2:] // without the drive
	}
	name := []byte(strings.TrimPrefix(slashed, "/"))
	list := func(name []byte, dir bool) (all []wire.File) {
		t.Helper()
		reply, got := c.ask(wire.Request{List: &wire.List{Name: name, Dir: dir}}, nil)
		if reply != (wire.Reply{}) {
			t.Fatalf("got %+v", reply)
		}
		if err := json.Unmarshal(got[wire.KindFiles], &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	all := list(name, true)
	slices.SortFunc(all, func(a, b wire.File) int { return bytes.Compare(a.Name, b.Name) })
	if len(all) != 2 || string(all[0].Name) != "d" || all[0].Type != tar.TypeDir || string(all[1].Name) != "f" || all[1].Type != tar.TypeReg || all[1].Size != 7 {
		t.Errorf("listed %+v", all)
	}
	if mode := all[1].Mode; mode != 0o640 && (runtime.GOOS != "windows" || mode != 0o644) {
		t.Errorf("the file has mode %o", mode)
	}
	file := append(slices.Clone(name), "/f"...)
	if one := list(file, false); len(one) != 1 || one[0].Size != 7 {
		t.Errorf("listed %+v", one)
	}
	if none := list(append(slices.Clone(name), "/none"...), false); len(none) != 1 || none[0].Type != 0 {
		t.Errorf("listed %+v", none)
	}
	if reply, got := c.ask(wire.Request{Read: &wire.Read{Name: file}}, nil); reply != (wire.Reply{}) || string(got[wire.KindOutput]) != "content" {
		t.Errorf("read %q, %+v", got, reply)
	}
	if reply, _ := c.ask(wire.Request{Read: &wire.Read{Name: name}}, nil); reply.Err == "" {
		t.Error("it reads a directory")
	}
}

// A cache is there for one process, hides what the disk has, and what has changed in it is sent.
func TestCaches(t *testing.T) {
	c := newClient(t)
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	fresh := filepath.Join(dir, "not", "yet")
	if err := errors.Join(os.Mkdir(there, 0o755), os.WriteFile(filepath.Join(there, "disk"), []byte("disk"), 0o644)); err != nil {
		t.Fatal(err)
	}
	mount := func(number int, target string, headers ...tar.Header) {
		t.Helper()
		u := &wire.Unpack{Dir: filepath.ToSlash(target), Cache: &wire.CacheMount{Number: number, UID: os.Getuid(), GID: os.Getgid()}}
		if reply, _ := c.ask(wire.Request{Unpack: u}, tarOf(t, headers...)); reply != (wire.Reply{}) {
			t.Fatalf("got %+v", reply)
		}
	}
	change := func(got map[wire.Kind][]byte) map[string]string {
		t.Helper()
		all := map[string]string{}
		for r := bytes.NewReader(got[wire.KindTar]); ; {
			tr := tar.NewReader(r)
			for {
				h, err := tr.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(tr)
				if err != nil {
					t.Fatal(err)
				}
				if h.Typeflag == tar.TypeReg {
					all[h.Name] = string(b)
				}
			}
			if r.Len() == 0 {
				return all
			}
		}
	}
	mount(0, there, file("old", "old"), file("gone", "x"), directory("sub"), file("sub/gone", "x"))
	mount(1, fresh)
	p := process(t, there, "write old=new! added=a ../not/yet/made=m ../not/beside=b")
	reply, got := c.ask(wire.Request{Run: &wire.Run{Process: p}}, nil)
	want := map[string]string{"old": "new!", "added": "a", "made": "m"}
	if sent := change(got); reply != (wire.Reply{}) || !maps.Equal(sent, want) {
		t.Errorf("changed are %v, want %v; %+v, %s", sent, want, reply, got[wire.KindOutput])
	}
	if after := contents(t, dir); !maps.Equal(after, map[string]string{"there/disk": "disk", "not/beside": "b"}) {
		t.Errorf("the disk has %v", after)
	}
	mount(0, there, file("old", "old"), directory("sub"), file("sub/gone", "x"))
	reply, got = c.ask(wire.Request{Run: &wire.Run{Process: process(t, dir, "remove there/sub")}}, nil)
	if sent := change(got); reply != (wire.Reply{}) || !maps.Equal(sent, map[string]string{".wh.sub": ""}) {
		t.Errorf("changed are %v; %+v, %s", sent, reply, got[wire.KindOutput])
	}
	// A directory that becomes a file.
	mount(0, there, directory("sub"), file("sub/gone", "x"))
	reply, got = c.ask(wire.Request{Run: &wire.Run{Process: process(t, dir, "replace there/sub")}}, nil)
	if sent := change(got); reply != (wire.Reply{}) || !maps.Equal(sent, map[string]string{"sub": "file"}) {
		t.Errorf("changed are %v; %+v, %s", sent, reply, got[wire.KindOutput])
	}
	// A file cannot be hidden by a directory, and the tar is read all the same.
	u := &wire.Unpack{Dir: filepath.ToSlash(filepath.Join(there, "disk")), Cache: &wire.CacheMount{}}
	if reply, _ := c.ask(wire.Request{Unpack: u}, tarOf(t, file("x", strings.Repeat("x", 1<<20)))); !strings.Contains(reply.Start, "no directory") {
		t.Errorf("got %+v", reply)
	}
}

// A cache is unpacked into its own directory, whatever links its layers have left there.
func TestCacheLinks(t *testing.T) {
	c := newClient(t)
	dir := t.TempDir()
	there, outside := filepath.Join(dir, "there"), filepath.Join(dir, "outside")
	if err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "f"), []byte("data"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("outside", filepath.Join(dir, "link")); err != nil {
		t.Skipf("no links here: %v", err)
	}
	link := tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../outside", Mode: 0o777, ModTime: time.Unix(1e9, 0)}
	for name, second := range map[string][]tar.Header{
		"a directory in place of a link":     {directory("l"), file("l/f", "new"), file("l/g", "new")},
		"what has replaced it hides the old": {directory("l"), file("l/.wh..wh..opq", "")},
		"a file beyond it":                   {file("l/g", "new")},
		"a mark beyond it":                   {file("l/.wh.f", "")},
	} {
		u := &wire.Unpack{Dir: filepath.ToSlash(there), Cache: &wire.CacheMount{UID: os.Getuid(), GID: os.Getgid()}}
		if reply, _ := c.ask(wire.Request{Unpack: u}, tarOf(t, link)); reply != (wire.Reply{}) {
			t.Fatalf("%s: got %+v", name, reply)
		}
		u.Cache = nil
		reply, _ := c.ask(wire.Request{Unpack: u}, tarOf(t, second...))
		if got := contents(t, outside); !maps.Equal(got, map[string]string{"f": "data"}) {
			t.Fatalf("%s: outside are %v", name, got)
		}
		if second[0].Typeflag == tar.TypeDir && reply != (wire.Reply{}) || second[0].Typeflag != tar.TypeDir && reply.Err == "" {
			t.Errorf("%s: got %+v", name, reply)
		}
		if reply, _ := c.ask(wire.Request{Run: &wire.Run{Process: process(t, dir, "exit 0")}}, nil); reply != (wire.Reply{}) {
			t.Errorf("%s: got %+v", name, reply)
		}
	}
}
