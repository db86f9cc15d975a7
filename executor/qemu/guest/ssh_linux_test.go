package guest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/executor/qemu/internal/guesttest"
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
			m := guesttest.NewMachine(t)
			a := NewAgent(m, nil, nil)
			c, err := l.converse(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			a.talkTo(c)
			go func() { // as the machine's sshd ends with it
				<-m.Ended()
				l.close()
			}()
			tooMuch := errors.New("too much")
			err = ends(t, func() error {
				if err := a.Greet(t.Context(), time.Minute); err != nil {
					return err
				}
				n := 0
				_, err := a.Ask(t.Context(), wire.Request{Freeze: &wire.Freeze{}}, nil, func(wire.Kind, []byte) error {
					if n++; n > 10 {
						return tooMuch
					}
					return nil
				})
				err = m.Why(err)
				a.Close()
				return err
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
func hostileGuest(t *testing.T, answer func(w io.Writer) error) *Guest {
	t.Helper()
	m := guesttest.NewMachine(t)
	ours, theirs := net.Pipe()
	go func() {
		<-m.Ended()
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
	return &Guest{agent: NewAgent(m, ours, nil), free: semaphore.NewWeighted(1)}
}

// What an agent says of files is bounded, and no file is more than it was said to be.
func TestHostileFiles(t *testing.T) {
	says := func(list ...wire.File) func(io.Writer) error {
		return func(w io.Writer) error {
			return errors.Join(wire.WriteJSON(w, wire.KindFiles, list), wire.WriteJSON(w, wire.KindReply, wire.Reply{}))
		}
	}
	open := func(t *testing.T, answer func(io.Writer) error) *tree {
		return hostileGuest(t, answer).Files(t.Context(), t.TempDir()).(*tree)
	}
	defer func(n int) { maxListed = n }(maxListed)
	maxListed = 1 << 20
	dir := &fileInfo{mode: fs.ModeDir}
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
		"path":         {says(wire.File{Name: []byte("../x"), Type: '0'}), "../x"},
		"itself":       {says(wire.File{Name: []byte("."), Type: '5'}), `"."`},
		"device":       {says(wire.File{Name: []byte("null"), Type: '3'}), "null"},
		"mode":         {says(wire.File{Name: []byte("x"), Type: '0', Mode: 1 << 20}), "impossible"},
		"size":         {says(wire.File{Name: []byte("x"), Type: '0', Size: -1}), "impossible"},
	} {
		t.Run(name, func(t *testing.T) {
			files := open(t, test.answer)
			files.infos["dir"] = dir
			err := ends(t, func() error { _, err := files.ReadDir("dir"); return err })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("without end", func(t *testing.T) {
		files := open(t, says(wire.File{Name: []byte("deeper"), Type: '5'}))
		files.infos["."] = dir
		name := "."
		err := ends(t, func() error {
			for {
				list, err := files.ReadDir(name)
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
		files := open(t, says(wire.File{Name: []byte("a"), Type: '5'}, wire.File{Name: []byte("b"), Type: '5'}))
		files.infos["."] = dir
		defer func(n int) { maxNames = n }(maxNames)
		maxNames = 10
		for _, name := range []string{".", "a", "b", "a/a"} {
			if _, err := files.ReadDir(name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := files.ReadDir("a/b"); err == nil || !strings.Contains(err.Error(), "too many files") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("grown", func(t *testing.T) {
		files := open(t, func(w io.Writer) error {
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
		files.infos["big"] = i
		err = ends(t, func() error { _, err := files.Open("big"); return err })
		if err == nil || !strings.Contains(err.Error(), "has grown") {
			t.Errorf("got %v", err)
		}
		if left, err := os.ReadDir(files.tmp); err != nil || len(left) > 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
	})
}
