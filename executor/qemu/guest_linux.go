package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/executor/qemu/words"
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

// What of a list comes in one frame: maxFrame bytes, which describe maxFiles files, as an agent has it. A few bytes can describe a file that
// takes hundreds in memory.
const (
	maxFrame = 8 << 20
	maxFiles = 1000
)

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
		var err error
		all, err = appendFiles(all, b, dir)
		return err
	})
	return all, err
}

// appendFiles reads a frame of a list: of a directory, in which all files are there, or of a file that may be gone.
func appendFiles(all []wire.File, b []byte, dir bool) ([]wire.File, error) {
	in := json.NewDecoder(bytes.NewReader(b))
	t, err := in.Token()
	if err == nil && t != nil && t != json.Delim('[') {
		err = errors.New("it is no list")
	}
	for n := 0; err == nil && t != nil && in.More(); n++ {
		if n == maxFiles {
			return all, errors.New("the machine's agent describes too many files at once")
		}
		var f wire.File
		if err = in.Decode(&f); err == nil && dir && (f.Type == 0 || len(f.Name) == 0) {
			err = errors.New("it speaks of a file without a name or a type")
		}
		if err == nil {
			all = append(all, f)
		}
	}
	if err == nil && t != nil {
		_, err = in.Token() // the list's end
	}
	if err != nil {
		return all, nonsense(err)
	}
	return all, nil
}

// decode reads what a machine's agent has said, which may be anything.
func decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return nonsense(err)
	}
	return nil
}

// nonsense is the error of what cannot be decoded. Package json repeats what it has read.
func nonsense(err error) error {
	return fmt.Errorf("the machine's agent: %s", words.Printable(err.Error()))
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
