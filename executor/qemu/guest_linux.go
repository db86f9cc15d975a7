package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// A guest is a machine that has booted from a disk, by the way that leads into it: obx's agent, or ssh.
type guest interface {
	// process runs a process of a step. The error is as of executor.Root.
	process(ctx context.Context, p executor.Process, out io.Writer) error

	// run runs a script of the machine's shell as root, and ends when out takes no more.
	run(ctx context.Context, script string, in io.Reader, out io.Writer) error

	// sync has all that was written put on the disk.
	sync(ctx context.Context) error

	close()
}

// quiet runs a script of obx's own.
func quiet(ctx context.Context, g guest, script string, in io.Reader) (string, error) {
	var out tail
	err := g.run(ctx, script, in, &out)
	if err != nil {
		err = fmt.Errorf("in the machine: %w: %s", err, lastLines(out.String(), 3))
	}
	return out.String(), err
}

// addLayer unpacks a layer in the machine: what it hides goes first.
func addLayer(ctx context.Context, g guest, dir string) error {
	hidden, err := hiddenBy(dir)
	if err != nil {
		return err
	}
	in, out := io.Pipe()
	go func() { out.CloseWithError(layers.WriteChange(ctx, out, dir)) }()
	defer in.Close()
	script := hidden + "tar -C / -x -p -f - --numeric-owner --same-owner --xattrs --xattrs-include='*' --keep-directory-symlink --exclude='.wh.*'"
	if _, err := quiet(ctx, g, script, in); err != nil {
		return fmt.Errorf("copy files into the machine: %w", err)
	}
	return nil
}

// An agentGuest is a machine whose disk has obx's agent. It does one thing at a time.
type agentGuest struct {
	e      *Executor
	m      *machine
	memory int64 // of m
	free   *semaphore.Weighted
}

// greet waits for the agent of a machine.
func (e *Executor) greet(ctx context.Context, m *machine, memory int64, limit time.Duration) (*agentGuest, error) {
	if err := m.greeting(ctx, limit); err != nil {
		var late *bootError
		if errors.As(err, &late) {
			late.console = "(no agent has greeted, and there is no --qemu-ssh-key)"
		}
		return nil, err
	}
	return &agentGuest{e: e, m: m, memory: memory, free: semaphore.NewWeighted(1)}, m.begin(ctx)
}

func (g *agentGuest) close() {}

func (g *agentGuest) sync(ctx context.Context) error {
	if err := g.free.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer g.free.Release(1)
	_, err := g.m.ask(ctx, wire.Request{Freeze: &wire.Freeze{}}, nil)
	return err
}

func (g *agentGuest) process(ctx context.Context, p executor.Process, out io.Writer) error {
	if err := g.free.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer g.free.Release(1)
	err := g.e.run(ctx, g.m, g.memory, p, out)
	var exit *executor.ExitError
	var start *executor.StartError
	if err != nil && !errors.As(err, &exit) && !errors.As(err, &start) {
		g.m.fail(err) // the agent has more to say that nobody listens to
	}
	return err
}

func (g *agentGuest) run(ctx context.Context, script string, in io.Reader, out io.Writer) error {
	p := executor.Process{
		Argv: []string{"/bin/sh", "-c", script}, Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Network: executor.NetworkHost,
	}
	if in == nil {
		return g.process(ctx, p, out)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p.Stdin = r
	fed := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, in)
		w.Close()
		fed <- err
	}()
	err = g.process(ctx, p, out)
	r.Close()
	if err != nil {
		return err // it may have read less than there was
	}
	return <-fed
}

// reach finds the way into a machine: its agent if it has one, else its sshd. That may answer before the agent, if the system starts it first.
func (r *diskRoot) reach(ctx context.Context, addr string) (guest, error) {
	limit := r.e.options.BootTimeout
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	type answer struct {
		g   guest
		err error
	}
	agent, shell := make(chan answer, 1), make(chan answer, 1)
	m, memory := r.m, r.memory
	go func() {
		g, err := r.e.greet(ctx, m, memory, limit)
		agent <- answer{g, err}
	}()
	waiting := 1
	if o := r.e.options.Guest.orDefault(); o.Key != "" {
		waiting++
		go func() {
			g, err := o.dial(ctx, addr, limit, m.ended)
			if err != nil {
				shell <- answer{nil, err}
				return
			}
			g.warn = r.e.warn
			shell <- answer{g, nil}
		}()
	} else {
		defer time.AfterFunc(keyless, func() {
			r.e.warn("a disk image without obx's agent is reached by ssh: give the private key with --qemu-ssh-key")
		}).Stop()
	}
	var other guest // what sshd leads to, while the agent is waited for
	var agentErr, shellErr error
	for ; waiting > 0; waiting-- {
		select {
		case a := <-agent:
			if a.err == nil {
				stop()
				if waiting > 1 {
					go func() {
						if late := <-shell; late.g != nil {
							late.g.close()
						}
					}()
				}
				if other != nil {
					other.close()
				}
				return a.g, nil
			}
			if other != nil {
				r.agentFails(a.err)
				return other, nil
			}
			agentErr = a.err
		case a := <-shell:
			if a.err != nil {
				shellErr = a.err
				continue
			}
			_, none := quiet(ctx, a.g, `PATH="$PATH:/usr/local/sbin:/usr/sbin"; command -v obx-agent`, nil)
			switch {
			case none != nil && agentErr == nil:
				stop()
				<-agent // it reads the port no longer
				return a.g, nil
			case none != nil:
				return a.g, nil
			case agentErr != nil:
				r.agentFails(agentErr)
				return a.g, nil
			}
			other = a.g
		}
	}
	return nil, cmp.Or(shellErr, agentErr)
}

func (r *diskRoot) agentFails(err error) {
	r.e.warn(fmt.Sprintf("a machine is reached by ssh, for its agent does not work: %v", err))
}

// keyless is how long a machine without a key for ssh may boot before the user is told of that way.
const keyless = time.Minute
