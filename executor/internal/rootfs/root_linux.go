package rootfs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// flattenBlock is how many of the lowest layers become one when there are more than overlayfs takes.
const flattenBlock = 400

// A root is a chain of layer directories and at most one change upon it.
type root struct {
	mc     *Machine
	chain  Chain
	change Scratch // what has changed; nil if nothing has run
	tree   *tree   // what Files has given

	detached <-chan struct{} // closed when nothing is mounted any more on the change; nil if nothing is
}

// A tree is a mount that is read.
type tree struct {
	*layers.Dir
	mount *os.File
}

// Close unmounts it.
func (t *tree) Close() error { return errors.Join(t.Dir.Close(), t.mount.Close()) }

// lower makes the chain ready and returns its directories, base first.
func (r *root) lower(ctx context.Context) ([]string, error) {
	paths, _, err := r.chain.Paths(ctx)
	return paths, err
}

// below is the directory whose own attributes a root without a change has.
func (r *root) below(lower []string) string {
	if len(lower) == 0 {
		return r.mc.Mounter.empty
	}
	return lower[len(lower)-1]
}

// Run runs a process.
func (r *root) Run(ctx context.Context, p executor.Process, out io.Writer) error {
	err := r.run(ctx, p, out)
	if tookTooMuch(err) {
		r.await() // until then, nothing of it can be deleted
	}
	if err != nil {
		err = errors.Join(err, r.drop())
	}
	if tookTooMuch(err) {
		r.mc.store.EmptyTrash(ctx) // the disk may be full of it
	}
	return err
}

func (r *root) run(ctx context.Context, p executor.Process, out io.Writer) (err error) {
	if err := r.closeTree(); err != nil {
		return err
	}
	if err := r.mc.checkLimits(p.Limits); err != nil {
		return err
	}
	id := r.mc.NewID()
	box, err := r.mc.runner.Box(id)
	if err != nil {
		return err
	}
	lower, err := r.lower(ctx)
	if err != nil {
		return err
	}
	if r.change == nil {
		if err := r.begin(ctx, lower); err != nil {
			return err
		}
	}
	// A volatile overlay can be mounted once: a work directory for each. To remove its four directories takes as long as to start a process.
	scratch := r.change
	work, err := os.MkdirTemp(scratch.Dir(), "work-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Discard(work)) }()
	r.await()
	mount, err := r.mc.Mounter.Mount(OverlayMount{Lower: append([]string{r.mc.floor(p.Network)}, lower...), Upper: r.upper(), Work: work})
	if err != nil {
		return err
	}
	run := &Run{ID: id, Process: p, changes: r.change.Dir()}
	err = r.mc.runIn(ctx, mount, run, box, out, func(pl *points) error { return pl.prune(r.upper()) })
	r.detached = run.Detached
	return err
}

// await waits until nothing is mounted on the change.
func (r *root) await() {
	if r.detached != nil {
		<-r.detached
		r.detached = nil
	}
}

// runIn runs a process in a mounted root, and closes that. settle is called when the mount points are gone.
func (mc *Machine) runIn(ctx context.Context, mount *os.File, r *Run, box Box, out io.Writer, settle func(*points) error) error {
	caches, err := mc.openCaches(ctx, r.Process)
	if err != nil {
		return errors.Join(err, mount.Close())
	}
	r.Plan, err = NewPlan(RootDir{FD: int(mount.Fd())}, r.Process, box.Dir(), mc.Cgroup(r.ID), mc.Cgroups, caches.list)
	if err == nil {
		err = r.Plan.checkDir(r.Process.Dir)
	}
	if err == nil {
		err = checkProcess(r.Plan.points.root, r.Process, r.Plan.covers)
	}
	if err == nil {
		r.Mounts = append([]*os.File{mount}, caches.mounts()...)
		r.Detach = len(caches.list) == 0 && len(r.Plan.points.made) == 0 // else something is done below the mount
		err = mc.limitDisk(ctx, r, caches, func(ctx context.Context) error { return box.Run(ctx, r, out) })
	}
	rerr := r.Plan.Remove()
	if r.changes != "" && mayGive(r.Process) {
		rerr = errors.Join(rerr, endWrites(mount))
	}
	if detached := r.Detached; detached != nil {
		gone := make(chan struct{})
		r.Detached = gone
		go func() {
			<-detached
			_ = mount.Close()
			close(gone)
		}()
	} else {
		_ = mount.Close() // before the directories below it are touched
	}
	return errors.Join(err, rerr, settle(&r.Plan.points), caches.close(executor.Ended(err)))
}

// begin makes the directory of a change.
func (r *root) begin(ctx context.Context, lower []string) error {
	change, err := r.mc.runner.Scratch(ctx)
	if err != nil {
		return err
	}
	if err := layers.MakeUpper(filepath.Join(change.Dir(), "fs"), r.below(lower)); err != nil {
		return errors.Join(err, change.Drop())
	}
	r.change = change
	return nil
}

// Freeze makes the change a layer.
func (r *root) Freeze(ctx context.Context) (executor.Change, error) {
	if err := r.closeTree(); err != nil {
		return nil, err
	}
	if r.change == nil {
		return NewChange(layers.Layer{}), nil
	}
	lower, err := r.lower(ctx)
	if err != nil {
		return nil, err
	}
	empty, err := layers.Seal(r.upper(), lower...)
	if err != nil {
		return nil, errors.Join(err, r.drop())
	}
	if empty {
		same, err := layers.SameDir(r.upper(), r.below(lower))
		if err != nil {
			return nil, err
		}
		if same {
			return NewChange(layers.Layer{}), r.drop()
		}
	}
	dir, err := r.change.Take(ctx)
	if err != nil {
		return nil, errors.Join(err, r.drop())
	}
	name, err := r.mc.store.CommitLayer(dir, "")
	if err != nil {
		return nil, err
	}
	r.change = nil
	if r.detached != nil {
		r.mc.Mounter.detaching(r.mc.store.LayerPath(name), r.detached)
		r.detached = nil
	}
	r.chain.Grow(name)
	return NewChange(layers.Layer{Dir: name}), nil
}

// drop forgets the change.
func (r *root) drop() error {
	if r.change == nil {
		return nil
	}
	change := r.change
	r.change, r.detached = nil, nil
	return change.Drop()
}

// Add puts a layer on top.
func (r *root) Add(_ context.Context, l layers.Layer) error {
	if r.change != nil {
		return errors.New("a layer was added to a root with changes that were not frozen")
	}
	if err := r.closeTree(); err != nil {
		return err
	}
	r.chain.Add(l)
	return nil
}

// Files mounts the present files for reading.
func (r *root) Files(ctx context.Context) (layers.Tree, error) {
	if r.tree != nil {
		return r.tree, nil
	}
	lower, err := r.lower(ctx)
	if err != nil {
		return nil, err
	}
	if r.change != nil {
		r.await()
		lower = append(lower, r.upper())
	}
	if len(lower) == 0 {
		lower = []string{r.mc.Mounter.empty}
	}
	if r.tree, err = r.mc.Mounter.tree(lower); err != nil {
		return nil, err
	}
	return r.tree, nil
}

func (mt *Mounter) tree(lower []string) (*tree, error) {
	mount, err := mt.Mount(OverlayMount{Lower: lower})
	if err != nil {
		return nil, err
	}
	dir, err := layers.DirTree(ProcFD(int(mount.Fd())))
	if err != nil {
		mount.Close()
		return nil, err
	}
	return &tree{dir, mount}, nil
}

// A Tree reads the merged files of layer directories until its Close.
type Tree interface {
	layers.Tree
	Close() error
}

// OpenTree merges layer directories (paths, base first, at least one and fewer than 500) for reading. void is an empty
// directory that is none of them, and stays as long as the tree. Beside it there is room for a moment's directory.
func OpenTree(void string, dirs []string) (Tree, error) {
	mt := Mounter{void: void, empty: void}
	t, err := mt.tree(dirs)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (r *root) closeTree() error {
	if r.tree == nil {
		return nil
	}
	t := r.tree
	r.tree = nil
	return t.Close()
}

// Close forgets what was not frozen.
func (r *root) Close() error { return errors.Join(r.closeTree(), r.drop()) }

// Upper is the directory of what has changed since the last Freeze, in overlay form and not sealed; "" if nothing has run.
// It is valid until the next call of another method.
func (r *root) Upper() string {
	if r.change == nil {
		return ""
	}
	return r.upper()
}

func (r *root) upper() string { return filepath.Join(r.change.Dir(), "fs") }
