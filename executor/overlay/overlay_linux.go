package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
)

// An Executor runs processes on this Linux machine.
type Executor struct {
	*rootfs.Machine
	options    Options
	candidates []string // runtimes, best first

	preparing sync.Once
	prepared  sync.WaitGroup

	choosing sync.Mutex
	chosen   string // the runtime that works

	mu     sync.Mutex
	sup    *supervisor // nil until something runs
	closed bool
}

var errNotRoot = errors.New("running steps needs root, or root of a user namespace (package rootless), to mount overlayfs and to make namespaces")

// New makes an executor. It removes what killed ones have left outside the store. The process must be root's, and its main
// function must begin by asking IsSupervisor.
func New(o Options) (*Executor, error) {
	if os.Geteuid() != 0 {
		return nil, errNotRoot
	}
	candidates, err := findRuntimes(o.Runtime)
	if err != nil {
		return nil, err
	}
	e := &Executor{options: o, candidates: candidates}
	e.Machine, err = rootfs.NewMachine(o.Store, "overlay-", o.OldMounts, runner{e})
	if err != nil {
		return nil, fmt.Errorf("make an executor: %w", err)
	}
	e.Warn = o.Warn
	if o.OpenCache != nil {
		e.OpenCache = o.OpenCache
	}
	return e, nil
}

// A runner runs processes below the executor's supervisor.
type runner struct{ e *Executor }

func (r runner) Scratch(context.Context) (rootfs.Scratch, error) { return r.e.TempScratch() }

func (r runner) Box(id string) (rootfs.Box, error) {
	s, err := r.e.supervisor()
	if err != nil {
		return nil, err
	}
	return box{r.e, s, bundleDir(s.priv, id), ""}, nil
}

// A box is a directory of the supervisor's.
type box struct {
	e   *Executor
	s   *supervisor
	dir string

	runtime string // "" for the one that the executor chooses
}

func (b box) Dir() string { return b.dir }

// Run runs a prepared process.
func (b box) Run(ctx context.Context, r *rootfs.Run, out io.Writer) error {
	if b.runtime == "" {
		var err error
		if b.runtime, err = b.e.runtime(ctx, b.s); err != nil {
			return err
		}
	}
	p := r.Process
	if !b.e.options.NoAppArmor {
		r.Plan.Confine()
	}
	if b.runtime == Builtin { // it needs neither
		r.Plan.Spec.Linux.Seccomp, r.Plan.Spec.Annotations = nil, nil
	}
	req := request{
		ID: r.ID, Runtime: b.runtime, Spec: &r.Plan.Spec, Files: r.Plan.Files, Binds: r.Plan.Binds,
		Terminal: p.Terminal, Cgroup: r.Plan.Spec.Linux.CgroupsPath, Probe: r.Probe, Detach: r.Detach,
		HostNetwork: p.Network == executor.NetworkHost, FastSync: p.FastSync,
	}
	stdio, err := openStdio(p, out)
	if err != nil {
		return err
	}
	defer stdio.close()
	limited, stop := context.WithCancel(ctx)
	defer stop()
	if p.Limits.Timeout > 0 {
		limited, stop = context.WithTimeout(ctx, p.Limits.Timeout)
		defer stop()
	}
	last, detached, err := b.s.run(limited, req, stdio, r.Mounts)
	r.Detached = detached
	if p.Refused != nil && len(last.Refused) > 0 {
		p.Refused(last.Refused)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the process was stopped: %w", context.Cause(ctx))
	case err != nil:
		return err
	case last.Event == exited && r.Probe:
		return nil
	case last.Event == exited:
		return last.Err(p.Limits, limited.Err() != nil)
	case limited.Err() != nil:
		return rootfs.TimedOut(p.Limits)
	}
	err = runtimeError(last)
	var start *executor.StartError
	if !r.Probe && !errors.As(err, &start) && b.e.untried() {
		if terr := b.e.try(ctx, b.s, b.runtime); terr != nil {
			return noRuntime(fmt.Errorf("%s: %w", b.runtime, terr))
		}
	}
	return err
}

func runtimeError(r reply) error {
	said := strings.Join(r.Said, "; ")
	if r.Event == broken || said == "" {
		return fmt.Errorf("run a container: %s", strings.TrimSpace(r.Error+" "+said))
	}
	if err := rootfs.StartError(said); err != nil {
		return err
	}
	return fmt.Errorf("run a container: %s: %s", r.Error, said)
}

// Prepare starts what the first Run needs, in the background: call it when it becomes likely that something will run.
func (e *Executor) Prepare() error {
	s, err := e.supervisor()
	if err != nil {
		return err
	}
	e.preparing.Do(func() {
		e.prepared.Go(func() { _, _ = e.runtime(context.Background(), s) }) // an error comes again with Run
	})
	return nil
}

// supervisor returns the running supervisor. One that was killed is replaced.
func (e *Executor) supervisor() (*supervisor, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.New("the executor is closed")
	}
	if e.sup != nil && e.sup.alive() {
		return e.sup, nil
	}
	priv, err := os.MkdirTemp(e.TempDir(), "priv-")
	if err != nil {
		return nil, err
	}
	s, err := startSupervisor(priv, e.Cgroups)
	if err != nil {
		return nil, err
	}
	if e.sup != nil {
		e.sup.control.Close()
	}
	e.sup = s
	return s, nil
}

// Close ends everything that runs.
func (e *Executor) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	var err error
	if e.sup != nil {
		err = e.sup.close()
	}
	e.prepared.Wait()
	return errors.Join(err, e.Machine.Close())
}
