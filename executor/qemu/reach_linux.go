package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"
)

// reach finds the way into a machine that has booted from a disk: the disk's own agent, else one that ssh brings, else one without a
// sandbox that talks by ssh.
func (r *diskRoot) reach(ctx context.Context, o Guest, addr string) (*guest, error) {
	g := &guest{e: r.e, m: r.m, memory: r.memory, free: semaphore.NewWeighted(1)}
	if err := r.reachAgent(ctx, g, o, addr); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (r *diskRoot) reachAgent(ctx context.Context, g *guest, o Guest, addr string) (err error) {
	limit := r.e.options.BootTimeout
	if r.e.foreign {
		if g.login, err = o.dial(ctx, addr, limit, r.m.ended); err != nil {
			return err
		}
		return r.goPlain(ctx, g)
	}
	own := r.m.hail(ctx, limit)
	defer own.end()
	if g.login, err = r.firstAnswer(ctx, own, o, addr); err != nil || g.login == nil {
		return err
	}
	why := r.bringAgent(ctx, g, own)
	var late *bootError
	if why == nil || ctx.Err() != nil || !r.m.alive() || errors.As(why, &late) {
		return why
	}
	own.end()
	if err := r.goPlain(ctx, g); err != nil {
		return fmt.Errorf("%w; an agent with a sandbox does not work either: %v", err, why)
	}
	r.e.warn(fmt.Sprintf("steps run without a sandbox in a machine, since its agent cannot make one: %v", why))
	return nil
}

// A hail waits for the greeting of an agent at a machine's ports.
type hail struct {
	stop func()
	done chan struct{}
	err  error // once done: why no agent answers
}

func (m *machine) hail(ctx context.Context, limit time.Duration) *hail {
	waiting, stop := context.WithCancel(ctx)
	h := &hail{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		if h.err = m.greeting(waiting, limit); h.err == nil {
			h.err = m.begin(ctx)
		}
	}()
	return h
}

// end waits no longer.
func (h *hail) end() {
	h.stop()
	<-h.done
}

// keyless is how long a machine without a key for ssh may boot before the user is told of that way.
const keyless = time.Minute

// firstAnswer waits for the disk's own agent or for sshd: an sshd may answer before the agent, if the system starts it first. The login is
// nil if the agent has answered.
func (r *diskRoot) firstAnswer(ctx context.Context, own *hail, o Guest, addr string) (*login, error) {
	if o.Key == "" {
		defer time.AfterFunc(keyless, func() {
			r.e.warn("a disk image without obx's agent is reached by ssh: give the private key with --qemu-ssh-key")
		}).Stop()
		<-own.done
		var late *bootError
		if errors.As(own.err, &late) {
			late.console = "(no agent has greeted, and there is no --qemu-ssh-key)"
		}
		return nil, own.err
	}
	dialling, stop := context.WithCancel(ctx)
	defer stop()
	var l *login
	var err error
	dialled := make(chan struct{})
	go func() {
		defer close(dialled)
		l, err = o.dial(dialling, addr, r.e.options.BootTimeout, r.m.ended)
	}()
	select {
	case <-own.done:
		if own.err == nil {
			stop()
		}
		<-dialled
	case <-dialled:
		if err == nil {
			return l, nil
		}
		<-own.done // it may still come
	}
	if own.err == nil {
		if l != nil {
			l.close()
		}
		return nil, nil
	}
	return l, err
}

// agentGrace is what a disk's own agent has to greet, once sshd lets obx in. One that comes later gives way.
var agentGrace = 30 * time.Second

// bringAgent has an agent with a sandbox answer in a Linux machine that ssh lets obx into. The error is why none does.
func (r *diskRoot) bringAgent(ctx context.Context, g *guest, own *hail) error {
	m, limit := g.m, r.e.options.BootTimeout
	setup, done := timely(ctx, limit)
	has, err := g.login.hasAgent(setup)
	done()
	if err != nil {
		return err
	}
	if has {
		select {
		case <-own.done:
		case <-time.After(agentGrace):
		}
	}
	own.end()
	if own.err == nil {
		return nil
	}
	setup, done = timely(ctx, limit)
	defer done()
	if has { // one of another obx, or one that does not work, or comes late
		if err := g.login.stopAgent(setup); err != nil {
			return err
		}
		m.drain()
	}
	ended, err := g.login.carryAgent(setup, r.e.options.Arch)
	if err != nil {
		return err
	}
	carried := m.hail(ctx, limit)
	select {
	case <-carried.done:
		var late *bootError
		switch {
		case carried.err == nil:
			go func() {
				err := <-ended
				select {
				case <-m.ended: // with QEMU, which tells more
				case <-time.After(time.Second):
					m.fail(err)
				}
			}()
		case errors.As(carried.err, &late):
			late.console = "(obx's agent was started by ssh, and has not greeted)"
		}
		return carried.err
	case err := <-ended: // without a greeting, unless one is still on its way
		select {
		case <-carried.done:
			if carried.err != nil {
				return carried.err
			}
		case <-time.After(time.Second):
		}
		carried.end()
		return err
	}
}

// goPlain has the agent without a sandbox answer.
func (r *diskRoot) goPlain(ctx context.Context, g *guest) error {
	setup, done := timely(ctx, r.e.options.BootTimeout)
	s, err := g.login.startPlain(setup, r.e.options.OS, r.e.options.Arch)
	done()
	if err == nil {
		g.m.talkTo(s)
		err = g.m.greeting(ctx, r.e.options.BootTimeout)
	}
	if err == nil {
		err = g.m.begin(ctx)
	}
	if err != nil {
		return fmt.Errorf("start obx's agent in the machine: %w", err)
	}
	return nil
}

// timely ends what an sshd that has let obx in does not do in time.
func timely(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, &bootError{limit: limit, console: "(it lets obx in by ssh, and then runs nothing)"})
}
