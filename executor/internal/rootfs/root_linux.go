package rootfs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// flattenBlock is how many of the lowest layers become one when there are more than overlayfs takes. A fixed number makes the
// same chain, and the chain of a later step, flatten to the same layer.
const flattenBlock = 400

// A root is a chain of layer directories and at most one change upon it.
type root struct {
	mc      *Machine
	pending []layers.Layer // the end of the chain, not looked at yet
	dirs    []string       // names of layer directories, base first
	change  Scratch        // what has changed; nil if nothing has run
	tree    *tree          // what Files has given
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
	st := r.mc.store
	for len(r.pending) > 0 {
		l := r.pending[0]
		if l.Dir == "" || !st.HasLayer(l.Dir) {
			var err error
			if l, err = layers.Unpack(ctx, st, l); err != nil {
				return nil, err
			}
		}
		// Equal layers are one directory, and overlayfs takes none twice. The upper one says all that the lower one says.
		r.dirs = append(slices.DeleteFunc(r.dirs, func(d string) bool { return d == l.Dir }), l.Dir)
		r.pending = r.pending[1:]
	}
	for len(r.dirs) >= maxLower { // one less than that: there is the floor, or for Files the change
		one, err := r.mc.flatten(ctx, r.dirs[:flattenBlock])
		if err != nil {
			return nil, err
		}
		r.dirs = append([]string{one}, r.dirs[flattenBlock:]...)
	}
	paths := make([]string, len(r.dirs))
	for i, d := range r.dirs {
		paths[i] = st.LayerPath(d)
	}
	return paths, nil
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
	if err != nil {
		err = errors.Join(err, r.drop())
	}
	return err
}

func (r *root) run(ctx context.Context, p executor.Process, out io.Writer) (err error) {
	if err := r.closeTree(); err != nil {
		return err
	}
	if err := r.mc.Cgroups.Check(p.Limits); err != nil {
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
	// A volatile overlay can be mounted once: a work directory for each.
	work, err := os.MkdirTemp(r.change.Dir(), "work-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	mount, err := r.mc.Mounter.Mount(OverlayMount{Lower: append([]string{r.mc.floor(p.Network)}, lower...), Upper: r.upper(), Work: work})
	if err != nil {
		return err
	}
	defer mount.Close()

	caches, err := r.mc.openCaches(ctx, p, box.Dir())
	if err != nil {
		return err
	}
	pl, err := NewPlan(RootDir{FD: int(mount.Fd())}, p, box.Dir(), r.mc.Cgroup(id), r.mc.Cgroups, caches.list)
	if err == nil {
		err = checkProcess(pl.points.root, p, pl.covers)
	}
	if err == nil {
		err = box.Run(ctx, &Run{ID: id, Plan: pl, Process: p, Mounts: append([]*os.File{mount}, caches.mounts()...)}, out)
	}
	rerr := pl.Remove()
	_ = mount.Close() // before the directories below it are touched
	return errors.Join(err, rerr, pl.points.prune(r.upper()), caches.close(keepsCaches(err)))
}

// keepsCaches reports whether a process came to its own end, be it a bad one: then the caches keep what it wrote.
func keepsCaches(err error) bool {
	var exit *executor.ExitError
	return err == nil || errors.As(err, &exit)
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
		return change{}, nil
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
			return change{}, r.drop()
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
	r.dirs = append(r.dirs, name)
	return change{layers.Layer{Dir: name}}, nil
}

// drop forgets the change.
func (r *root) drop() error {
	if r.change == nil {
		return nil
	}
	change := r.change
	r.change = nil
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
	if !l.IsZero() {
		r.pending = append(r.pending, l)
	}
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

// A change is a committed layer directory: it needs nothing of its root.
type change struct{ layer layers.Layer }

func (c change) Layer(context.Context) (layers.Layer, error) { return c.layer, nil }
func (c change) Close() error                                { return nil }

// Upper is the directory of what has changed since the last Freeze, in overlay form and not sealed; "" if nothing has run.
// It is valid until the next call of another method.
func (r *root) Upper() string {
	if r.change == nil {
		return ""
	}
	return r.upper()
}

func (r *root) upper() string { return filepath.Join(r.change.Dir(), "fs") }
