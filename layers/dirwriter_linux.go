package layers

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// A dirWriter fills a directory with several writers. One goroutine, its owner, decides what is made where; files are
// written by others meanwhile. Every name is reached through an open directory and no link is followed, so nothing
// outside is touched, whatever the names are.
//
// Directories get their attributes in finish: until then an inherited ACL or set-gid bit, and the modification time,
// would be wrong.
type dirWriter struct {
	ctx    context.Context
	root   *node
	euid   int
	egid   int
	opened []*node // whose descriptor is open, but for the root
	jobs   chan *job
	done   sync.WaitGroup // workers
	closed bool
	plain  bool          // not in overlayfs's form: a device 0:0 means nothing
	broken chan struct{} // closed with the first error

	mu      sync.Mutex
	changed sync.Cond // pending has become smaller
	pending map[fileID]struct{}
	err     error // the first of a worker
}

// A node is a directory below the root.
type node struct {
	parent *node
	level  *foreign.Level
	kids   map[string]*node
	fd     int // -1 if not open
	meta   *meta
	opaque bool
	old    bool // was there before: keeps its attributes unless meta is set

	// Of a layer that is unpacked:
	virtual bool   // a directory of lower layers, or that is missing: nothing has been made here yet
	below   *place // what lower layers have here; nil if nothing of it is to be seen
	marked  bool   // has whiteouts
	hollow  bool   // has been made for whiteouts and has nothing else: it is not of the layer
}

// A fileID is a name in a directory.
type fileID struct {
	dir  *node
	name string
}

type job struct {
	id fileID
	fn func(dirfd int) error
}

const (
	maxOpenDirs = 256

	// openStride is after how many directories one is kept open on the way down to another, so that those near it, above it too, are
	// opened from there and not from the root.
	openStride = 64
)

// newDirWriter begins to fill an existing directory.
func newDirWriter(ctx context.Context, dir string) (*dirWriter, error) {
	fd, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	w := &dirWriter{
		ctx: ctx, root: &node{fd: fd, level: &foreign.Level{}}, euid: os.Geteuid(), egid: os.Getegid(),
		jobs: make(chan *job, 64), pending: make(map[fileID]struct{}), broken: make(chan struct{}),
	}
	w.changed.L = &w.mu
	// More writers than processors: creating a file waits for the journal and for the directory's lock.
	for range max(4, min(8, runtime.GOMAXPROCS(0))) {
		w.done.Go(w.work)
	}
	return w, nil
}

func (w *dirWriter) work() {
	for j := range w.jobs {
		var err error
		if w.failed() == nil {
			err = j.fn(j.id.dir.fd)
		}
		w.mu.Lock()
		if err != nil && w.err == nil {
			w.err = fmt.Errorf("%s: %w", j.id, err)
			close(w.broken)
		}
		delete(w.pending, j.id)
		w.mu.Unlock()
		w.changed.Broadcast()
	}
}

func (w *dirWriter) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// String is the file's path, for messages.
func (id fileID) String() string { return id.dir.level.Child(id.name).Short() }

// path is the directory's path, for messages.
func (n *node) path() string { return n.level.Short() }

// spawn lets another goroutine make the file name in a directory. fn must make nothing else.
func (w *dirWriter) spawn(n *node, name string, fn func(dirfd int) error) error {
	if err := w.fd(n); err != nil {
		return err
	}
	id := fileID{n, name}
	if err := w.wait(id); err != nil {
		return err
	}
	w.mu.Lock()
	w.pending[id] = struct{}{}
	w.mu.Unlock()
	w.jobs <- &job{id, fn}
	return nil
}

// wait returns when nobody is making a file any more, or with the first error.
func (w *dirWriter) wait(id fileID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.err != nil {
			return w.err
		}
		if _, ok := w.pending[id]; !ok {
			return w.ctx.Err()
		}
		w.changed.Wait()
	}
}

// drain waits for all files.
func (w *dirWriter) drain() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.pending) > 0 {
		w.changed.Wait()
	}
	return w.err
}

// fd makes sure that a directory is open. Few stay open: the writers are waited for before any is closed.
func (w *dirWriter) fd(n *node) error {
	if n.fd >= 0 {
		return nil
	}
	var chain []*node // from n up to what is open
	top := n
	for ; top.fd < 0; top = top.parent {
		chain = append(chain, top)
	}
	for len(chain) > 0 {
		part := chain[max(0, len(chain)-openStride):]
		chain = chain[:len(chain)-len(part)]
		if len(w.opened) >= maxOpenDirs {
			if err := w.drain(); err != nil {
				return err
			}
			w.closeDirs(top)
		}
		names := make([]string, len(part))
		for i, k := range part {
			names[len(part)-1-i] = k.level.Name()
		}
		fd, err := foreign.OpenBeneath(top.fd, strings.Join(names, "/"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return &fs.PathError{Op: "open", Path: part[0].path(), Err: err}
		}
		top = part[0]
		top.fd = fd
		w.opened = append(w.opened, top)
	}
	return nil
}

// closeDirs closes all directories but for the root and one. Nobody may be writing.
func (w *dirWriter) closeDirs(keep *node) {
	var kept []*node
	for _, n := range w.opened {
		if n == keep {
			kept = append(kept, n)
			continue
		}
		unix.Close(n.fd)
		n.fd = -1
	}
	w.opened = kept
}

// A clash says what to do with something that is no directory where one should be.
type clash int

const (
	clashFails    clash = iota // a directory on the way to something
	clashReplaces              // a directory itself
)

// dir makes a directory in n, or finds the one that is there. A whiteout in its place becomes the opaque mark: both
// hide what lower layers have.
func (w *dirWriter) dir(n *node, name string, c clash) (*node, error) {
	if k := n.kids[name]; k != nil {
		return k, nil
	}
	if err := CheckDepth(n.level, name); err != nil {
		return nil, err
	}
	if err := w.fd(n); err != nil {
		return nil, err
	}
	id := fileID{n, name}
	if err := w.wait(id); err != nil {
		return nil, err
	}
	k := n.child(name)
	err := unix.Mkdirat(n.fd, name, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(n.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, &fs.PathError{Op: "lstat", Path: id.String(), Err: err}
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			k.old, err = true, nil
		case c == clashReplaces || !w.plain && isWhiteout(&st):
			if err := unix.Unlinkat(n.fd, name, 0); err != nil {
				return nil, &fs.PathError{Op: "remove", Path: id.String(), Err: err}
			}
			k.opaque = !w.plain
			err = unix.Mkdirat(n.fd, name, 0o700)
		default:
			return nil, fmt.Errorf("%s is not a directory", id)
		}
	}
	if err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: id.String(), Err: err}
	}
	n.add(k)
	return k, nil
}

// child is a directory in n that n does not have yet.
func (n *node) child(name string) *node {
	return &node{parent: n, level: n.level.Child(name), fd: -1}
}

func (n *node) add(k *node) {
	if n.kids == nil {
		n.kids = make(map[string]*node)
	}
	n.kids[k.level.Name()] = k
}

// leave forgets a directory that was made, which is about to go with all below it.
func (w *dirWriter) leave(n *node) error {
	if err := w.drain(); err != nil {
		return err
	}
	if err := w.fd(n.parent); err != nil {
		return err
	}
	w.closeDirs(n.parent)
	delete(n.parent.kids, n.level.Name())
	return nil
}

// replace runs make, which makes a name that must not exist; what is there goes first.
func replace(dirfd int, name string, make func() error) error {
	err := make()
	if err != unix.EEXIST {
		return err
	}
	if err := unix.Unlinkat(dirfd, name, 0); err != nil {
		return &fs.PathError{Op: "replace", Err: err}
	}
	return make()
}

// create makes a new file, with nothing in it and nobody else able to open it.
func create(dirfd int, name string) (fd int, err error) {
	err = replace(dirfd, name, func() error {
		fd, err = openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("create: %w", err)
	}
	return fd, nil
}

func pwrite(fd int, p []byte, at int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// finish waits for all files, and gives the directories their attributes, the deepest first. Those that nothing was
// said of are root's, 0755, of the beginning of time: so that the same names give the same layer.
func (w *dirWriter) finish() error {
	if err := w.drain(); err != nil {
		return err
	}
	return w.finishDir(w.root)
}

func (w *dirWriter) finishDir(n *node) error {
	if n.virtual {
		return nil
	}
	for _, k := range n.kids {
		if err := w.finishDir(k); err != nil {
			return err
		}
	}
	if n.old && n.meta == nil && !n.opaque {
		return nil
	}
	if err := w.fd(n); err != nil {
		return err
	}
	m := n.meta
	if m == nil {
		m = &meta{mode: 0o755, mtime: time.Unix(0, 0)}
	}
	if n.opaque {
		if err := unix.Fsetxattr(n.fd, opaqueXattr, []byte("y"), 0); err != nil {
			return &fs.PathError{Op: "setxattr " + opaqueXattr, Path: n.path(), Err: err}
		}
	}
	if n.marked {
		if err := checkWhiteouts(n.fd); err != nil {
			return fmt.Errorf("%s: %w", n.path(), err)
		}
	}
	if err := m.setFD(n.fd); err != nil {
		return fmt.Errorf("%s: %w", n.path(), err)
	}
	return nil
}

// checkWhiteouts has overlayfs look at each whiteout of a directory. Without the mark, a directory that only one layer has, or that is opaque,
// is listed as it is: with names that cannot be opened. An empty value says only that lower layers may have had the directory.
func checkWhiteouts(fd int) error {
	if err := unix.Fsetxattr(fd, originXattr, nil, 0); err != nil {
		return &fs.PathError{Op: "setxattr " + originXattr, Err: err}
	}
	return nil
}

// close ends the writers. Files that were not waited for may be missing.
func (w *dirWriter) close() {
	if w.closed {
		return
	}
	w.closed = true
	close(w.jobs)
	w.done.Wait()
	w.closeDirs(nil)
	unix.Close(w.root.fd)
}

// split cleans a name of a tar. A leading slash means the layer's root, as all readers have it (some builders write
// such names); ".." is never right. CheckDepth bounds what the names lead to.
func split(name string) ([]string, error) {
	var names []string
	for s := range strings.SplitSeq(name, "/") {
		switch s {
		case "", ".":
		case "..":
			return nil, fmt.Errorf("%q: a name with \"..\"", short(name))
		default:
			if len(names) > maxDepth {
				return nil, ErrTooDeep
			}
			names = append(names, s)
		}
	}
	return names, nil
}
