package guest

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/ocurrent/obx/executor/qemu/internal/guesttest"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// A scriptedGuest is a stand-in for a machine that has booted from a disk: agents at its port and an sshd, of which a test says what they do.
type scriptedGuest struct {
	agent   []wire.Hello // how the disk's agent greets, each time that it is started; none: there is no agent
	late    bool         // the agent waits until it is asked for by ssh
	mute    bool         // it never greets
	tardy   bool         // it greets when it is stopped
	carried *wire.Hello  // how an agent that was put there greets; nil: it ends at once
	plain   *wire.Hello  // how one without a sandbox does; nil: it ends at once
	sshd    func() error // nil: anybody is let in; else the error of each login
	broken  string       // what cannot be done by ssh
	stuck   string       // what never ends by ssh

	control io.ReadWriter
	asked   chan struct{} // closed when ssh has looked for the agent
	mu      sync.Mutex
	did     []string // by ssh
}

// boot is the machine that the guest is in.
func (s *scriptedGuest) boot(t *testing.T) (*Agent, *guesttest.Machine) {
	t.Helper()
	ours, theirs := guesttest.Pair(t)
	s.control, s.asked = theirs, make(chan struct{})
	m := guesttest.NewMachine(t)
	go func() {
		<-m.Ended()
		theirs.Close()
	}()
	return NewAgent(m, ours, nil), m
}

// serveAgent is an agent: it greets, and does what it is asked to.
func serveAgent(rw io.ReadWriter, h wire.Hello) {
	if wire.WriteJSON(rw, wire.KindHello, h) != nil || h.Err != "" || h.Version != wire.Version {
		return
	}
	for r := wire.NewReader(rw); ; {
		if _, _, err := r.Next(); err != nil {
			return
		}
		if wire.WriteJSON(rw, wire.KindReply, wire.Reply{}) != nil {
			return
		}
	}
}

// exec is the machine's shell.
func (s *scriptedGuest) exec(command string, rw io.ReadWriter) (status uint32) {
	what := "something else"
	for _, w := range []struct{ part, name string }{
		{"command -v obx-agent", "look"}, {"systemctl stop", "stop"}, {"mount -t tmpfs", "put"}, {"test -x", "put"}, {"agent serve", "carry"}, {" plain", "plain"},
	} {
		if strings.Contains(command, w.part) {
			what = w.name
			break
		}
	}
	s.mu.Lock()
	s.did = append(s.did, what)
	s.mu.Unlock()
	if what == s.stuck {
		_, _ = io.Copy(io.Discard, rw)
		select {}
	}
	if what == s.broken {
		return 1
	}
	switch what {
	case "look":
		close(s.asked)
		if len(s.agent) == 0 {
			return 1
		}
	case "stop":
		if s.tardy {
			_ = wire.WriteJSON(s.control, wire.KindHello, s.agent[0])
		}
	case "put":
		_, _ = io.Copy(io.Discard, rw)
	case "carry":
		if s.carried == nil {
			return 1
		}
		serveAgent(s.control, *s.carried)
		_, _ = io.Copy(io.Discard, rw)
	case "plain":
		if s.plain == nil {
			return 1
		}
		_, _ = io.WriteString(rw, "Welcome!\n"+wire.Marker)
		serveAgent(rw, *s.plain)
	}
	return 0
}

func (s *scriptedGuest) session(ch ssh.NewChannel) {
	c, requests, err := ch.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	for r := range requests {
		var exec struct{ Command string }
		if r.Type != "exec" || ssh.Unmarshal(r.Payload, &exec) != nil {
			_ = r.Reply(false, nil)
			continue
		}
		_ = r.Reply(true, nil)
		go ssh.DiscardRequests(requests)
		status := struct{ Status uint32 }{s.exec(exec.Command, c)}
		_, _ = c.SendRequest("exit-status", false, ssh.Marshal(status))
		return
	}
}

// listen starts sshd, and writes the key to a file.
func (s *scriptedGuest) listen(t *testing.T) (addr, key string) {
	t.Helper()
	config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
		if s.sshd != nil {
			return nil, s.sshd()
		}
		return nil, nil
	}}
	addr, private := serveSSH(t, config, s.session)
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	key = filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return addr, key
}

func TestReach(t *testing.T) {
	good, old := wire.Hello{Version: wire.Version}, wire.Hello{Version: wire.Version - 1}
	broken := wire.Hello{Version: wire.Version, Err: "no cgroups"}
	grace := agentGrace
	t.Cleanup(func() { agentGrace = grace })
	agentGrace = 100 * time.Millisecond
	refuse := func() error { return errors.New("not with this key") }
	for name, test := range map[string]struct {
		guest   *scriptedGuest
		keyless bool
		os      string
		limit   time.Duration // to boot
		did     string        // by ssh
		plain   bool
		warning string
		err     string
	}{
		"the disk's agent, no key":       {guest: &scriptedGuest{agent: []wire.Hello{good}}, keyless: true},
		"sshd answers first":             {guest: &scriptedGuest{agent: []wire.Hello{good}, late: true}, did: "look"},
		"sshd refuses":                   {guest: &scriptedGuest{agent: []wire.Hello{good}, sshd: refuse}},
		"neither":                        {guest: &scriptedGuest{sshd: refuse}, limit: 300 * time.Millisecond, err: "unable to authenticate"},
		"nothing without a key":          {guest: &scriptedGuest{}, keyless: true, limit: 300 * time.Millisecond, err: "did not boot within 300ms"},
		"there, and silent":              {guest: &scriptedGuest{agent: []wire.Hello{good}, mute: true, carried: &good}, did: "look stop put carry"},
		"greets as it stops":             {guest: &scriptedGuest{agent: []wire.Hello{good}, tardy: true, carried: &good}, did: "look stop put carry"},
		"of another version, and late":   {guest: &scriptedGuest{agent: []wire.Hello{old}, tardy: true, carried: &good}, did: "look stop put carry"},
		"brought":                        {guest: &scriptedGuest{carried: &good}, did: "look put carry"},
		"of another version":             {guest: &scriptedGuest{agent: []wire.Hello{old}, carried: &good}, did: "look stop put carry"},
		"of another version, no key":     {guest: &scriptedGuest{agent: []wire.Hello{old}}, keyless: true, err: "obx base agent"},
		"broken":                         {guest: &scriptedGuest{agent: []wire.Hello{broken}, carried: &good}, did: "look stop put carry"},
		"cannot be stopped":              {guest: &scriptedGuest{agent: []wire.Hello{old}, plain: &good, broken: "stop"}, did: "look stop put plain", plain: true, warning: "without a sandbox"},
		"cannot make a sandbox":          {guest: &scriptedGuest{carried: &broken, plain: &good}, did: "look put carry plain", plain: true, warning: "no cgroups"},
		"ends":                           {guest: &scriptedGuest{plain: &good}, did: "look put carry plain", plain: true, warning: "agent in the machine has ended"},
		"has no room":                    {guest: &scriptedGuest{broken: "put", plain: &good}, did: "look put put", err: "put obx's agent there"},
		"runs nothing":                   {guest: &scriptedGuest{stuck: "look"}, limit: 300 * time.Millisecond, did: "look", err: "runs nothing"},
		"another system":                 {guest: &scriptedGuest{plain: &good}, os: "openbsd", did: "put plain", plain: true},
		"another system, and it refuses": {guest: &scriptedGuest{plain: &good, sshd: refuse}, os: "openbsd", err: "unable to authenticate"},
		"another version by ssh":         {guest: &scriptedGuest{plain: &old}, os: "openbsd", did: "put plain", err: "another obx"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := test.guest
			a, m := s.boot(t)
			addr, key := s.listen(t)
			if test.keyless {
				key = ""
			}
			go func() {
				if s.mute || s.tardy {
					return
				}
				if s.late {
					<-s.asked
					time.Sleep(10 * time.Millisecond)
				}
				for _, h := range s.agent {
					serveAgent(s.control, h)
				}
			}()
			var warnings []string
			w := Way{
				Addr: addr, OS: "linux", Arch: "amd64", Foreign: test.os != "", Limit: time.Minute,
				Warn: func(msg string) { warnings = append(warnings, msg) },
			}
			if test.os != "" {
				w.OS = test.os
			}
			if test.limit > 0 {
				w.Limit = test.limit
			}
			w.Account = Account{Key: key}.OrDefault(w.OS)
			g, err := Reach(t.Context(), a, w)
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("the error is %v", err)
			}
			if err == nil {
				defer func() {
					g.Close()
					if test.plain || strings.HasSuffix(test.did, "carry") {
						<-m.Ended() // with the session of its agent
					}
				}()
				if err := g.Sync(t.Context()); err != nil || a.Plain() != test.plain {
					t.Errorf("it answers %v, plain: %v", err, a.Plain())
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if did := strings.Join(s.did, " "); did != test.did {
				t.Errorf("by ssh: %q, want %q", did, test.did)
			}
			if got := strings.Join(warnings, "; "); test.warning == "" && got != "" || !strings.Contains(got, test.warning) {
				t.Errorf("warned %q, want %q", got, test.warning)
			}
		})
	}
}

// A build that is cancelled while it waits for a machine is told so, and of nothing else.
func TestReachCancelled(t *testing.T) {
	for _, stuck := range []string{"look", "put", "stop", "plain"} {
		t.Run(stuck, func(t *testing.T) {
			t.Parallel()
			s := &scriptedGuest{stuck: stuck}
			if stuck == "stop" {
				s.agent = []wire.Hello{{}}
			}
			a, _ := s.boot(t)
			addr, key := s.listen(t)
			for _, h := range s.agent {
				go serveAgent(s.control, h)
			}
			w := Way{Addr: addr, OS: "linux", Arch: "amd64", Foreign: stuck == "plain", Limit: time.Minute, Warn: func(msg string) { t.Error(msg) }}
			if w.Foreign {
				w.OS = "openbsd"
			}
			w.Account = Account{Key: key}.OrDefault(w.OS)
			ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errors.New("enough"))
			defer cancel()
			if err := ends(t, func() error { _, err := Reach(ctx, a, w); return err }); err == nil || !strings.Contains(err.Error(), "enough") {
				t.Errorf("got %v", err)
			}
		})
	}
}
