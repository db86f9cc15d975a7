package guest

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
)

// A Guest is a machine that has booted from a disk, with obx's agent in it: the disk's own, or one that was put there by ssh. Its methods may be called
// at the same time: it does one thing after the other.
type Guest struct {
	agent *Agent
	login *login // nil if the disk has the agent
	free  *semaphore.Weighted
}

// Close ends the connection by ssh, if there is one. The machine is its owner's to end.
func (g *Guest) Close() {
	if g.login != nil {
		g.login.close()
	}
}

// Use calls a function that uses the agent or the terminal, after whatever else the guest does. The error is the function's, or why ctx has ended before.
func (g *Guest) Use(ctx context.Context, do func() error) error {
	if err := g.free.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer g.free.Release(1)
	return do()
}

// ask is the agent's, after whatever else is asked.
func (g *Guest) ask(ctx context.Context, req wire.Request, handle func(wire.Kind, []byte) error) error {
	return g.Use(ctx, func() error {
		_, err := g.agent.Ask(ctx, req, nil, handle)
		return err
	})
}

// Sync has all that was written put on the disk.
func (g *Guest) Sync(ctx context.Context) error {
	return g.ask(ctx, wire.Request{Freeze: &wire.Freeze{}}, nil)
}

// ShutDown has the system write all that it holds back, and end. It does not wait for the end.
func (g *Guest) ShutDown(ctx context.Context) error {
	g.agent.ending.Store(true)
	return g.ask(ctx, wire.Request{Freeze: &wire.Freeze{ShutDown: true}}, nil)
}

// Terminal runs a process on a terminal of a machine whose agent is plain, which cannot make one. It is called by Use. The error is as of
// [executor.Root].
func (g *Guest) Terminal(ctx context.Context, p executor.Process) error {
	if limit := p.Limits.Timeout; limit > 0 {
		late, stop := context.WithTimeoutCause(ctx, limit, &executor.ExitError{Reason: executor.TimedOut, Limit: limit.String()})
		defer stop()
		ctx = late
	}
	return g.login.terminal(ctx, p)
}

// AddLayer puts the files of a layer directory into the machine.
func (g *Guest) AddLayer(ctx context.Context, dir string) error {
	err := g.Use(ctx, func() error {
		_, err := g.agent.Unpack(ctx, wire.Unpack{Dir: "/"}, dir)
		return err
	})
	if err != nil {
		return fmt.Errorf("copy files into the machine: %w", err)
	}
	return nil
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
func (g *Guest) list(ctx context.Context, name string, dir bool) (all []wire.File, err error) {
	size := 0
	err = g.ask(ctx, wire.Request{List: &wire.List{Name: []byte(name), Dir: dir}}, func(k wire.Kind, b []byte) error {
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
func (g *Guest) read(ctx context.Context, name string, out io.Writer) error {
	return g.ask(ctx, wire.Request{Read: &wire.Read{Name: []byte(name)}}, func(k wire.Kind, b []byte) error {
		if k != wire.KindOutput {
			return fmt.Errorf("the machine's agent sends %q out of place", k)
		}
		_, err := out.Write(b)
		return err
	})
}
