package hcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Microsoft/hcsshim/osversion"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

const (
	defaultAddress     = `\\.\pipe\containerd-containerd`
	defaultSnapshotter = "windows"
	runtimeName        = "io.containerd.runhcs.v1"

	howToStart = "install containerd and start it as a service (`containerd --register-service`, `Start-Service containerd`), or name its pipe with --containerd"
)

// keepUnused is how long the snapshots of layers stay after their last use.
const keepUnused = 14 * 24 * time.Hour

// An Executor runs processes in Windows containers through the computer's containerd.
type Executor struct {
	options Options
	windows windows
	d       *daemon
	run     *runDir
	stack   *stacker
	ids     atomic.Int64
	closing sync.Once
	closed  atomic.Bool
}

// idPrefix begins the names of containers and endpoints; the run's follows.
const idPrefix = "hcs-"

// windows is what the executor asks of the system beside containerd. Tests have another one.
type windows struct {
	hcn     hcn
	mount   func(mounts []mount.Mount, dir string) error
	unmount func(dir string) error
	version osversion.OSVersion
}

func thisWindows() windows {
	return windows{
		hcn:     computeNetwork{},
		mount:   mount.All,
		unmount: func(dir string) error { return mount.UnmountAll(dir, 0) },
		version: osversion.Get(),
	}
}

// ReadsBytes is true: containerd has a form of its own, which it makes of layers' bytes.
func (*Executor) ReadsBytes() bool { return true }

// New connects to containerd. It removes what killed ones have left there.
func New(ctx context.Context, o Options) (*Executor, error) {
	return newExecutor(ctx, o, thisWindows())
}

func newExecutor(ctx context.Context, o Options, w windows) (*Executor, error) {
	o = o.complete()
	switch o.Isolation {
	case "", "auto", "process", "hyperv":
	default:
		return nil, fmt.Errorf("isolation %q is neither process, hyperv nor auto", o.Isolation)
	}
	d, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	e := &Executor{options: o, windows: w, d: d}
	if err := e.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("make an executor: %w", err), e.Close())
	}
	return e, nil
}

func (e *Executor) start(ctx context.Context) error {
	var err error
	e.run, err = e.d.start(ctx, e.options.Store.RunID(), e.removeRest)
	if err != nil {
		return err
	}
	e.stack = &stacker{d: e.d, store: e.options.Store}
	return e.stack.prune(ctx, time.Now().Add(-keepUnused))
}

// removeRest removes what a run has left beside containerd.
func (e *Executor) removeRest(r *runDir) error {
	return errors.Join(removeNetworks(e.windows.hcn, idPrefix+r.name()+"-"), e.unmountAll(r.dir))
}

// unmountAll ends the mounts that a killed process has left in its directory.
func (e *Executor) unmountAll(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, at := range left {
		if name := filepath.Base(at); strings.HasPrefix(name, mountPrefix) || strings.HasPrefix(name, filesPrefix) {
			errs = append(errs, e.windows.unmount(at))
		}
	}
	return errors.Join(errs...)
}

// Platform is this computer's, with the version of its Windows.
func Platform() ocispec.Platform { return platforms.DefaultSpec() }

// Platform is this computer's.
func (e *Executor) Platform() ocispec.Platform { return Platform() }

// Open begins a root file system.
func (e *Executor) Open(_ context.Context, chain []layers.Layer) (executor.Root, error) {
	r := &snapshotRoot{stacker: e.stack, host: containers{e}, dir: e.run.dir}
	for _, l := range chain {
		if !l.IsZero() {
			r.pending = append(r.pending, l)
		}
	}
	return r, nil
}

// Close removes all that the executor has made in containerd, but for the snapshots of layers.
func (e *Executor) Close() error {
	var err error
	e.closing.Do(func() {
		e.closed.Store(true)
		err = e.d.close(e.run, e.removeRest)
	})
	return err
}

// containers is the executor as the host of snapshot roots.
type containers struct{ *Executor }

func (c containers) mount(mounts []mount.Mount, dir string) error {
	return c.windows.mount(mounts, dir)
}
func (c containers) unmount(dir string) error { return c.windows.unmount(dir) }

// run runs a process in the root file system that mounts give.
func (c containers) run(ctx context.Context, p executor.Process, mounts []mount.Mount, out io.Writer) (err error) {
	e := c.Executor
	if e.closed.Load() {
		return errors.New("the executor is closed")
	}
	if p.Terminal {
		return errors.New("terminals are not supported for Windows containers")
	}
	id := idPrefix + e.run.name() + "-" + strconv.FormatInt(e.ids.Add(1), 10)
	dir := filepath.Join(e.run.dir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var undo []func(keep bool) error
	keep := false
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i](keep))
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()

	run := windowsRun{hyperV: e.hyperV(p.OSVersion)}
	if run.mounts, err = writeSecrets(dir, p); err != nil {
		return err
	}
	caches := p.Caches()
	var cache *cacheMount
	for i, m := range caches {
		if twice := i > 0 && *caches[i-1].Cache == *m.Cache && m.Cache.Sharing == "locked"; !twice {
			// Where the store is: what is kept of it is moved there.
			cache, err = openCache(ctx, e.options.Store, *m.Cache, filepath.Join(e.options.Store.TempDir(), id+"-cache"+strconv.Itoa(i)))
			if err != nil {
				return fmt.Errorf("cache %q: %w", m.Cache.Name, err)
			}
			undo = append(undo, cache.close)
		}
		run.mounts = append(run.mounts, windowsMount(cache.dir, m.Target, false))
	}
	if p.Network == executor.NetworkHost {
		n, err := openNetwork(e.windows.hcn, id)
		if err != nil {
			return err
		}
		undo = append(undo, func(bool) error { return n.close() })
		run.namespace = n.namespace
	}
	spec, err := windowsSpec(p, run)
	if err != nil {
		return err
	}
	limited, stop := context.WithCancel(ctx)
	defer stop()
	if p.Limits.Timeout > 0 {
		limited, stop = context.WithTimeout(ctx, p.Limits.Timeout)
		defer stop()
	}
	j := &job{
		id: id, spec: spec, runtime: runtimeName, rootfs: mounts, out: out,
		created: func(uint32) error { return nil },
		ended:   func() error { return nil },
	}
	if p.Stdin != nil {
		j.stdin = p.Stdin
	}
	end, err := e.d.do(limited, j)
	var refused createError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the process was stopped: %w", context.Cause(ctx))
	case err == nil && end.killed, limited.Err() != nil && errors.Is(err, context.DeadlineExceeded): // while it ran, or before it was started
		keep = true
		return &executor.ExitError{Reason: executor.TimedOut, Limit: p.Limits.Timeout.String()}
	case errors.As(err, &refused):
		return startError(refused)
	case err != nil:
		return err
	}
	keep = true
	if end.status != 0 {
		return &executor.ExitError{Reason: executor.Exited, Code: int(end.status)}
	}
	return nil
}

// startMessages tell what the spec or the image says that cannot be started from a broken runtime: the texts of Windows's
// errors 2, 3, 5, 193 and 267, and of HCS for a user that is not there.
var startMessages = []string{
	"The system cannot find the file specified", "The system cannot find the path specified", "is not a valid Win32 application",
	"The directory name is invalid", "The user name or password is incorrect", "No mapping between account names", "(0x2)", "(0x3)", "(0xc1)", "(0x10b)",
}

func startError(err createError) error {
	for _, m := range startMessages {
		if strings.Contains(err.Error(), m) {
			return &executor.StartError{Msg: "cannot start the process: " + err.Error()}
		}
	}
	return fmt.Errorf("run a container: %w", err)
}

// hyperV decides whether a container needs a virtual machine of its own.
func (e *Executor) hyperV(version string) bool {
	switch e.options.Isolation {
	case "process":
		return false
	case "hyperv":
		return true
	}
	return !compatible(e.windows.version, version)
}

// compatible reports whether this Windows shares its kernel with containers of a version. What is not known is tried.
func compatible(host osversion.OSVersion, version string) bool {
	parts := strings.Split(version, ".")
	if len(parts) < 3 {
		return true
	}
	build, err := strconv.ParseUint(parts[2], 10, 16)
	if err != nil {
		return true
	}
	image := osversion.OSVersion{MajorVersion: host.MajorVersion, MinorVersion: host.MinorVersion, Build: uint16(build)}
	return osversion.CheckHostAndContainerCompat(host, image)
}

// writeSecrets writes secrets for the time of one step. Windows has no file systems in memory: they are in the run's directory, which
// only administrators can read, and nowhere else.
func writeSecrets(dir string, p executor.Process) ([]specs.Mount, error) {
	dirs, err := secretDirs(p)
	if err != nil {
		return nil, err
	}
	var mounts []specs.Mount
	for i, d := range dirs {
		at := filepath.Join(dir, "secrets"+strconv.Itoa(i))
		if err := os.Mkdir(at, 0o700); err != nil {
			return nil, err
		}
		for name, s := range d.files {
			if err := os.WriteFile(filepath.Join(at, name), s.Data, 0o600); err != nil {
				return nil, err
			}
		}
		mounts = append(mounts, windowsMount(at, d.target, true))
	}
	return mounts, nil
}

func windowsMount(source, target string, readOnly bool) specs.Mount {
	option := "rw"
	if readOnly {
		option = "ro"
	}
	return specs.Mount{Source: source, Destination: windowsPath(target), Options: []string{option}}
}
