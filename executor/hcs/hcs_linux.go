package hcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/layers"
)

const (
	defaultAddress     = "/run/containerd/containerd.sock"
	defaultSnapshotter = "overlayfs"
	runtimeName        = "io.containerd.runc.v2"
)

// ociRuntimes are looked for in this order: containerd's own default first.
var ociRuntimes = []string{"runc", "crun"}

var errNotRoot = errors.New("running steps through containerd needs root: run obx with sudo")

// An Executor runs processes through the computer's containerd.
type Executor struct {
	*rootfs.Machine
	options   Options
	d         *daemon
	run       *runDir
	snapshots atomic.Int64
	closing   sync.Once
	closed    atomic.Bool
}

// New connects to containerd. It removes what killed ones have left there.
func New(ctx context.Context, o Options) (*Executor, error) {
	if os.Geteuid() != 0 {
		return nil, errNotRoot
	}
	o = o.complete()
	file, err := rootfs.FindRuntime(o.Runtime, ociRuntimes...)
	if err != nil {
		return nil, err
	}
	d, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	e := &Executor{options: o, d: d}
	if err := e.start(ctx, file); err != nil {
		return nil, errors.Join(fmt.Errorf("make an executor: %w", err), e.Close())
	}
	return e, nil
}

func (e *Executor) start(ctx context.Context, runtime string) error {
	var err error
	e.run, err = e.d.start(ctx, e.options.Store.RunID(), nothingElse)
	if err != nil {
		return err
	}
	if err := os.WriteFile(e.runtime(), []byte(fmt.Sprintf(wrapper, runtime)), 0o700); err != nil {
		return err
	}
	e.Machine, err = rootfs.NewMachine(e.options.Store, "hcs-", false, runner{e})
	return err
}

// nothingElse removes what a run has neither in containerd nor in its directory.
func nothingElse(*runDir) error { return nil }

// wrapper is what containerd's shim calls for an OCI runtime. The shim gives a process one pipe for its output and another for its
// errors, and so would lose the order of what it writes; and a device for an input that is empty, where programs expect a pipe.
const wrapper = `#!/bin/sh
for a; do
	[ "$a" = create ] || continue
	[ -p /dev/stdin ] && exec '%[1]s' "$@" 2>&1
	exec '%[1]s' "$@" 2>&1 <<-END
	END
done
exec '%[1]s' "$@"
`

func (e *Executor) runtime() string { return filepath.Join(e.run.dir, "runtime") }

// Close removes all that the executor has made in containerd.
func (e *Executor) Close() error {
	var err error
	e.closing.Do(func() {
		e.closed.Store(true)
		err = e.d.close(e.run, nothingElse)
		if e.Machine != nil { // after all runs
			err = errors.Join(err, e.Machine.Close())
		}
	})
	return err
}

// A runner runs processes in containers of containerd.
type runner struct{ e *Executor }

func (r runner) Box(id string) (rootfs.Box, error) {
	if r.e.closed.Load() {
		return nil, errors.New("the executor is closed")
	}
	return box{r.e, filepath.Join(r.e.run.dir, id)}, nil
}

type box struct {
	e   *Executor
	dir string
}

func (b box) Dir() string { return b.dir }

// Run runs a prepared process.
func (b box) Run(ctx context.Context, r *rootfs.Run, out io.Writer) (err error) {
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if derr := rootfs.Detach(b.dir); derr != nil {
			err = errors.Join(err, derr)
			return
		}
		err = errors.Join(err, os.RemoveAll(b.dir))
	}()
	if err := rootfs.Attach(b.dir, rootfs.Attachment{Mounts: r.Mounts, Files: r.Plan.Files, Binds: r.Plan.Binds}); err != nil {
		return err
	}
	p := r.Process
	r.Plan.Confine()
	spec := r.Plan.Spec
	root := filepath.Join(b.dir, rootfs.RootName)
	spec.Root.Path = "rootfs" // in the shim's directory, where it mounts what it is given
	var w *watch
	var x rootfs.Exit
	j := &job{
		id:      r.ID,
		spec:    &spec,
		runtime: runtimeName,
		options: &options.Options{BinaryName: b.e.runtime()},
		rootfs:  []mount.Mount{{Type: "bind", Source: root, Options: []string{"rbind", "rw"}}},
		fifos:   b.dir,
		out:     out,
		created: func(pid uint32) error {
			if r.Probe {
				return errProbed
			}
			w, err = newWatch(pid)
			return err
		},
		ended: func() error {
			x.OOM = b.e.Cgroups.OOMKills(spec.Linux.CgroupsPath) > 0
			return w.end()
		},
	}
	limited, stop := context.WithCancel(ctx)
	defer stop()
	if p.Limits.Timeout > 0 {
		limited, stop = context.WithTimeout(ctx, p.Limits.Timeout)
		defer stop()
	}
	leave, err := connectInput(p, j)
	if err != nil {
		return err
	}
	end, err := b.e.d.do(limited, j)
	err = errors.Join(err, leave())
	if w != nil {
		defer w.close()
	}
	var refused createError
	switch {
	case errors.Is(err, errProbed):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("the process was stopped: %w", context.Cause(ctx))
	case limited.Err() != nil && errors.Is(err, context.DeadlineExceeded): // before it was started
		return rootfs.TimedOut(p.Limits)
	case errors.As(err, &refused):
		if err := rootfs.StartError(refused.Error()); err != nil {
			return err
		}
		return fmt.Errorf("run a container: %w", err)
	case err != nil:
		return err
	}
	oom := x.OOM
	x = w.exit(end.status, end.killed)
	x.OOM = oom
	return x.Err(p.Limits, end.killed)
}

// errProbed stops a probe when the container is made.
var errProbed = errors.New("probed")

// connectInput gives a job its input, and its terminal if it has one. leave is called when the job is over.
func connectInput(p executor.Process, j *job) (leave func() error, err error) {
	if p.Stdin == nil && !p.Terminal {
		return func() error { return nil }, nil
	}
	in, typed := io.Pipe()
	j.stdin = in
	if !p.Terminal {
		done, stop, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		var copying sync.WaitGroup
		copying.Go(func() {
			rootfs.CopyInput(typed, p.Stdin, done)
			_ = typed.Close()
		})
		return func() error {
			stop.Close()
			in.Close()
			copying.Wait()
			return done.Close()
		}, nil
	}
	if err := rootfs.IsTerminal(p.Stdin); err != nil {
		return nil, err
	}
	resize := make(chan [2]uint32, 1)
	shown, screen := io.Pipe()
	j.resize, j.out = resize, screen
	joined := make(chan error, 1)
	go func() {
		joined <- rootfs.JoinTerminal(p.Stdin, terminal{shown, typed}, func(size *unix.Winsize) {
			select {
			case resize <- [2]uint32{uint32(size.Col), uint32(size.Row)}:
			case <-resize: // only the newest one counts
				resize <- [2]uint32{uint32(size.Col), uint32(size.Row)}
			}
		})
	}()
	return func() error {
		screen.Close()
		in.Close()
		return <-joined
	}, nil
}

// A terminal is the controlling end of a process's own.
type terminal struct {
	io.Reader
	io.Writer
}

// Scratch is a new snapshot upon nothing.
func (r runner) Scratch(ctx context.Context) (_ rootfs.Scratch, err error) {
	e := r.e
	if e.closed.Load() {
		return nil, errors.New("the executor is closed")
	}
	s := &scratch{e: e, key: e.run.name() + "-" + strconv.FormatInt(e.snapshots.Add(1), 10)}
	mounts, err := e.d.snaps.Prepare(e.d.context(ctx), s.key, "")
	if err != nil {
		return nil, fmt.Errorf("prepare a snapshot of %s: %w", e.options.Snapshotter, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Drop())
		}
	}()
	if len(mounts) == 1 && mounts[0].Type == "bind" { // it is a directory already
		s.dir = mounts[0].Source
		return s, nil
	}
	s.dir = filepath.Join(e.run.dir, "snapshot-"+filepath.Base(s.key))
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	s.mounted = true
	if err := mount.All(mounts, s.dir); err != nil {
		return nil, fmt.Errorf("mount a snapshot of %s: %w", e.options.Snapshotter, err)
	}
	return s, nil
}

// A scratch is a snapshot of containerd.
type scratch struct {
	e       *Executor
	key     string
	dir     string
	mounted bool // by us
}

func (s *scratch) Dir() string { return s.dir }

// Discard removes it now: the store's trash is on another file system.
func (s *scratch) Discard(dir string) error { return os.RemoveAll(dir) }

// Take moves the change into the store, or copies it as its layer's bytes would be.
func (s *scratch) Take(ctx context.Context) (_ string, err error) {
	defer func() { err = errors.Join(err, s.Drop()) }()
	dir, err := os.MkdirTemp(s.e.TempDir(), "change-")
	if err != nil {
		return "", err
	}
	from, to := filepath.Join(s.dir, "fs"), filepath.Join(dir, "fs")
	err = os.Rename(from, to)
	if errors.Is(err, unix.EXDEV) {
		err = layers.CopyDir(ctx, to, from)
	}
	return dir, err
}

// Drop removes the snapshot.
func (s *scratch) Drop() error {
	var errs []error
	if s.mounted {
		s.mounted = false
		if err := unix.Unmount(s.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", s.dir, err))
		}
		errs = append(errs, os.Remove(s.dir))
	}
	if s.key != "" {
		if err := s.e.d.snaps.Remove(s.e.d.context(context.Background()), s.key); err != nil {
			errs = append(errs, fmt.Errorf("remove a snapshot: %w", err))
		}
		s.key = ""
	}
	return errors.Join(errs...)
}
