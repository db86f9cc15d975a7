package hcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// A host is what differs between computers whose root file systems are snapshots.
type host interface {
	// run runs a process in the root file system that mounts give.
	run(ctx context.Context, p executor.Process, mounts []mount.Mount, out io.Writer) error

	// mount shows the files of a snapshot in dir, which is there; unmount ends it.
	mount(mounts []mount.Mount, dir string) error
	unmount(dir string) error
}

// A snapshotRoot is a root file system that is a chain of snapshots.
type snapshotRoot struct {
	*stacker
	host    host
	dir     string // of the run, for mounts
	pending []layers.Layer
	top     string // the chain's last snapshot; "" for an empty root
	active  string // the snapshot of what has changed; "" if nothing has run
	made    map[string]bool
	shown   *shown
}

// shown is what Files has given.
type shown struct {
	*layers.Dir
	dir string
	key string // of the snapshot to remove; "" if it is the active one
}

// Names of directories that a snapshot may be mounted on begin so.
const (
	mountPrefix = "mount-"
	filesPrefix = "files-"
)

// ready makes the chain's snapshots.
func (r *snapshotRoot) ready(ctx context.Context) error {
	for len(r.pending) > 0 {
		name, err := r.put(ctx, r.top, r.pending[0])
		if err != nil {
			return err
		}
		r.top, r.pending = name, r.pending[1:]
	}
	return nil
}

// Run runs a process.
func (r *snapshotRoot) Run(ctx context.Context, p executor.Process, out io.Writer) error {
	err := r.try(ctx, p, out)
	if err != nil {
		err = errors.Join(err, r.dropActive(ctx))
	}
	return err
}

func (r *snapshotRoot) try(ctx context.Context, p executor.Process, out io.Writer) error {
	if err := r.hide(ctx); err != nil {
		return err
	}
	if err := r.ready(ctx); err != nil {
		return err
	}
	mounts, err := r.mounts(ctx)
	if err != nil {
		return err
	}
	if err := r.makeDir(p.Dir, mounts); err != nil {
		return err
	}
	return r.host.run(ctx, p, mounts, out)
}

// mounts are those of the active snapshot, which is made if there is none.
func (r *snapshotRoot) mounts(ctx context.Context) ([]mount.Mount, error) {
	ctx = r.d.context(ctx)
	if r.active != "" {
		mounts, err := r.d.snaps.Mounts(ctx, r.active)
		if err != nil {
			return nil, fmt.Errorf("mounts of a snapshot: %w", err)
		}
		return mounts, nil
	}
	key := r.key()
	mounts, err := r.d.snaps.Prepare(ctx, key, r.top)
	if err != nil {
		return nil, fmt.Errorf("prepare a snapshot: %w", err)
	}
	r.active = key
	return mounts, nil
}

// makeDir makes a process's working directory if it is missing. Runtimes for Windows do not.
func (r *snapshotRoot) makeDir(dir string, mounts []mount.Mount) error {
	name := windowsPath(dir)
	if r.made[name] || name == `C:\` {
		return nil
	}
	at, err := os.MkdirTemp(r.dir, mountPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(at)
	if err := r.host.mount(mounts, at); err != nil {
		return fmt.Errorf("mount a snapshot: %w", err)
	}
	err = makeInside(at, windowsInside(name))
	if err := errors.Join(err, r.host.unmount(at)); err != nil {
		return err
	}
	if r.made == nil {
		r.made = map[string]bool{}
	}
	r.made[name] = true
	return nil
}

// makeInside makes a directory in a root, never outside of it.
func makeInside(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll(name, 0o755); err != nil {
		return &executor.StartError{Msg: fmt.Sprintf("cannot make the working directory: %v", err)}
	}
	return nil
}

// Freeze makes what has changed a layer.
func (r *snapshotRoot) Freeze(ctx context.Context) (executor.Change, error) {
	if err := r.hide(ctx); err != nil {
		return nil, err
	}
	if r.active == "" {
		return frozen{}, nil
	}
	l, name, err := r.take(ctx, r.active, r.top)
	if err != nil {
		return nil, errors.Join(err, r.dropActive(ctx))
	}
	r.top, r.active, r.made = name, "", nil
	return frozen{l}, nil
}

func (r *snapshotRoot) dropActive(ctx context.Context) error {
	if r.active == "" {
		return nil
	}
	key := r.active
	r.active, r.made = "", nil
	return r.drop(ctx, key)
}

// Add puts a layer on top.
func (r *snapshotRoot) Add(ctx context.Context, l layers.Layer) error {
	if r.active != "" {
		return errors.New("a layer was added to a root with changes that were not frozen")
	}
	if err := r.hide(ctx); err != nil {
		return err
	}
	if !l.IsZero() {
		r.pending = append(r.pending, l)
	}
	return nil
}

// Files mounts the present files for reading.
func (r *snapshotRoot) Files(ctx context.Context) (_ layers.Tree, err error) {
	if r.shown != nil {
		return r.shown, nil
	}
	if err := r.ready(ctx); err != nil {
		return nil, err
	}
	s := &shown{}
	var mounts []mount.Mount
	if r.active != "" {
		mounts, err = r.mounts(ctx)
	} else {
		// A view cannot be mounted where a snapshot needs space of its own for that; an active one that is dropped can.
		s.key = r.key()
		mounts, err = r.d.snaps.Prepare(r.d.context(ctx), s.key, r.top)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare a snapshot to read: %w", err)
	}
	if s.dir, err = os.MkdirTemp(r.dir, filesPrefix); err != nil {
		return nil, err
	}
	if err := r.host.mount(mounts, s.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("mount a snapshot: %w", err), os.Remove(s.dir), r.dropShown(ctx, s))
	}
	r.shown = s
	if s.Dir, err = layers.DirTree(s.dir); err != nil {
		return nil, errors.Join(err, r.hide(ctx))
	}
	return s, nil
}

func (r *snapshotRoot) dropShown(ctx context.Context, s *shown) error {
	if s.key == "" {
		return nil
	}
	return r.drop(ctx, s.key)
}

// hide ends what Files has begun.
func (r *snapshotRoot) hide(ctx context.Context) error {
	s := r.shown
	if s == nil {
		return nil
	}
	r.shown = nil
	var errs []error
	if s.Dir != nil {
		errs = append(errs, s.Dir.Close())
	}
	errs = append(errs, r.host.unmount(s.dir), os.Remove(s.dir), r.dropShown(ctx, s))
	return errors.Join(errs...)
}

// Close forgets what was not frozen.
func (r *snapshotRoot) Close() error {
	ctx := context.Background()
	return errors.Join(r.hide(ctx), r.dropActive(ctx))
}

// frozen is a layer of the store: it needs nothing of its root.
type frozen struct{ layer layers.Layer }

func (f frozen) Layer(context.Context) (layers.Layer, error) { return f.layer, nil }
func (f frozen) Close() error                                { return nil }

// windowsInside is a path on drive C relative to its root.
func windowsInside(name string) string {
	return filepath.FromSlash(slashes(name)[len("C:/"):])
}
