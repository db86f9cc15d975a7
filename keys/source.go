package keys

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/text/unicode/norm"

	"github.com/ocurrent/obx/keys/spec"
)

// A Source is one src of a copy, hashed.
type Source struct {
	Src  string // cleaned path in the context; "." for all of it
	Node Node
}

// A Node is one file of a canonical tree.
type Node struct {
	Name     string        // base name; "" for the root of "."
	Kind     fs.FileMode   // type bits only: 0 (regular), fs.ModeDir or fs.ModeSymlink
	Exec     bool          // any x bit (always false for Windows targets)
	Size     int64         // of a regular file; not in the key
	Digest   digest.Digest // of a regular file's content; of a directory's listing if its Children are not known
	Link     string        // target of a link
	Children []Node        // of a directory, sorted by name
}

// A FileHasher gives the SHA-256 of a file's content; it may remember (see cas.HashMemo). It is used concurrently.
type FileHasher interface {
	Digest(name string, info fs.FileInfo, open func() (io.ReadCloser, error)) (digest.Digest, error)
}

// HashSources reads the sources of a copy from fsys: used by New for the context and by the build loop for the files
// of another stage. Exclusions apply below the sources. Links are never followed. o.Hasher must be one for the files of
// fsys. Its error joins one for each wrong source or file, without positions.
func HashSources(ctx context.Context, fsys fs.FS, c *spec.Copy, o Options) ([]Source, error) {
	h := newHasher(ctx, fsys, o)
	w := h.start(c)
	h.wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := errors.Join(w.problems()...); err != nil {
		return nil, err
	}
	return w.sources, nil
}

// A hasher hashes sources of copies from one file system, several files at a time.
type hasher struct {
	ctx     context.Context
	fsys    fs.FS
	files   FileHasher
	windows bool
	context string // for messages: what fsys is
	group   errgroup.Group
}

func newHasher(ctx context.Context, fsys fs.FS, o Options) *hasher {
	h := &hasher{ctx: ctx, fsys: fsys, files: o.Hasher, windows: isWindows(o.Platform), context: cmp.Or(o.ContextName, "the source directory")}
	if h.files == nil {
		h.files = newPlainHasher()
	}
	jobs := o.Jobs
	if jobs <= 0 {
		jobs = runtime.GOMAXPROCS(0)
	}
	h.group.SetLimit(jobs - 1) // and the caller of start
	return h
}

// spawn runs f now: beside the caller if there is a free job, else in it. So a full hasher never waits for itself.
func (h *hasher) spawn(f func()) {
	if !h.group.TryGo(func() error { f(); return nil }) {
		f()
	}
}

func (h *hasher) wait() { _ = h.group.Wait() }

// A walk is the work of hashing one copy's sources. Its fields are complete after the hasher's wait.
type walk struct {
	*hasher
	where   string // for messages: what the sources are in
	build   bool   // that is a build
	exclude []string
	sources []Source

	mu     sync.Mutex
	failed []problem
}

// A problem is one file that cannot be copied.
type problem struct {
	path string
	err  error
}

// maxProblems is how many files of one copy are reported.
const maxProblems = 10

func (h *hasher) start(c *spec.Copy) *walk {
	w := h.walk(c)
	for i, src := range c.Src {
		if name, info := w.source(src, &w.sources[i]); info != nil {
			w.node(name, info, &w.sources[i].Node, 0)
		}
	}
	return w
}

func (h *hasher) walk(c *spec.Copy) *walk {
	w := &walk{hasher: h, where: "in " + h.context, exclude: c.Exclude, sources: make([]Source, len(c.Src))}
	if c.From != "" {
		w.where, w.build = fmt.Sprintf("in build %q", c.From), true
	}
	return w
}

// CheckSources finds the sources of copies from the context that are not there, without reading any file. It is for a spec that has
// other mistakes too; New tells the same of one that has none.
func CheckSources(s *spec.Spec, o Options) spec.ErrorList {
	if o.Context == nil {
		return nil
	}
	h := newHasher(context.Background(), o.Context, o)
	var list spec.ErrorList
	for st := range s.Stages() {
		for _, op := range st.Ops {
			c, ok := op.(*spec.Copy)
			if !ok || c.From != "" {
				continue
			}
			w := h.walk(c)
			for i, src := range c.Src {
				if !slices.Contains(strings.Split(src, "/"), "..") { // Check tells
					w.source(src, &w.sources[i])
				}
			}
			for _, err := range w.problems() {
				list = append(list, &spec.Error{File: s.File, Pos: c.Pos, Msg: err.Error()})
			}
		}
	}
	return list
}

func (w *walk) fail(path string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = append(w.failed, problem{path, err})
}

// failReading names the file once, and leaves out which system call it was.
func (w *walk) failReading(path string, err error) {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		err = pe.Err
	}
	w.fail(path, fmt.Errorf("cannot read %q: %w", path, err))
}

// problems lists what failed, in an order that does not depend on timing.
func (w *walk) problems() []error {
	slices.SortStableFunc(w.failed, func(a, b problem) int { return cmp.Compare(a.path, b.path) })
	errs := make([]error, 0, min(len(w.failed), maxProblems+1))
	for i, p := range w.failed {
		if i == maxProblems {
			errs = append(errs, fmt.Errorf("and %d more files that cannot be copied", len(w.failed)-i))
			break
		}
		errs = append(errs, p.err)
	}
	return errs
}

// source checks each component of a source's path, and gives what it leads to; the info is nil if that is nothing.
func (w *walk) source(src string, s *Source) (string, fs.FileInfo) {
	s.Src = cleanSource(src, w.windows)
	name, info, err := ".", fs.FileInfo(nil), error(nil)
	if s.Src == "." {
		info, err = fs.Lstat(w.fsys, name)
	} else {
		parts := strings.Split(s.Src, "/")
		if slices.Contains(parts, "..") {
			w.fail(src, fmt.Errorf(`source %q: ".." is not allowed in a source`, src))
			return "", nil
		}
		for i, part := range parts {
			name = path.Join(name, part)
			if info, err = fs.Lstat(w.fsys, name); err != nil || i == len(parts)-1 {
				break
			}
			if !info.IsDir() {
				w.fail(src, fmt.Errorf("source %q: %q is %s, not a directory", src, name, kindName(info.Mode())))
				return "", nil
			}
		}
		s.Node.Name = path.Base(s.Src)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		w.fail(src, fmt.Errorf("source %q not found %s%s", src, w.where, w.absolute(src)))
	case err != nil:
		w.failReading(name, err)
	default:
		return name, info
	}
	return "", nil
}

// absolute says of a source that is not there what its slash means.
func (w *walk) absolute(src string) string {
	if w.build || !strings.HasPrefix(src, "/") {
		return ""
	}
	return ": with a / before it, it is looked for there all the same, and nowhere else on this machine"
}

// node fills in what a file is. Directories are gone into.
func (w *walk) node(name string, info fs.FileInfo, n *Node, level int) {
	var err error
	switch n.Kind = info.Mode().Type(); n.Kind {
	case fs.ModeDir:
		w.dir(name, n, level)
	case fs.ModeSymlink:
		n.Link, err = fs.ReadLink(w.fsys, name)
	case 0:
		n.Size = info.Size()
		n.Exec = info.Mode()&0o111 != 0 && !w.windows
		n.Digest, err = w.files.Digest(name, info, func() (io.ReadCloser, error) { return w.fsys.Open(name) })
		if err == nil && !isSHA256(n.Digest) {
			err = fmt.Errorf("its hash %q is no SHA-256", n.Digest)
		}
	default:
		w.fail(name, fmt.Errorf("%q is %s: only files, directories and links can be copied", name, kindName(n.Kind)))
	}
	if err != nil {
		w.failReading(name, err)
	}
}

// batch is how many files of a directory one job takes: lstat costs about a microsecond, starting a job not much less.
const batch = 64

func (w *walk) dir(name string, n *Node, level int) {
	if level == maxLevels {
		w.fail(name, fmt.Errorf("%.100q…: directories are nested too deeply", name))
		return
	}
	entries, err := fs.ReadDir(w.fsys, name)
	if err != nil {
		w.failReading(name, err)
		return
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return slices.Contains(w.exclude, e.Name()) })
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) }) // quick if it is sorted
	if w.windows {
		w.checkWindowsNames(name, entries)
	}
	n.Children = make([]Node, len(entries))
	for lo := 0; lo < len(entries); lo += batch {
		hi := min(lo+batch, len(entries))
		w.spawn(func() { w.entries(name, entries[lo:hi], n.Children[lo:hi], level) })
	}
}

func (w *walk) entries(dir string, entries []fs.DirEntry, nodes []Node, level int) {
	for i, e := range entries {
		if w.ctx.Err() != nil {
			return
		}
		nodes[i].Name = e.Name()
		name := path.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			w.failReading(name, err)
			continue
		}
		w.node(name, info, &nodes[i], level+1)
	}
}

// checkWindowsNames refuses what a Windows file system would merge, refuse, or take for a path; and names that differ in their Unicode form only, which
// nobody can tell apart, and programs there do not.
func (w *walk) checkWindowsNames(dir string, entries []fs.DirEntry) {
	seen := make(map[string]string, len(entries))
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if strings.ContainsFunc(e.Name(), func(r rune) bool { return r < ' ' || strings.ContainsRune(`<>:"|?*\`, r) }) {
			w.fail(name, fmt.Errorf("%q cannot be copied: Windows has no such file names", name))
			continue
		}
		upper := strings.ToUpper(norm.NFC.String(e.Name()))
		if other, ok := seen[upper]; ok {
			w.fail(name, fmt.Errorf("%q and %q cannot both be copied: Windows takes their names for the same",
				path.Join(dir, other), name))
			continue
		}
		seen[upper] = e.Name()
	}
}

func kindName(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "a file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a link"
	case fs.ModeNamedPipe:
		return "a named pipe"
	case fs.ModeSocket:
		return "a socket"
	}
	if m&fs.ModeDevice != 0 {
		return "a device"
	}
	return "a special file"
}

// isSHA256 is Digest.Validate without its regular expression, which would cost more than all else for a remembered file.
func isSHA256(d digest.Digest) bool {
	hex, ok := strings.CutPrefix(string(d), "sha256:")
	return ok && isHex(hex)
}

// A plainHasher reads every file.
type plainHasher struct{ buffers *sync.Pool }

func newPlainHasher() plainHasher {
	return plainHasher{&sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}}
}

func (h plainHasher) Digest(_ string, _ fs.FileInfo, open func() (io.ReadCloser, error)) (digest.Digest, error) {
	f, err := open()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	buf := h.buffers.Get().(*[]byte)
	defer h.buffers.Put(buf)
	// Not ReadFrom or WriteTo, which would allocate a buffer for each file.
	if _, err = io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, *buf); err != nil {
		_ = f.Close()
		return "", err
	}
	return digest.NewDigest(digest.SHA256, sum), f.Close()
}
