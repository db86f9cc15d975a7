package guest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"
)

// A Way is how to reach a machine that has booted from a disk.
type Way struct {
	Account
	Addr string // on the host, which leads to the machine's sshd

	OS, Arch string
	Foreign  bool          // its system cannot have an agent with a sandbox
	Limit    time.Duration // to boot, and for each thing that is done by ssh
	Warn     func(msg string)
}

// Reach finds the way into a machine that has booted from a disk: the disk's own agent, else one that ssh brings, else one without a
// sandbox that talks by ssh. a is the agent at the machine's ports, from now on the one that answers. The error is a *BootError if
// nothing does within the limit.
func Reach(ctx context.Context, a *Agent, w Way) (*Guest, error) {
	g := &Guest{agent: a, free: semaphore.NewWeighted(1)}
	if err := (&reacher{Way: w, g: g}).reach(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// A reacher is one call of Reach.
type reacher struct {
	Way
	g *Guest
}

func (r *reacher) reach(ctx context.Context) (err error) {
	g, a := r.g, r.g.agent
	if r.Foreign {
		if g.login, err = r.dial(ctx, r.Addr, r.Limit, a.m.Ended()); err != nil {
			return err
		}
		return r.goPlain(ctx)
	}
	own := a.hail(ctx, r.Limit)
	defer own.end()
	if g.login, err = r.firstAnswer(ctx, own); err != nil || g.login == nil {
		return err
	}
	why := r.bringAgent(ctx, own)
	var late *BootError
	if why == nil || ctx.Err() != nil || hasEnded(a.m) || errors.As(why, &late) {
		return why
	}
	own.end()
	if err := r.goPlain(ctx); err != nil {
		return fmt.Errorf("%w; an agent with a sandbox does not work either: %v", err, why)
	}
	r.Warn(fmt.Sprintf("steps run without a sandbox in a machine, since its agent cannot make one: %v", why))
	return nil
}

// A hail waits for the greeting of an agent at a machine's ports.
type hail struct {
	stop func()
	done chan struct{}
	err  error // once done: why no agent answers
}

func (a *Agent) hail(ctx context.Context, limit time.Duration) *hail {
	waiting, stop := context.WithCancel(ctx)
	h := &hail{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		if h.err = a.Greet(waiting, limit); h.err == nil {
			h.err = a.Begin(ctx)
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
func (r *reacher) firstAnswer(ctx context.Context, own *hail) (*login, error) {
	if r.Key == "" {
		defer time.AfterFunc(keyless, func() {
			r.Warn("a disk image without obx's agent is reached by ssh: give the private key with --qemu-ssh-key")
		}).Stop()
		<-own.done
		var late *BootError
		if errors.As(own.err, &late) {
			late.Console = "(no agent has greeted, and there is no --qemu-ssh-key)"
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
		l, err = r.dial(dialling, r.Addr, r.Limit, r.g.agent.m.Ended())
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
func (r *reacher) bringAgent(ctx context.Context, own *hail) error {
	g, a, limit := r.g, r.g.agent, r.Limit
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
		a.drain()
	}
	ended, err := g.login.carryAgent(setup, r.Arch)
	if err != nil {
		return err
	}
	carried := a.hail(ctx, limit)
	select {
	case <-carried.done:
		var late *BootError
		switch {
		case carried.err == nil:
			go func() {
				err := <-ended
				select {
				case <-a.m.Ended(): // with QEMU, which tells more
				case <-time.After(time.Second):
					a.m.Fail(err)
				}
			}()
		case errors.As(carried.err, &late):
			late.Console = "(obx's agent was started by ssh, and has not greeted)"
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
func (r *reacher) goPlain(ctx context.Context) error {
	a := r.g.agent
	setup, done := timely(ctx, r.Limit)
	s, err := r.g.login.startPlain(setup, r.OS, r.Arch)
	done()
	if err == nil {
		a.talkTo(s)
		err = a.Greet(ctx, r.Limit)
	}
	if err == nil {
		err = a.Begin(ctx)
	}
	if err != nil {
		return fmt.Errorf("start obx's agent in the machine: %w", err)
	}
	return nil
}

// timely ends what an sshd that has let obx in does not do in time.
func timely(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, &BootError{Limit: limit, Console: "(it lets obx in by ssh, and then runs nothing)"})
}

func hasEnded(m Machine) bool {
	select {
	case <-m.Ended():
		return true
	default:
		return false
	}
}
