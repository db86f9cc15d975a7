package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// flattenBlock is how many of the lowest layers become one when there are more than overlayfs takes. A fixed number makes the
// same chain, and the chain of a later step, flatten to the same layer.
const flattenBlock = 400

// A root is a chain of layer directories and at most one change upon it.
type root struct {
	e       *Executor
	pending []layers.Layer // the end of the chain, not looked at yet
	dirs    []string       // names of layer directories, base first
	change  string         // directory in the store's TempDir; in it "fs" is the change; "" if nothing has run
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
	st := r.e.options.Store
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
		one, err := r.e.flatten(ctx, r.dirs[:flattenBlock])
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
		return r.e.mounter.empty
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
	if err := r.e.cgroups.check(p.Limits); err != nil {
		return err
	}
	s, err := r.e.supervisor()
	if err != nil {
		return err
	}
	lower, err := r.lower(ctx)
	if err != nil {
		return err
	}
	if r.change == "" {
		if err := r.begin(lower); err != nil {
			return err
		}
	}
	// A volatile overlay can be mounted once: a work directory for each.
	work, err := os.MkdirTemp(r.e.tmp, "work-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	mount, err := r.e.mounter.mount(overlayMount{lower: append([]string{r.e.floor(p.Network)}, lower...), upper: r.upper(), work: work})
	if err != nil {
		return err
	}
	defer mount.Close()

	id := r.e.newID()
	bundle := bundleDir(s.priv, id)
	caches, err := r.e.openCaches(ctx, p, bundle)
	if err != nil {
		return err
	}
	pl, err := newPlan(rootDir{fd: int(mount.Fd())}, p, bundle, r.e.cgroup(id), r.e.cgroups, caches.list)
	if err == nil {
		err = checkProcess(pl.points.root, p, pl.covers)
	}
	if err == nil {
		err = r.e.runPlan(ctx, s, id, pl, p, mount, caches, out)
	}
	rerr := pl.remove()
	_ = mount.Close() // before the directories below it are touched
	return errors.Join(err, rerr, pl.points.prune(r.upper()), caches.close(keepsCaches(err)))
}

// keepsCaches reports whether a process came to its own end, be it a bad one: then the caches keep what it wrote.
func keepsCaches(err error) bool {
	var exit *executor.ExitError
	return err == nil || errors.As(err, &exit)
}

// begin makes the directory of a change.
func (r *root) begin(lower []string) error {
	dir, err := os.MkdirTemp(r.e.tmp, "change-")
	if err != nil {
		return err
	}
	if err := layers.MakeUpper(filepath.Join(dir, "fs"), r.below(lower)); err != nil {
		return err
	}
	r.change = dir
	return nil
}

// runPlan runs a prepared process.
func (e *Executor) runPlan(ctx context.Context, s *supervisor, id string, pl *plan, p executor.Process, mount *os.File, caches *cacheSet, out io.Writer) error {
	file, err := e.runtime(ctx, s)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(&pl.spec)
	if err != nil {
		return err
	}
	req := request{ID: id, Runtime: file, Spec: spec, Files: pl.files, Terminal: p.Terminal, Cgroup: pl.spec.Linux.CgroupsPath}
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
	r, err := s.run(limited, req, stdio, append([]*os.File{mount}, caches.mounts()...))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the process was stopped: %w", context.Cause(ctx))
	case err != nil:
		return err
	case r.Event == exited:
		return exitError(r, p.Limits, limited.Err() != nil)
	case limited.Err() != nil:
		return timedOut(p.Limits)
	}
	return runtimeError(r)
}

const sigkill = 9

// exitError tells how a process ended; nil if well.
func exitError(r reply, l executor.Limits, stopped bool) error {
	switch {
	case r.Code == 0 && r.Signal == 0:
		return nil
	case stopped && r.Signal == sigkill:
		return timedOut(l)
	case r.OOM:
		return &executor.ExitError{Reason: executor.OOM, Code: r.Code, Signal: r.Signal, Limit: units.BytesSize(float64(l.Memory))}
	case r.Signal != 0:
		return &executor.ExitError{Reason: executor.Signaled, Signal: r.Signal}
	}
	return &executor.ExitError{Reason: executor.Exited, Code: r.Code}
}

func timedOut(l executor.Limits) error {
	return &executor.ExitError{Reason: executor.TimedOut, Limit: l.Timeout.String()}
}

// startMessages tell a StartError from broken infrastructure: what a runtime says when it cannot start a process because of the spec or the image, and
// checkProcess could not see it.
var startMessages = []string{
	"exec: \"", "exec format error", "executable file", "eaccess", "open executable", // the program
	"chdir to", "set in config.json failed", "cannot set working directory", // the directory
	"not a directory", "is a directory", // a mount target
}

func runtimeError(r reply) error {
	said := strings.Join(r.Said, "; ")
	if r.Event == broken || said == "" {
		return fmt.Errorf("run a container: %s", strings.TrimSpace(r.Error+" "+said))
	}
	if slices.ContainsFunc(startMessages, func(m string) bool { return strings.Contains(said, m) }) {
		return &executor.StartError{Msg: "cannot start the process: " + cleanMessage(said)}
	}
	return fmt.Errorf("run a container: %s: %s", r.Error, said)
}

// cleanMessage takes from a runtime's message what it was doing.
func cleanMessage(s string) string {
	for _, cut := range []string{"runc run failed: ", "unable to start container process: ", "container_linux.go"} {
		s = strings.TrimPrefix(s, cut)
	}
	return s
}

// Freeze makes the change a layer.
func (r *root) Freeze(ctx context.Context) (executor.Change, error) {
	if err := r.closeTree(); err != nil {
		return nil, err
	}
	if r.change == "" {
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
	name, err := r.e.options.Store.CommitLayer(r.change, "")
	if err != nil {
		return nil, err
	}
	r.change = ""
	r.dirs = append(r.dirs, name)
	return change{layers.Layer{Dir: name}}, nil
}

// drop forgets the change.
func (r *root) drop() error {
	if r.change == "" {
		return nil
	}
	dir := r.change
	r.change = ""
	return r.e.options.Store.Trash(dir)
}

// Add puts a layer on top.
func (r *root) Add(_ context.Context, l layers.Layer) error {
	if r.change != "" {
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
	if r.change != "" {
		lower = append(lower, r.upper())
	}
	if len(lower) == 0 {
		lower = []string{r.e.mounter.empty}
	}
	if r.tree, err = r.e.mounter.tree(lower); err != nil {
		return nil, err
	}
	return r.tree, nil
}

func (mt *mounter) tree(lower []string) (*tree, error) {
	mount, err := mt.mount(overlayMount{lower: lower})
	if err != nil {
		return nil, err
	}
	dir, err := layers.DirTree(procFD(int(mount.Fd())))
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
	mt := mounter{void: void, empty: void}
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
	if r.change == "" {
		return ""
	}
	return r.upper()
}

func (r *root) upper() string { return filepath.Join(r.change, "fs") }
