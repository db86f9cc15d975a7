package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/cgroup"
	"github.com/ocurrent/obx/layers"
)

// A Runner starts processes in roots that a Machine has made ready.
type Runner interface {
	// Box gets ready for one run. id is unique on this computer while this process lives.
	Box(id string) (Box, error)

	// Scratch is a new place for what steps change.
	Scratch(ctx context.Context) (Scratch, error)
}

// A Box is where one process will run.
type Box interface {
	// Dir is where the configuration expects mounts and files; see Attach.
	Dir() string

	// Run runs the process to its end. The error is as of executor.Root.
	Run(ctx context.Context, r *Run, out io.Writer) error
}

// A Run is what a Box runs.
type Run struct {
	ID      string
	Plan    *Plan
	Process executor.Process
	Mounts  []*os.File // the root's mount, and those of its caches
	Probe   bool       // only make the container, to see whether that works

	// Detach allows the Box to return before it has let go of the root's mount: nothing but the next mount waits for that. Then it sets Detached,
	// which is closed when the mount is gone.
	Detach   bool
	Detached <-chan struct{}

	changes string // the directory of the root's changes; "" if it is the file system of this computer itself
}

// A Scratch is a directory on a file system that overlayfs takes for its upper directories. What a step changes will be
// in "fs" in it; beside that the Machine makes and removes directories of its own.
type Scratch interface {
	Dir() string

	// Take makes the scratch a directory in the store's TempDir, of which only "fs" matters, and ends it.
	Take(ctx context.Context) (dir string, err error)

	// Discard makes a directory in it vanish, of which nobody waits for the end.
	Discard(dir string) error

	// Drop forgets it.
	Drop() error
}

// A Machine makes root file systems on this Linux computer. Its Close must be called after all runs.
type Machine struct {
	Mounter Mounter
	Cgroups cgroup.System

	// OpenCache begins a use of a cache mount: the store's, unless it is set otherwise before the first run.
	OpenCache func(context.Context, executor.Cache) (*CacheUse, error)

	// Warn, if it is not nil, gets told which limits do not hold.
	Warn   func(string)
	warned sync.Once

	store  *cas.Store
	runner Runner
	tmp    string // its own directory in the store's TempDir
	ids    atomic.Int64

	chains Chains
}

// NewMachine makes a Machine whose files have a name that begins with prefix. It ends what killed processes have
// left in their control groups, and removes those.
func NewMachine(st *cas.Store, prefix string, oldMounts bool, r Runner) (*Machine, error) {
	cg, err := cgroup.Find()
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	tmp, err := os.MkdirTemp(st.TempDir(), prefix)
	if err != nil {
		return nil, err
	}
	mc := &Machine{Cgroups: cg, store: st, runner: r, tmp: tmp}
	mc.OpenCache = func(ctx context.Context, c executor.Cache) (*CacheUse, error) { return StoreCache(ctx, st, c) }
	// One less than overlayfs takes: there is the floor, or for Files the change.
	mc.chains = Chains{Store: st, Max: maxLower, Block: flattenBlock}
	mc.Mounter.empty = filepath.Join(tmp, "empty")
	mc.Mounter.void = filepath.Join(tmp, "void")
	mc.Mounter.old.Store(oldMounts)
	for _, dir := range []string{mc.Mounter.empty, mc.Mounter.void} {
		if err := MakeEmpty(dir); err != nil {
			return nil, err
		}
	}
	if err := mc.makeFloors(); err != nil {
		return nil, err
	}
	for _, run := range st.DeadRuns() {
		// A daemon that was told to start a container when its client died may leave one that it does not know of: runc's init, before
		// there is a state that `runc delete` finds.
		group := path.Join(cgroup.Top, run)
		cg.KillAll(group)
		if cg.Remove(group) == nil { // else the next one tries again
			_ = st.ForgetRun(run)
		}
	}
	return mc, nil
}

// MakeEmpty makes a directory that is the same everywhere: it is the root of a file system without layers.
func MakeEmpty(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.Chtimes(dir, time.Unix(0, 0), time.Unix(0, 0))
}

// makeFloors makes the directories that floor chooses from.
func (mc *Machine) makeFloors() error {
	for _, n := range []executor.Network{executor.NetworkNone, executor.NetworkHost} {
		floor := mc.floor(n)
		for _, name := range append([]string{"", "etc"}, systemDirs...) {
			if err := MakeEmpty(filepath.Join(floor, name)); err != nil {
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
// of it, NewPlan makes.
func (mc *Machine) floor(n executor.Network) string {
	return filepath.Join(mc.tmp, "floor-"+strconv.Itoa(int(n)))
}

// Platform is this computer's.
func (mc *Machine) Platform() ocispec.Platform {
	return ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
}

// checkLimits is an error if a limit cannot be set here that root could set elsewhere.
func (mc *Machine) checkLimits(l executor.Limits) error {
	if said := mc.Cgroups.Ignores(l); said != "" && mc.Warn != nil {
		mc.warned.Do(func() { mc.Warn(said) })
	}
	return mc.Cgroups.Check(l)
}

// TempDir is a directory of the Machine's own, on the store's file system.
func (mc *Machine) TempDir() string { return mc.tmp }

// NewID names a container: unique on this computer while this process lives.
func (mc *Machine) NewID() string {
	return filepath.Base(mc.tmp) + "-" + strconv.FormatInt(mc.ids.Add(1), 10)
}

// Cgroup is the control group of a container.
func (mc *Machine) Cgroup(id string) string {
	return path.Join(cgroup.Top, mc.store.RunID(), id)
}

// TempScratch is a scratch in the store itself.
func (mc *Machine) TempScratch() (Scratch, error) {
	dir, err := os.MkdirTemp(mc.tmp, "change-")
	if err != nil {
		return nil, err
	}
	return tempScratch{mc.store, dir}, nil
}

type tempScratch struct {
	store *cas.Store
	dir   string
}

func (s tempScratch) Dir() string                          { return s.dir }
func (s tempScratch) Take(context.Context) (string, error) { return s.dir, nil }
func (s tempScratch) Discard(dir string) error             { return s.store.Trash(dir) }
func (s tempScratch) Drop() error                          { return s.store.Trash(s.dir) }

// Open begins a root file system.
func (mc *Machine) Open(_ context.Context, chain []layers.Layer) (executor.Root, error) {
	return &root{mc: mc, chain: mc.chains.New(chain)}, nil
}

// Try makes a container with all that a step's has, but runs nothing in it.
func (mc *Machine) Try(ctx context.Context, id string, b Box) (err error) {
	s, err := mc.runner.Scratch(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Drop()) }()
	m := OverlayMount{Upper: filepath.Join(s.Dir(), "fs"), Work: filepath.Join(s.Dir(), "work")}
	for _, d := range []string{m.Upper, m.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	// It has to be there and executable; it is never executed.
	const program = "/program"
	if err := os.WriteFile(filepath.Join(m.Upper, program), nil, 0o755); err != nil {
		return err
	}
	mount, err := mc.Mounter.Mount(m)
	if err != nil {
		return err
	}
	defer mount.Close()
	p := executor.Process{Argv: []string{program}, Dir: "/"}
	pl, err := NewPlan(RootDir{FD: int(mount.Fd())}, p, b.Dir(), mc.Cgroup(id), mc.Cgroups, nil)
	defer pl.Remove()
	if err != nil {
		return err
	}
	return b.Run(ctx, &Run{ID: id, Plan: pl, Process: p, Mounts: []*os.File{mount}, Probe: true}, io.Discard)
}

// Close removes what the Machine has made.
func (mc *Machine) Close() error {
	mc.Cgroups.RemoveRun(mc.Cgroup(mc.NewID())) // unless another executor on the same store still has groups there
	return mc.store.Trash(mc.tmp)
}
