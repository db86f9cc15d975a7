package qemu

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/executor/qemu/wire"
)

// serveSSH starts an sshd that gives each channel that is asked for to accept, and tells its address and a private key.
func serveSSH(t *testing.T, config *ssh.ServerConfig, accept func(ssh.NewChannel)) (addr string, key ed25519.PrivateKey) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	serve := func(conn net.Conn) {
		defer conn.Close()
		_, channels, requests, err := ssh.NewServerConn(conn, config)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(requests)
		for ch := range channels {
			go accept(ch)
		}
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return l.Addr().String(), key
}

// dialHostile connects to an sshd that treats sessions as a hostile guest may. accept is given each channel that is asked for.
func dialHostile(t *testing.T, accept func(ssh.NewChannel)) *login {
	t.Helper()
	addr, _ := serveSSH(t, &ssh.ServerConfig{NoClientAuth: true}, accept)
	client, err := dialSSH(t.Context(), addr, &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return &login{client: client, user: "root"}
}

// endless starts a process that prints without end, whatever is asked of it.
func endless(ch ssh.NewChannel) {
	c, requests, err := ch.Accept()
	if err != nil {
		return
	}
	go func() {
		for r := range requests {
			_ = r.Reply(true, nil)
		}
	}()
	for buf := make([]byte, 32<<10); ; {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// ends fails the test if something takes much longer than a guest is given.
func ends(t *testing.T, do func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(sshPatience + 20*time.Second):
		t.Fatal("the guest holds it up")
		return nil
	}
}

func TestHostileSSH(t *testing.T) {
	for name, accept := range map[string]func(ssh.NewChannel){
		"no session": func(ssh.NewChannel) {},
		"no end":     endless,
		"no answer": func(ch ssh.NewChannel) {
			if _, requests, err := ch.Accept(); err == nil {
				for range requests {
					continue
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := dialHostile(t, accept)
			for what, do := range map[string]func(context.Context) error{
				"script":   func(ctx context.Context) error { return l.script(ctx, "linux", "true", nil) },
				"agent":    func(ctx context.Context) error { _, err := l.startPlain(ctx, "openbsd", "amd64"); return err },
				"transfer": func(ctx context.Context) error { return l.putFile(ctx, "file", []byte("content")) },
			} {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if err := ends(t, func() error { return do(ctx) }); err == nil {
					t.Errorf("%s: it went well", what)
				}
			}
		})
	}
}

// asleep is a machine that does nothing.
func asleep(t *testing.T) *machine {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &machine{process: cmd.Process, patience: agentPatience, ended: make(chan struct{})}
	go func() {
		m.status = cmd.Wait()
		close(m.ended)
	}()
	t.Cleanup(func() {
		_ = m.process.Kill()
		<-m.ended
	})
	return m
}

// TestHostileConversation has something else than an agent answer by ssh, or an agent that does not end.
func TestHostileConversation(t *testing.T) {
	var hello bytes.Buffer
	hello.WriteString("Welcome!\n" + wire.Marker)
	if err := wire.WriteJSON(&hello, wire.KindHello, wire.Hello{Version: wire.Version}); err != nil {
		t.Fatal(err)
	}
	var frame bytes.Buffer
	if err := wire.Write(&frame, wire.KindOutput, make([]byte, 1<<10)); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ first, again []byte }{
		"no agent": {nil, []byte("who are you?\n")},
		"endless":  {hello.Bytes(), frame.Bytes()},
	} {
		t.Run(name, func(t *testing.T) {
			l := dialHostile(t, func(ch ssh.NewChannel) {
				c, requests, err := ch.Accept()
				if err != nil {
					return
				}
				for r := range requests {
					_ = r.Reply(true, nil)
					break
				}
				go ssh.DiscardRequests(requests)
				for b := test.first; ; b = test.again {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			})
			m := asleep(t)
			c, err := l.converse(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			m.talkTo(c)
			go func() { // as the machine's sshd ends with it
				<-m.ended
				l.close()
			}()
			tooMuch := errors.New("too much")
			err = ends(t, func() error {
				if err := m.greeting(t.Context(), time.Minute); err != nil {
					return err
				}
				n := 0
				_, err := m.ask(t.Context(), wire.Request{Freeze: &wire.Freeze{}}, func(wire.Kind, []byte) error {
					if n++; n > 10 {
						return tooMuch
					}
					return nil
				})
				return m.why(err)
			})
			want := "something else answers"
			if test.first != nil {
				want = tooMuch.Error()
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// hostileGuest is a machine whose agent answers each request with the same frames.
func hostileGuest(t *testing.T, answer func(w io.Writer) error) *guest {
	t.Helper()
	m := asleep(t)
	ours, theirs := net.Pipe()
	m.control, m.in = ours, wire.NewReader(ours)
	go func() {
		<-m.ended
		theirs.Close()
	}()
	go func() {
		in := wire.NewReader(theirs)
		for {
			if _, _, err := in.Next(); err != nil {
				return
			}
			if err := answer(theirs); err != nil {
				return
			}
		}
	}()
	return &guest{m: m, free: semaphore.NewWeighted(1)}
}

// What an agent says of files is bounded, and no file is more than it was said to be.
func TestHostileFiles(t *testing.T) {
	files := func(list ...wire.File) func(io.Writer) error {
		return func(w io.Writer) error {
			return errors.Join(wire.WriteJSON(w, wire.KindFiles, list), wire.WriteJSON(w, wire.KindReply, wire.Reply{}))
		}
	}
	open := func(t *testing.T, answer func(io.Writer) error) *guestTree {
		return &guestTree{ctx: t.Context(), guest: hostileGuest(t, answer), tmp: t.TempDir(), dirs: map[string][]fs.DirEntry{}, infos: map[string]*guestInfo{}}
	}
	defer func(n int) { maxListed = n }(maxListed)
	maxListed = 1 << 20
	dir := &guestInfo{mode: fs.ModeDir}
	for name, test := range map[string]struct {
		answer func(io.Writer) error
		want   string
	}{
		"endless": {func(w io.Writer) error {
			for b := []byte("[" + strings.Repeat(" ", 1<<18) + "]"); ; {
				if err := wire.Write(w, wire.KindFiles, b); err != nil {
					return err
				}
			}
		}, "too long"},
		"no list":      {func(w io.Writer) error { return wire.Write(w, wire.KindFiles, []byte("x")) }, "agent"},
		"out of place": {func(w io.Writer) error { return wire.Write(w, wire.KindTar, []byte("x")) }, "out of place"},
		"path":         {files(wire.File{Name: []byte("../x"), Type: '0'}), "../x"},
		"itself":       {files(wire.File{Name: []byte("."), Type: '5'}), `"."`},
		"device":       {files(wire.File{Name: []byte("null"), Type: '3'}), "null"},
		"mode":         {files(wire.File{Name: []byte("x"), Type: '0', Mode: 1 << 20}), "impossible"},
		"size":         {files(wire.File{Name: []byte("x"), Type: '0', Size: -1}), "impossible"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := open(t, test.answer)
			tree.infos["dir"] = dir
			err := ends(t, func() error { _, err := tree.ReadDir("dir"); return err })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("without end", func(t *testing.T) {
		tree := open(t, files(wire.File{Name: []byte("deeper"), Type: '5'}))
		tree.infos["."] = dir
		name := "."
		err := ends(t, func() error {
			for {
				list, err := tree.ReadDir(name)
				if err != nil {
					return err
				}
				name = path.Join(name, list[0].Name())
			}
		})
		if !strings.Contains(err.Error(), "too deep") || len(name) < maxPath {
			t.Errorf("after %d bytes of a path: %v", len(name), err)
		}
	})
	t.Run("too many", func(t *testing.T) {
		tree := open(t, files(wire.File{Name: []byte("a"), Type: '5'}, wire.File{Name: []byte("b"), Type: '5'}))
		tree.infos["."] = dir
		defer func(n int) { maxNames = n }(maxNames)
		maxNames = 10
		for _, name := range []string{".", "a", "b", "a/a"} {
			if _, err := tree.ReadDir(name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tree.ReadDir("a/b"); err == nil || !strings.Contains(err.Error(), "too many files") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("grown", func(t *testing.T) {
		tree := open(t, func(w io.Writer) error {
			for {
				if err := wire.Write(w, wire.KindOutput, make([]byte, 600)); err != nil {
					return err
				}
			}
		})
		i, err := infoOf(wire.File{Name: []byte("big"), Type: '0', Size: 1000})
		if err != nil {
			t.Fatal(err)
		}
		tree.infos["big"] = i
		err = ends(t, func() error { _, err := tree.Open("big"); return err })
		if err == nil || !strings.Contains(err.Error(), "has grown") {
			t.Errorf("got %v", err)
		}
		if left, err := os.ReadDir(tree.tmp); err != nil || len(left) > 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
	})
}
