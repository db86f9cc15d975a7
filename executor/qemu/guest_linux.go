package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// A guest is a machine that has booted from a disk, with obx's agent in it: the disk's own, or one that was put there by ssh. It does one thing at
// a time.
type guest struct {
	e      *Executor
	m      *machine
	memory int64  // of m
	login  *login // nil if the disk has the agent
	free   *semaphore.Weighted
}

func (g *guest) close() {
	if g.login != nil {
		g.login.close()
	}
}

// ask is the machine's, after whatever else is asked.
func (g *guest) ask(ctx context.Context, req wire.Request, send func(io.Writer) error, handle func(wire.Kind, []byte) error) error {
	if err := g.free.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer g.free.Release(1)
	_, err := g.m.exchange(ctx, req, send, handle)
	return err
}

// sync has all that was written put on the disk.
func (g *guest) sync(ctx context.Context) error {
	return g.ask(ctx, wire.Request{Freeze: &wire.Freeze{}}, nil, nil)
}

// process runs a process of a step. The error is as of executor.Root.
func (g *guest) process(ctx context.Context, p executor.Process, out io.Writer) error {
	if err := g.free.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer g.free.Release(1)
	if l := p.Limits; g.m.plain && (l.Memory > 0 || l.CPUs > 0 || l.PIDs > 0) {
		g.e.warn("limits of memory, processors and processes do not apply in machines without a sandbox: they have what the machine has")
	}
	if g.m.plain && p.Terminal {
		return g.login.terminal(ctx, p)
	}
	return g.e.run(ctx, g.m, g.memory, p, out)
}

// maxListed is how much a machine may say of one directory, in bytes. Tests have less patience.
var maxListed = 256 << 20

// maxFrame is how much of a list comes at once, in bytes: an agent describes no more than a thousand files in one frame.
const maxFrame = 8 << 20

// list describes a file, or those in a directory.
func (g *guest) list(ctx context.Context, name string, dir bool) (all []wire.File, err error) {
	size := 0
	err = g.ask(ctx, wire.Request{List: &wire.List{Name: []byte(name), Dir: dir}}, nil, func(k wire.Kind, b []byte) error {
		if k != wire.KindFiles {
			return fmt.Errorf("the machine's agent sends %q out of place", k)
		}
		if size += len(b); size > maxListed || len(b) > maxFrame || len(all) > maxListed/100 {
			return errors.New("a directory's list is too long")
		}
		var more []wire.File
		if err := json.Unmarshal(b, &more); err != nil {
			return fmt.Errorf("the machine's agent: %w", err)
		}
		all = append(all, more...)
		return nil
	})
	return all, err
}

// read writes what a file has to out.
func (g *guest) read(ctx context.Context, name string, out io.Writer) error {
	return g.ask(ctx, wire.Request{Read: &wire.Read{Name: []byte(name)}}, nil, func(k wire.Kind, b []byte) error {
		if k != wire.KindOutput {
			return fmt.Errorf("the machine's agent sends %q out of place", k)
		}
		_, err := out.Write(b)
		return err
	})
}

// addLayer unpacks a layer directory in the machine.
func (g *guest) addLayer(ctx context.Context, dir string) error {
	err := g.ask(ctx, wire.Request{Unpack: &wire.Unpack{Dir: "/"}}, sendLayer(ctx, dir), nil)
	if err != nil {
		return fmt.Errorf("copy files into the machine: %w", err)
	}
	return nil
}

// sendLayer sends the tar of a layer directory in frames.
func sendLayer(ctx context.Context, dir string) func(io.Writer) error {
	return func(w io.Writer) error {
		if err := layers.WriteChange(ctx, wire.FrameWriter{W: w, Kind: wire.KindTar}, dir); err != nil {
			return err
		}
		return wire.Write(w, wire.KindTar, nil)
	}
}

// reach finds the way into a machine: its agent, if the disk has it, else by ssh. An sshd may answer before the agent, if the system starts it
// first: so it is seen first whether there is one to come.
func (r *diskRoot) reach(ctx context.Context, o Guest, addr string) (*guest, error) {
	limit, m := r.e.options.BootTimeout, r.m
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	g := &guest{e: r.e, m: m, memory: r.memory, free: semaphore.NewWeighted(1)}
	linux := !r.e.foreign

	var greeted chan error
	greet := func() {
		answer := make(chan error, 1)
		greeted = answer
		go func() {
			err := m.greeting(waiting, limit)
			if err == nil {
				err = m.begin(ctx)
			}
			answer <- err
		}()
	}
	if linux {
		greet()
	}
	type answer struct {
		l   *login
		err error
	}
	var answered chan answer
	if o.Key != "" {
		answered = make(chan answer, 1)
		go func() {
			l, err := o.dial(waiting, addr, limit, m.ended)
			answered <- answer{l, err}
		}()
	} else {
		defer time.AfterFunc(keyless, func() {
			r.e.warn("a disk image without obx's agent is reached by ssh: give the private key with --qemu-ssh-key")
		}).Stop()
	}

	var agentErr, loginErr error
	var carried chan error // ends with the agent that ssh has brought
	has := false           // the disk has an agent
	for {
		select {
		case err := <-greeted:
			if err == nil {
				if answered != nil { // nobody waits for it any more
					go func() {
						if late := <-answered; late.l != nil {
							late.l.close()
						}
					}()
				}
				if carried != nil {
					go func() { m.fail(<-carried) }()
				}
				return g, nil
			}
			greeted, agentErr = nil, err
			if g.login == nil && answered == nil {
				var late *bootError
				if loginErr == nil && errors.As(err, &late) {
					late.console = "(no agent has greeted, and there is no --qemu-ssh-key)"
				}
				return nil, cmp.Or(loginErr, err)
			}
		case a := <-answered:
			answered = nil
			if a.err != nil {
				if loginErr = a.err; greeted == nil {
					return nil, loginErr
				}
				continue // the agent may still come
			}
			g.login = a.l
			if linux {
				setup, done := timely(ctx, limit)
				has, agentErr = g.login.hasAgent(setup)
				done()
			}
		case agentErr = <-carried: // without a greeting
			stop()
			<-greeted // it reads the port no longer
			greeted = nil
		}
		if g.login == nil || has && greeted != nil || carried != nil && greeted != nil {
			continue // it comes
		}
		if linux && carried == nil && agentErr == nil || has && greeted == nil && carried == nil {
			setup, done := timely(ctx, limit)
			if has { // one of another obx, or one that does not work
				agentErr = g.login.stopAgent(setup)
			}
			if agentErr == nil || !has {
				carried, agentErr = g.login.carryAgent(setup, r.e.options.Arch)
			}
			done()
			if agentErr == nil {
				if greeted == nil {
					greet()
				}
				continue
			}
		}
		if greeted != nil {
			stop()
			<-greeted
		}
		if err := r.goPlain(ctx, g, agentErr); err != nil {
			g.close()
			return nil, err
		}
		return g, nil
	}
}

// timely ends what an sshd that has let obx in does not do in time.
func timely(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, &bootError{limit: limit, console: "(it lets obx in by ssh, and then runs nothing)"})
}

// goPlain has the agent without a sandbox answer.
func (r *diskRoot) goPlain(ctx context.Context, g *guest, why error) error {
	if why != nil {
		r.e.warn(fmt.Sprintf("steps run without a sandbox in a machine, since its agent cannot make one: %v", why))
	}
	setup, done := timely(ctx, r.e.options.BootTimeout)
	s, err := g.login.startPlain(setup, r.e.options.OS, r.e.options.Arch)
	done()
	if err == nil {
		g.m.talkTo(s)
		err = g.m.greeting(ctx, r.e.options.BootTimeout)
	}
	if err != nil {
		return fmt.Errorf("start obx's agent in the machine: %w", err)
	}
	return nil
}

// keyless is how long a machine without a key for ssh may boot before the user is told of that way.
const keyless = time.Minute
