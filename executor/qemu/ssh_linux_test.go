package qemu

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/ocurrent/obx/executor"
)

// dialHostile connects to an sshd that treats sessions as a hostile guest may. accept is given each channel that is asked for.
func dialHostile(t *testing.T, accept func(ssh.NewChannel)) *shellGuest {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		c, channels, requests, err := ssh.NewServerConn(conn, config)
		if err != nil {
			return
		}
		defer c.Close()
		go ssh.DiscardRequests(requests)
		for ch := range channels {
			go accept(ch)
		}
	}()
	client, err := dialSSH(t.Context(), l.Addr().String(), &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return &shellGuest{client: client, warn: func(s string) { t.Error(s) }}
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
			g := dialHostile(t, accept)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			err := ends(t, func() error { return g.process(ctx, executor.Process{Argv: []string{"true"}, Dir: "/"}, io.Discard) })
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A session ends when what it prints is too much.
func TestHostileOutput(t *testing.T) {
	tooMuch := errors.New("too much")
	n := 0
	err := ends(t, func() error {
		return dialHostile(t, endless).run(t.Context(), "find", nil, writerFunc(func(p []byte) (int, error) {
			if n += len(p); n > 1<<20 {
				return 0, tooMuch
			}
			return len(p), nil
		}))
	})
	if !errors.Is(err, tooMuch) {
		t.Errorf("got %v after %d bytes", err, n)
	}
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

// A file is read to the size that the machine has given, and what it sends beyond that is an error.
func TestHostileFile(t *testing.T) {
	tree := &guestTree{ctx: t.Context(), guest: dialHostile(t, endless), tmp: t.TempDir(), dirs: map[string][]fs.DirEntry{}, infos: map[string]*guestInfo{}}
	i, err := parseFound(strings.Split("f 644 0 0 1000 1.5 - big", " "))
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
}
