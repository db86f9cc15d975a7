package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

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
	if l := p.Limits; g.m.plain && (l.Memory > 0 || l.CPUs > 0 || l.PIDs > 0 || l.Disk > 0 || l.Inodes > 0) {
		g.e.warn("limits of memory, processors, processes and the disk do not apply in machines without a sandbox: they have what the machine has")
	}
	if g.m.plain && p.Terminal {
		if limit := p.Limits.Timeout; limit > 0 {
			late, stop := context.WithTimeoutCause(ctx, limit, &executor.ExitError{Reason: executor.TimedOut, Limit: limit.String()})
			defer stop()
			ctx = late
		}
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
