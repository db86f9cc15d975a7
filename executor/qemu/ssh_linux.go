package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
)

func (g Guest) orDefault() Guest {
	if g.User == "" {
		g.User = "root"
	}
	if g.Port == 0 {
		g.Port = 22
	}
	return g
}

// A shellGuest is a Linux machine behind ssh.
type shellGuest struct {
	client  *ssh.Client
	sudo    string
	warn    func(string)
	scratch bool // mountsDir is there
}

func (g *shellGuest) close() { g.client.Close() }

func (g *shellGuest) sync(ctx context.Context) error {
	_, err := quiet(ctx, g, "sync", nil)
	return err
}

// mountsDir is a tmpfs of the guest, with what must not get onto its disk.
const mountsDir = "/run/obx"

// signer reads the private key.
func (g Guest) signer() (ssh.Signer, error) {
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

// dial waits until sshd lets obx in. The machine's host key means nothing: nobody else listens on the port, and the disk is
// where the key comes from.
func (g Guest) dial(ctx context.Context, addr string, limit time.Duration, ended <-chan struct{}) (*shellGuest, error) {
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
			s := &shellGuest{client: client}
			if g.User != "root" {
				s.sudo = "sudo -n -- "
			}
			return s, nil
		}
		last = err
		if strings.Contains(err.Error(), "unable to authenticate") {
			return nil, fmt.Errorf("log in to the machine as %s: %w", g.User, err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ended:
			return nil, errMonitor
		case <-time.After(wait):
		}
	}
	return nil, &bootError{limit: limit, console: fmt.Sprintf("(no answer by ssh: %v)", last)}
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

// quote quotes a word for the guest's shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// sshPatience is what a guest has to end a session that nobody wants any more. Then the connection ends, and with it all that waits for it.
const sshPatience = 2 * time.Second

// session opens a session that ends with ctx. The caller ends it too.
func (g *shellGuest) session(ctx context.Context) (_ *ssh.Session, end func(), err error) {
	var s *ssh.Session
	opened, ended := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		// To close a session is to write to the guest, which may wait too.
		late := time.AfterFunc(sshPatience, func() { g.client.Close() })
		defer late.Stop()
		<-opened
		if s != nil {
			s.Close()
			<-ended
		}
	})
	s, err = g.client.NewSession()
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

// run runs a script of the guest's shell as root. Its error is *ssh.ExitError if the script failed. It ends when out takes no more.
func (g *shellGuest) run(ctx context.Context, script string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s, end, err := g.session(ctx)
	if err != nil {
		return err
	}
	defer end()
	one := &oneWriter{w: out, failed: cancel}
	s.Stdin, s.Stdout, s.Stderr = in, one, one
	err = s.Run(g.sudo + "/bin/sh -c " + quote(script))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// process runs a process of a step.
func (g *shellGuest) process(ctx context.Context, p executor.Process, out io.Writer) error {
	if len(p.Argv) == 0 {
		return &executor.StartError{Msg: "no command"}
	}
	if l := p.Limits; l.Memory > 0 || l.CPUs > 0 || l.PIDs > 0 {
		g.warn("limits of memory, processors and processes do not apply in machines that are reached by ssh: they have what the machine has")
	}
	if len(p.Caches()) > 0 {
		g.warn("cache mounts are empty in machines that are reached by ssh")
	}
	undo, err := g.mounts(ctx, p.Mounts)
	if err != nil {
		return err
	}
	limited, stop := ctx, context.CancelFunc(func() {})
	if p.Limits.Timeout > 0 {
		limited, stop = context.WithTimeout(ctx, p.Limits.Timeout)
	}
	defer stop()
	err = exitOf(g.start(limited, p, out))
	if limited.Err() != nil && ctx.Err() == nil {
		return rootfs.TimedOut(p.Limits)
	}
	if err == nil && undo != "" {
		_, err = quiet(ctx, g, undo, nil)
	}
	return err
}

// start runs a process to its end, on a terminal if it wants one.
func (g *shellGuest) start(ctx context.Context, p executor.Process, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s, end, err := g.session(ctx)
	if err != nil {
		return err
	}
	defer end()
	if p.Terminal {
		out = p.Stdin
	}
	one := &oneWriter{w: out, failed: cancel}
	s.Stdout, s.Stderr = one, one
	var stdin io.WriteCloser
	if p.Stdin != nil {
		if stdin, err = s.StdinPipe(); err != nil {
			return err
		}
	}
	in, err := openInput(p, inputEnd{
		put:    func(b []byte) error { _, err := stdin.Write(b); return err },
		end:    func() error { return stdin.Close() },
		resize: func(rows, cols uint16) error { return s.WindowChange(int(rows), int(cols)) },
	})
	if err != nil {
		return err
	}
	defer in.close()
	if p.Terminal {
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
	}
	err = s.Run(g.sudo + "/bin/sh -c " + quote(g.script(p)))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// script is a process as a command line of the guest's shell, which does not return. The hostname is the process's only, where the guest
// has unshare.
func (g *shellGuest) script(p executor.Process) string {
	hostname := p.Hostname
	if hostname == "" {
		hostname = "builder"
	}
	var b strings.Builder
	dir := quote(p.Dir)
	fmt.Fprintf(&b, "umask 022; mkdir -p %s && cd %s || exit 125; ", dir, dir)
	fmt.Fprintf(&b, `h=$(sed -n 's/^[^:]*:[^:]*:%d:[^:]*:[^:]*:\([^:]*\).*/\1/p' /etc/passwd 2>/dev/null | sed q); `, p.UID)
	fmt.Fprintf(&b, `if command -v unshare >/dev/null; then set -- unshare -u /bin/sh -c 'hostname "$0" 2>/dev/null; exec "$@"' %s; else set --; fi; exec "$@" `, quote(hostname))
	if p.UID != 0 || p.GID != 0 {
		fmt.Fprintf(&b, "setpriv --reuid=%d --regid=%d --clear-groups ", p.UID, p.GID)
	}
	b.WriteString(`env -i HOME="${h:-/}"`)
	for _, v := range p.Env {
		b.WriteString(" " + quote(v))
	}
	for _, a := range p.Argv {
		b.WriteString(" " + quote(a))
	}
	return b.String()
}

// exitOf tells how a process ended.
func exitOf(err error) error {
	var exit *ssh.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if s := exit.Signal(); s != "" {
		return &executor.ExitError{Reason: executor.Signaled, Signal: signalNumber(s)}
	}
	// A shell that became the process says so with 128 more, as everybody's does.
	return &executor.ExitError{Reason: executor.Exited, Code: exit.ExitStatus()}
}

func signalNumber(name string) int {
	for n, s := range []string{1: "HUP", 2: "INT", 3: "QUIT", 4: "ILL", 6: "ABRT", 8: "FPE", 9: "KILL", 10: "USR1", 11: "SEGV", 12: "USR2", 13: "PIPE", 14: "ALRM", 15: "TERM"} {
		if s == name {
			return n
		}
	}
	if n, err := strconv.Atoi(name); err == nil {
		return n
	}
	return 9
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

// mounts puts secrets and caches in their places, and returns the script that takes them away.
func (g *shellGuest) mounts(ctx context.Context, list []executor.Mount) (undo string, err error) {
	if len(list) > 0 && !g.scratch {
		if _, err := quiet(ctx, g, fmt.Sprintf("mkdir -p %s && mount -t tmpfs -o mode=700,nosuid,nodev obx %s", mountsDir, mountsDir), nil); err != nil {
			return "", err
		}
		g.scratch = true
	}
	for i, m := range list {
		target := path.Clean(m.Target)
		if !path.IsAbs(target) || target == "/" {
			return undo, &executor.StartError{Msg: fmt.Sprintf("cannot mount on %q", m.Target)}
		}
		// What is made for the mount goes with it: "made" is the topmost directory that was not there.
		made := fmt.Sprintf("%s/made%d", mountsDir, i)
		prepare := fmt.Sprintf("set -e; d=%s; top=; while [ ! -e \"$d\" ]; do top=$d; d=${d%%/*}; [ -n \"$d\" ] || d=/; done; printf %%s \"$top\" > %s; ", quote(target), made)
		undo = fmt.Sprintf("umount %s; t=$(cat %s); [ -z \"$t\" ] || rm -rf \"$t\"; rm -f %s; ", quote(target), made, made) + undo
		var in io.Reader
		if m.Secret != nil {
			mode := m.Secret.Mode.Perm()
			if mode == 0 {
				mode = 0o644
			}
			file := fmt.Sprintf("%s/secret%d", mountsDir, i)
			prepare += fmt.Sprintf("mkdir -p %s; [ -e %s ] || : > %s; umask 077; cat > %s; chmod %o %s; mount --bind %s %s; mount -o remount,bind,ro %s",
				quote(path.Dir(target)), quote(target), quote(target), file, mode, file, file, quote(target), quote(target))
			undo += "rm -f " + file + "; "
			in = strings.NewReader(string(m.Secret.Data))
		} else {
			prepare += fmt.Sprintf("mkdir -p %s; mount -t tmpfs -o nosuid,nodev,mode=755 cache %s", quote(target), quote(target))
		}
		if _, err := quiet(ctx, g, prepare, in); err != nil {
			return undo, err
		}
	}
	if undo != "" {
		undo = "set -e; " + undo // no file below a mount is removed that stays
	}
	return undo, nil
}
