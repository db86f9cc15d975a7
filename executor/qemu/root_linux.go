package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/docker/go-units"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/layerdisk"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

const (
	// maxLayers is how many layers a machine has at most: each costs a mount, and a little in every lookup of a file that is missing.
	maxLayers = 150

	// flattenBlock is how many of the lowest layers become one when there are more.
	flattenBlock = 100

	// ownMemory is what the machine needs beside its processes.
	ownMemory = 192 << 20

	// maxMemory is more than any host has.
	maxMemory = 1 << 44

	// timeoutGrace is what a machine has to end a process itself that has run too long.
	timeoutGrace = 20 * time.Second
)

// A root is a chain of layers, and the machine that has them.
type root struct {
	e     *Executor
	chain rootfs.Chain

	m      *vm.Machine
	memory int64    // of m
	lacks  []string // layer directories that m does not have yet
	depth  int      // layers that m has
	dirty  bool     // m has changes that are not frozen

	tree rootfs.Tree // what Files has given
	copy string      // the change in it, exported
}

// paths makes the chain ready and returns its directories, base first.
func (r *root) paths(ctx context.Context) ([]string, error) {
	paths, added, err := r.chain.Paths(ctx)
	r.lacks = append(r.lacks, added...)
	return paths, err
}

// meta is the metadata of a layer directory, read once.
func (e *Executor) meta(dir string) (*layerdisk.Layer, error) {
	e.mu.Lock()
	l := e.metas[dir]
	e.mu.Unlock()
	if l != nil {
		return l, nil
	}
	l, err := layerdisk.ReadLayer(dir)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.metas[dir] = l
	e.mu.Unlock()
	return l, nil
}

// Run runs a process.
func (r *root) Run(ctx context.Context, p executor.Process, out io.Writer) error {
	if err := r.closeTree(); err != nil {
		return err
	}
	paths, err := r.paths(ctx)
	if err != nil {
		return err
	}
	if err := r.start(ctx, p, paths); err != nil {
		r.end()
		return err
	}
	if err = r.m.SetNetwork(ctx, p.Network == executor.NetworkHost); err == nil {
		err = r.e.run(ctx, r.m, r.memory, p, out)
	}
	var exit *executor.ExitError
	var start *executor.StartError
	switch {
	case err == nil:
		r.dirty = true
	case errors.As(err, &exit) && exit.Reason != executor.TimedOut, errors.As(err, &start):
		r.dirty = false // the machine has dropped it
	default:
		r.end()
	}
	return err
}

// start makes sure that there is a machine with all of the chain that is large enough for a process.
func (r *root) start(ctx context.Context, p executor.Process, paths []string) error {
	size, err := machineMemory(r.e.options.Memory, p.Limits.Memory)
	if err != nil {
		return err
	}
	if r.m != nil && !r.dirty && (r.memory < size || r.depth >= maxLayers) {
		r.end()
	}
	if r.m != nil && r.memory < size {
		return errors.New("a step's later process needs more memory than the machine of its first one has")
	}
	if r.m != nil {
		lacks := make([]string, len(r.lacks))
		for i, d := range r.lacks {
			lacks[i] = r.e.options.Store.LayerPath(d)
		}
		return r.attach(ctx, lacks)
	}
	m, err := r.e.maker.Machine(ctx, size)
	if err != nil {
		return err
	}
	r.m, r.memory, r.depth, r.dirty = m, size, 0, false
	if err := m.Agent.Begin(ctx); err != nil {
		return err
	}
	if len(paths) == 0 {
		paths = []string{r.e.empty}
	}
	return r.attach(ctx, paths)
}

// machineMemory is what a machine has whose processes may have so much: of few sizes, since each is saved.
func machineMemory(least, limit int64) (int64, error) {
	if limit <= least-ownMemory {
		return least, nil
	}
	if limit > maxMemory {
		return 0, fmt.Errorf("a limit of %s of memory is more than a virtual machine can have", units.BytesSize(float64(limit)))
	}
	const unit = 1 << 30
	return (limit + ownMemory + unit - 1) / unit * unit, nil
}

// attach gives the machine more layers.
func (r *root) attach(ctx context.Context, paths []string) error {
	if len(paths) > 0 {
		var list []*layerdisk.Layer
		var numbers []int
		for i, p := range paths {
			l, err := r.e.meta(p)
			if err != nil {
				return err
			}
			list, numbers = append(list, l), append(numbers, i)
		}
		if _, err := attachImage(ctx, r.m, list, wire.Attach{Layers: numbers, Keep: true}); err != nil {
			return err
		}
	}
	r.depth += len(paths)
	r.lacks = nil
	return nil
}

// attachImage gives a machine an image of directories.
func attachImage(ctx context.Context, m *vm.Machine, list []*layerdisk.Layer, a wire.Attach) (offset int64, err error) {
	if a.Offset, a.Size, err = m.Layers.Add(list); err != nil {
		return 0, err
	}
	_, err = m.Agent.Ask(ctx, wire.Request{Attach: &a}, nil, nil)
	return a.Offset, err
}

// end ends the machine.
func (r *root) end() {
	if r.m != nil {
		r.m.Close()
		r.m = nil
	}
	r.dirty, r.lacks, r.depth = false, nil, 0
}

// run has a machine's agent run a process. memory is what the machine has, in bytes.
func (e *Executor) run(ctx context.Context, m *vm.Machine, memory int64, p executor.Process, out io.Writer) (err error) {
	c, err := e.openCaches(ctx, m, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close(executor.Ended(err))) }()
	if err := c.show(ctx, p); err != nil {
		return err
	}
	limited, stop := ctx, context.CancelFunc(func() {})
	if p.Limits.Timeout > 0 {
		limited, stop = context.WithTimeout(ctx, p.Limits.Timeout+timeoutGrace)
	}
	defer stop()
	reply, err := m.Agent.Run(limited, p, c.wire(), out, func(k wire.Kind, b []byte) error { return c.frame(ctx, k, b) })
	switch {
	case err != nil && ctx.Err() == nil && limited.Err() != nil:
		return &executor.ExitError{Reason: executor.TimedOut, Limit: p.Limits.Timeout.String()}
	case err != nil:
		return err
	case reply.Start != "":
		return &executor.StartError{Msg: reply.Start}
	case reply.Exit != nil:
		if reply.Exit.Reason == executor.OOM && p.Limits.Memory == 0 {
			reply.Exit.Limit = units.BytesSize(float64(memory)) + ", all of its virtual machine"
		}
		return reply.Exit
	}
	return nil
}

// A receiver unpacks a tar that comes in frames.
type receiver struct {
	dir  string // in the store's TempDir; the tree is its "fs"
	pipe *io.PipeWriter
	done chan error
}

func (e *Executor) receive(ctx context.Context) (*receiver, error) {
	dir, err := os.MkdirTemp(e.tmp, "change-")
	if err != nil {
		return nil, err
	}
	in, out := io.Pipe()
	r := &receiver{dir: dir, pipe: out, done: make(chan error, 1)}
	go func() {
		err := layers.ReadChange(ctx, in, r.fs(), layers.Limits{})
		in.CloseWithError(cmp.Or(err, io.ErrClosedPipe))
		r.done <- err
	}()
	return r, nil
}

func (r *receiver) fs() string { return filepath.Join(r.dir, "fs") }

// frame takes a frame of the tar; the empty one is its end.
func (r *receiver) frame(b []byte) (ended bool, err error) {
	if len(b) > 0 {
		_, err := r.pipe.Write(b)
		return false, err
	}
	r.pipe.Close()
	err = <-r.done
	r.done <- err
	return true, err
}

// abort ends it, whatever has come, and removes it.
func (r *receiver) abort(e *Executor) {
	r.pipe.CloseWithError(io.ErrUnexpectedEOF)
	<-r.done
	_ = e.options.Store.Trash(r.dir)
}

// fetch asks for a change and unpacks it; "" says that there is none. The caller has the directory then.
func (r *root) fetch(ctx context.Context, req wire.Request) (dir string, err error) {
	in, err := r.e.receive(ctx)
	if err != nil {
		return "", err
	}
	ended := false
	reply, err := r.m.Agent.Ask(ctx, req, nil, func(k wire.Kind, b []byte) error {
		if k != wire.KindTar || ended {
			return fmt.Errorf("the machine's agent sends %q out of place", k)
		}
		var err error
		ended, err = in.frame(b)
		return err
	})
	if err == nil && reply.Changed != ended {
		err = errors.New("the machine's agent has sent half of a change")
	}
	if err != nil || !ended {
		in.abort(r.e)
		return "", err
	}
	return in.dir, nil
}

// Freeze makes the change a layer.
func (r *root) Freeze(ctx context.Context) (executor.Change, error) {
	if err := r.closeTree(); err != nil {
		return nil, err
	}
	if !r.dirty {
		return rootfs.NewChange(layers.Layer{}), nil
	}
	r.dirty = false // whatever comes: the machine drops what it cannot freeze
	dir, err := r.fetch(ctx, wire.Request{Freeze: &wire.Freeze{}})
	if err != nil {
		if !r.m.Alive() {
			r.end()
		}
		return nil, err
	}
	if dir == "" {
		return rootfs.NewChange(layers.Layer{}), nil
	}
	name, err := r.e.options.Store.CommitLayer(dir, "")
	if err != nil {
		r.end()
		return nil, err
	}
	r.chain.Grow(name)
	r.depth++
	return rootfs.NewChange(layers.Layer{Dir: name}), nil
}

// Add puts a layer on top.
func (r *root) Add(_ context.Context, l layers.Layer) error {
	if r.dirty {
		return errors.New("a layer was added to a root with changes that were not frozen")
	}
	if err := r.closeTree(); err != nil {
		return err
	}
	r.chain.Add(l)
	return nil
}

// Files mounts the present files for reading, on the host.
func (r *root) Files(ctx context.Context) (layers.Tree, error) {
	if r.tree != nil {
		return r.tree, nil
	}
	paths, err := r.paths(ctx)
	if err != nil {
		return nil, err
	}
	if r.dirty {
		if r.copy, err = r.fetch(ctx, wire.Request{Export: &wire.Export{}}); err != nil {
			return nil, err
		}
		paths = append(paths, filepath.Join(r.copy, "fs"))
	}
	if len(paths) == 0 {
		paths = []string{r.e.empty}
	}
	if r.tree, err = rootfs.OpenTree(r.e.void, paths); err != nil {
		return nil, errors.Join(err, r.closeTree())
	}
	return r.tree, nil
}

func (r *root) closeTree() error {
	var err error
	if r.tree != nil {
		err = r.tree.Close()
		r.tree = nil
	}
	if r.copy != "" {
		err = errors.Join(err, r.e.options.Store.Trash(r.copy))
		r.copy = ""
	}
	return err
}

// Close forgets what was not frozen.
func (r *root) Close() error {
	r.end()
	return r.closeTree()
}
