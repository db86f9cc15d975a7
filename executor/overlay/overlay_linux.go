package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// An Executor runs processes on this Linux machine.
type Executor struct {
	options    Options
	candidates []string // runtimes, best first
	cgroups    cgroups
	mounter    mounter
	tmp        string // its own directory in the store's TempDir
	ids        atomic.Int64

	preparing sync.Once
	prepared  sync.WaitGroup

	choosing sync.Mutex
	chosen   string // the runtime that works

	flattening sync.Mutex
	flattened  map[string]string // layer directories that were made one, joined by spaces, to that one

	mu     sync.Mutex
	sup    *supervisor // nil until something runs
	closed bool
}

var errNotRoot = errors.New("running steps needs root, to mount overlayfs and to make namespaces: run obx with sudo")

// New makes an executor. It removes what killed ones have left outside the store. The process must be root's, and its main
// function must begin by asking IsSupervisor.
func New(o Options) (*Executor, error) {
	if os.Geteuid() != 0 {
		return nil, errNotRoot
	}
	if o.OpenCache == nil {
		o.OpenCache = func(ctx context.Context, c executor.Cache) (*CacheUse, error) { return StoreCache(ctx, o.Store, c) }
	}
	candidates, err := findRuntimes(o.Runtime)
	if err != nil {
		return nil, err
	}
	cg, err := findCgroups()
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	tmp, err := os.MkdirTemp(o.Store.TempDir(), "overlay-")
	if err != nil {
		return nil, fmt.Errorf("make an executor: %w", err)
	}
	e := &Executor{options: o, candidates: candidates, cgroups: cg, tmp: tmp}
	e.mounter.empty = filepath.Join(tmp, "empty")
	e.mounter.void = filepath.Join(tmp, "void")
	e.mounter.old.Store(o.OldMounts)
	for _, dir := range []string{e.mounter.empty, e.mounter.void} {
		if err := makeEmpty(dir); err != nil {
			return nil, fmt.Errorf("make an executor: %w", err)
		}
	}
	if err := e.makeFloors(); err != nil {
		return nil, fmt.Errorf("make an executor: %w", err)
	}
	for _, run := range o.Store.DeadRuns() {
		if cg.remove(path.Join(cgroupTop, run)) == nil { // else the next New tries again
			_ = o.Store.ForgetRun(run)
		}
	}
	return e, nil
}

// makeEmpty makes a directory that is the same everywhere: it is the root of a file system without layers.
func makeEmpty(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.Chtimes(dir, time.Unix(0, 0), time.Unix(0, 0))
}

// makeFloors makes the directories that floor chooses from.
func (e *Executor) makeFloors() error {
	for _, n := range []executor.Network{executor.NetworkNone, executor.NetworkHost} {
		floor := e.floor(n)
		for _, name := range append([]string{"/", "/etc"}, systemDirs...) {
			if err := makeEmpty(floor + name); err != nil {
				return err
			}
		}
		for _, name := range systemFiles(n) {
			if err := os.WriteFile(floor+name, nil, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// floor is a directory that lies below all layers while a process runs: it has the mount points that most processes
// need. Making them in the upper directory and removing them again costs a tenth of a trivial step. What layers hide
// of it, newPlan makes.
func (e *Executor) floor(n executor.Network) string {
	return filepath.Join(e.tmp, "floor-"+strconv.Itoa(int(n)))
}

// Platform is this machine's.
func (e *Executor) Platform() ocispec.Platform {
	return ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
}

// Prepare starts what the first Run needs, in the background: call it when it becomes likely that something will run.
func (e *Executor) Prepare() {
	s, err := e.supervisor()
	if err != nil {
		return // it comes again with Run
	}
	e.preparing.Do(func() {
		e.prepared.Go(func() { _, _ = e.runtime(context.Background(), s) })
	})
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
	priv, err := os.MkdirTemp(e.tmp, "priv-")
	if err != nil {
		return nil, err
	}
	s, err := startSupervisor(priv)
	if err != nil {
		return nil, err
	}
	if e.sup != nil {
		e.sup.control.Close()
	}
	e.sup = s
	return s, nil
}

// newID names a container: unique on this machine while this process lives.
func (e *Executor) newID() string {
	return filepath.Base(e.tmp) + "-" + strconv.FormatInt(e.ids.Add(1), 10)
}

func (e *Executor) cgroup(id string) string {
	return path.Join(cgroupTop, e.options.Store.RunID(), id)
}

// Open begins a root file system.
func (e *Executor) Open(_ context.Context, chain []layers.Layer) (executor.Root, error) {
	r := &root{e: e}
	for _, l := range chain {
		if !l.IsZero() {
			r.pending = append(r.pending, l)
		}
	}
	return r, nil
}

// flatten makes one layer directory of several. Every root with the same long chain begins with the same.
func (e *Executor) flatten(ctx context.Context, dirs []string) (string, error) {
	e.flattening.Lock()
	defer e.flattening.Unlock()
	key := strings.Join(dirs, " ")
	if name, ok := e.flattened[key]; ok {
		return name, nil
	}
	l, err := layers.FlattenBase(ctx, e.options.Store, dirs)
	if err != nil {
		return "", err
	}
	if e.flattened == nil {
		e.flattened = map[string]string{}
	}
	e.flattened[key] = l.Dir
	return l.Dir, nil
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
	// Another executor on the same store may still have groups of its own in there.
	for _, h := range e.cgroups.hierarchies {
		_ = os.Remove(filepath.Join(h, cgroupTop, e.options.Store.RunID()))
	}
	return errors.Join(err, e.options.Store.Trash(e.tmp))
}
