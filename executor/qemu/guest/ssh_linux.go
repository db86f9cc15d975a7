package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/agents"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/executor/qemu/words"
)

// OrDefault is the account with what is not said in it, for a machine of an operating system.
func (g Account) OrDefault(os string) Account {
	if g.User == "" {
		g.User = "root"
		if os == "windows" {
			g.User = "Administrator"
		}
	}
	if g.Port == 0 {
		g.Port = 22
	}
	return g
}

// signer reads the private key.
func (g Account) signer() (ssh.Signer, error) {
	b, err := os.ReadFile(g.Key)
	if err != nil {
		return nil, err
	}
	s, err := ssh.ParsePrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("private key %s: %w", g.Key, err)
	}
	return s, nil
}

// A login is a connection to a machine's sshd. All that it is for is to put obx's agent there and to start it.
type login struct {
	client *ssh.Client
	user   string
	put    bool   // a Linux machine has the agent
	plain  string // the agent without a sandbox, as the login's shell takes it
}

func (l *login) close() { l.client.Close() }

// dial waits until sshd lets obx in. The machine's host key means nothing: nobody else listens on the port, and the disk is
// where the key comes from.
func (g Account) dial(ctx context.Context, addr string, limit time.Duration, ended <-chan struct{}) (*login, error) {
	key, err := g.signer()
	if err != nil {
		return nil, err
	}
	config := &ssh.ClientConfig{
		User: g.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 30 * time.Second,
	}
	deadline := time.Now().Add(limit)
	var last error
	for wait := 50 * time.Millisecond; time.Now().Before(deadline); wait = min(2*wait, time.Second) {
		client, err := dialSSH(ctx, addr, config)
		if err == nil {
			return &login{client: client, user: g.User}, nil
		}
		last = err
		if strings.Contains(err.Error(), "unable to authenticate") {
			return nil, fmt.Errorf("log in to the machine as %s: %w", g.User, err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ended:
			return nil, errors.New("nothing answers by ssh any more")
		case <-time.After(wait):
		}
	}
	return nil, &BootError{Limit: limit, Console: fmt.Sprintf("(no answer by ssh: %v)", last)}
}

func dialSSH(ctx context.Context, addr string, config *ssh.ClientConfig) (*ssh.Client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// QEMU accepts before anybody listens in the guest.
	_ = conn.SetDeadline(time.Now().Add(config.Timeout))
	c, chans, reqs, err := ssh.NewClientConn(conn, addr, config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return ssh.NewClient(c, chans, reqs), nil
}

// quote quotes a word for a shell as Unix has it.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// asRoot is a script as a command that root runs.
func (l *login) asRoot(os, script string) string {
	command := "/bin/sh -c " + quote(script)
	switch {
	case l.user == "root":
		return command
	case os == "openbsd":
		return "doas -n " + command
	}
	return "sudo -n -- " + command
}

// sshPatience is what a guest has to end a session that nobody wants any more. Then the connection ends, and with it all that waits for it.
const sshPatience = 2 * time.Second

// session opens a session that ends with ctx. The caller ends it too.
func (l *login) session(ctx context.Context) (_ *ssh.Session, end func(), err error) {
	var s *ssh.Session
	opened, ended := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		// To close a session is to write to the guest, which may wait too.
		late := time.AfterFunc(sshPatience, func() { l.client.Close() })
		defer late.Stop()
		<-opened
		if s != nil {
			s.Close()
			<-ended
		}
	})
	s, err = l.client.NewSession()
	close(opened)
	if err != nil {
		stop()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, err
	}
	return s, func() {
		s.Close()
		close(ended)
		stop()
	}, nil
}

// script runs a script as root, and waits for its end. in may be nil.
func (l *login) script(ctx context.Context, os, script string, in io.Reader) error {
	s, end, err := l.session(ctx)
	if err != nil {
		return err
	}
	defer end()
	var out words.Tail // package ssh writes both streams to it, one after the other: it has a lock
	s.Stdin, s.Stdout, s.Stderr = in, &out, &out
	err = s.Run(l.asRoot(os, script))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("in the machine: %w: %s", err, words.Last(out.String(), 3))
	}
	return nil
}

// hasAgent reports whether the disk of a Linux machine has obx's agent.
func (l *login) hasAgent(ctx context.Context) (bool, error) {
	err := l.script(ctx, "linux", `PATH="$PATH:/usr/local/sbin:/usr/sbin"; command -v obx-agent`, nil)
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return false, nil
	}
	return err == nil, err
}

// stopAgent ends the agent that the disk has, one of another version.
func (l *login) stopAgent(ctx context.Context) error {
	return l.script(ctx, "linux", "systemctl stop obx-agent", nil)
}

// putAgent puts the agent into a Linux machine, once.
func (l *login) putAgent(ctx context.Context, arch string) error {
	if l.put {
		return nil
	}
	program, err := agents.Program("linux", arch)
	if err != nil {
		return err
	}
	const dir = wire.CarriedDir
	const script = `set -e; umask 077; mkdir -p ` + dir + `; mount -t tmpfs -o mode=700,nosuid,nodev obx ` + dir + `; cat > ` + dir + `/agent; chmod 700 ` + dir + `/agent`
	if err := l.script(ctx, "linux", script, strings.NewReader(string(program))); err != nil {
		return fmt.Errorf("put obx's agent there: %w", err)
	}
	l.put = true
	return nil
}

// carryAgent starts the agent in a Linux machine that does not have it. It greets by the machine's port as any; ended says when it has ended.
func (l *login) carryAgent(ctx context.Context, arch string) (ended chan error, err error) {
	if err := l.putAgent(ctx, arch); err != nil {
		return nil, err
	}
	var said words.Tail
	s, err := l.start(ctx, l.asRoot("linux", "exec "+wire.CarriedDir+"/agent serve"), func(s *ssh.Session) error {
		s.Stdout, s.Stderr = &said, &said
		return nil
	})
	if err != nil {
		return nil, err
	}
	ended = make(chan error, 1)
	go func() {
		err := s.Wait()
		ended <- fmt.Errorf("obx's agent in the machine has ended (%v): %s", err, words.Last(said.String(), 3))
	}()
	return ended, nil
}

// otherDir is where the agent is kept on the disks of machines that are like Unix, and have no file system in memory.
const otherDir = "/var/obx"

// startPlain starts the agent without a sandbox. It stays on the disk where there is nothing but that: then the next machine has it already.
func (l *login) startPlain(ctx context.Context, os, arch string) (*conversation, error) {
	if os == "linux" {
		if err := l.putAgent(ctx, arch); err != nil {
			return nil, err
		}
		l.plain = l.asRoot(os, "exec "+wire.CarriedDir+`/agent "$@"`) + " agent"
		return l.converse(ctx)
	}
	program, err := agents.Program(os, arch)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(program)
	name := fmt.Sprintf("obx-agent-%x", sum[:8])
	if os == "windows" {
		err = l.putFile(ctx, name+".exe", program)
		l.plain = "cmd /c " + name + ".exe" // the login's shell may be cmd or Cygwin's: it starts in the directory where files are put
	} else {
		file := otherDir + "/" + name
		if l.script(ctx, os, "test -x "+file, nil) != nil {
			put := fmt.Sprintf("set -e; umask 077; mkdir -p %s; cat > %s.new; chmod 700 %s.new; mv %s.new %s", otherDir, file, file, file, file)
			err = l.script(ctx, os, put, strings.NewReader(string(program)))
		}
		l.plain = l.asRoot(os, "exec "+file+` "$@"`) + " agent"
	}
	if err != nil {
		return nil, fmt.Errorf("put obx's agent there: %w", err)
	}
	return l.converse(ctx)
}

// putFile puts a file into the login's directory, unless it is there.
func (l *login) putFile(ctx context.Context, name string, content []byte) (err error) {
	defer l.within(ctx)()
	c, err := sftp.NewClient(l.client)
	if err != nil {
		return err
	}
	defer c.Close()
	if i, err := c.Stat(name); err == nil && i.Size() == int64(len(content)) {
		return nil
	}
	f, err := c.Create(name + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return c.Rename(name+".new", name)
}

// A conversation is a session with an agent.
type conversation struct {
	s    *ssh.Session
	in   io.WriteCloser
	out  io.Reader
	said words.Tail // on its standard error
}

func (l *login) converse(ctx context.Context) (*conversation, error) {
	c := &conversation{}
	s, err := l.start(ctx, l.plain+" plain", func(s *ssh.Session) (err error) {
		s.Stderr = &c.said
		if c.in, err = s.StdinPipe(); err == nil {
			c.out, err = s.StdoutPipe()
		}
		return err
	})
	c.s = s
	return c, err
}

// within ends the connection if ctx ends before done is called.
func (l *login) within(ctx context.Context) (done func()) {
	stop := context.AfterFunc(ctx, func() { l.client.Close() })
	return func() { stop() }
}

// start starts a command in a session that outlives ctx.
func (l *login) start(ctx context.Context, command string, prepare func(*ssh.Session) error) (*ssh.Session, error) {
	defer l.within(ctx)()
	s, err := l.client.NewSession()
	if err == nil {
		if err = prepare(s); err == nil {
			err = s.Start(command)
		}
		if err != nil {
			s.Close()
		}
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return s, err
}

// talkTo has a conversation's agent, which has no sandbox, answer instead of the one at the machine's ports.
func (a *Agent) talkTo(c *conversation) {
	a.Close()
	a.plain = true
	control, theirs := net.Pipe()
	input, theirInput := net.Pipe()
	a.control, a.input, a.in = control, input, wire.NewReader(control)
	// Requests and input go one way, frame by frame.
	var mu sync.Mutex
	forward := func(from net.Conn) {
		defer from.Close()
		for r := wire.NewReader(from); ; {
			kind, b, err := r.Next()
			if err != nil {
				return
			}
			mu.Lock()
			err = wire.Write(c.in, kind, b)
			clear(b) // it may have had secrets
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}
	a.forwarding.Go(func() { forward(theirs) })
	a.forwarding.Go(func() { forward(theirInput) })
	a.forwarding.Go(func() {
		said, err := skipTo(c.out, wire.Marker)
		if err == nil {
			_, _ = io.Copy(theirs, c.out)
		} else {
			c.s.Close()
		}
		if werr := c.s.Wait(); err == nil {
			err = werr
		}
		if !a.ending.Load() {
			select {
			case <-a.m.Ended(): // with QEMU, which tells more
			case <-time.After(time.Second):
				a.m.Fail(fmt.Errorf("obx's agent in the machine has ended (%v): %s", err, words.Last(said+c.said.String(), 3)))
			}
		}
		theirs.Close()
		theirInput.Close()
	})
}

// maxGreeting is how much a login's shell may say before the agent does, in bytes.
const maxGreeting = 64 << 10

// skipTo reads up to the end of some words, and gives what came before.
func skipTo(r io.Reader, words string) (said string, err error) {
	var b []byte
	for one := make([]byte, 1); len(b) < maxGreeting; {
		if _, err := io.ReadFull(r, one); err != nil {
			return string(b), err
		}
		b = append(b, one[0])
		if before, ok := bytes.CutSuffix(b, []byte(words)); ok {
			return string(before), nil
		}
	}
	return string(b), errors.New("something else answers")
}

// terminal runs a process on a terminal of the machine, in a session of its own.
func (l *login) terminal(ctx context.Context, p executor.Process) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s, end, err := l.session(ctx)
	if err != nil {
		return err
	}
	defer end()
	one := &oneWriter{w: p.Stdin, failed: cancel}
	s.Stdout, s.Stderr = one, one
	stdin, err := s.StdinPipe()
	if err != nil {
		return err
	}
	in, err := openInput(p, inputEnd{
		put:    func(b []byte) error { _, err := stdin.Write(b); return err },
		end:    stdin.Close,
		resize: func(rows, cols uint16) error { return s.WindowChange(int(rows), int(cols)) },
	})
	if err != nil {
		return err
	}
	defer in.close()
	rows, cols := in.size()
	kind := "xterm"
	for _, v := range p.Env {
		if t, ok := strings.CutPrefix(v, "TERM="); ok {
			kind = t
		}
	}
	if err := s.RequestPty(kind, int(rows), int(cols), ssh.TerminalModes{}); err != nil {
		return err
	}
	p.Stdin = nil
	b, err := json.Marshal(wire.Run{Process: p})
	if err != nil {
		return err
	}
	err = s.Run(l.plain + " terminal " + base64.StdEncoding.EncodeToString(b))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return &executor.ExitError{Reason: executor.Exited, Code: exit.ExitStatus()}
	}
	return err
}

// A oneWriter takes both of a session's streams and tells of the first error, which package ssh drops.
type oneWriter struct {
	mu     sync.Mutex
	w      io.Writer
	failed func(error)
}

func (o *oneWriter) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.w.Write(p)
	if err != nil {
		o.failed(fmt.Errorf("take what the machine prints: %w", err))
	}
	return n, err
}
