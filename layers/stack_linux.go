package layers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cas/foreign"
)

// A Stack puts layer directories on top of each other. What the bytes of a layer leave open is decided here, where the layers below are known:
//
//   - Directories that a layer only implies have the attributes that the layers below gave them, by a small layer on top that has nothing
//     else. Layers in a row share one.
//   - A layer whose entries lead through links of the layers below, that links to their files, or that has whiteouts in directories which do
//     not exist, is applied again, with hard links to its files. The result takes its place.
//
// Both are layer directories whose names depend on the directories below alone, so the same chain has the same again.
type Stack struct {
	Dirs  []string // names of layer directories, base first
	Added []string // those that were put there since NewStack

	st    *cas.Store
	tree  *mergedDirs      // of Dirs; nil: not looked at
	attrs map[string]attrs // of directories, that Dirs have wrong
}

// attrs are what a directory should have that a layer only implies.
type attrs struct {
	layer string
	meta  *meta
}

// NewStack begins with directories that are as they should be.
func NewStack(st *cas.Store, dirs []string) *Stack { return &Stack{Dirs: slices.Clone(dirs), st: st} }

// Close releases what was opened.
func (s *Stack) Close() {
	if s.tree != nil {
		s.tree.close()
		s.tree = nil
	}
}

// Add puts a layer directory on top.
func (s *Stack) Add(ctx context.Context, dir string) error {
	if err := s.add(ctx, dir); err != nil {
		return fmt.Errorf("put layer %s on those below it: %w", dir, err)
	}
	return nil
}

func (s *Stack) add(ctx context.Context, dir string) error {
	ends, err := openEnds(filepath.Dir(s.st.LayerPath(dir)))
	if err != nil {
		return err
	}
	// Equal layers are one directory, and overlayfs takes none twice. The upper one says all that the lower one says.
	again := slices.Contains(s.Dirs, dir)
	if again || len(ends) == 0 {
		if err := s.Flush(ctx); err != nil {
			return err
		}
	}
	if again {
		s.Dirs = slices.DeleteFunc(s.Dirs, func(d string) bool { return d == dir })
		s.Close()
	}
	apply, found := false, map[string]*meta{}
	for _, e := range ends {
		switch e.need {
		case linkBelow:
			apply = true
		default:
			m, ordinary, err := s.end(e)
			if err != nil {
				return err
			}
			if m != nil {
				found[e.path] = m
			}
			apply = apply || !ordinary
		}
	}
	if apply {
		if err := s.Flush(ctx); err != nil {
			return err
		}
		if dir, err = s.apply(ctx, dir); err != nil {
			return err
		}
	}
	if isOpaque(s.st.LayerPath(dir)) { // overlayfs does not ask a root for it
		s.Dirs, s.attrs = nil, nil
		s.Close()
	}
	if !apply {
		for path, m := range found {
			if s.attrs == nil {
				s.attrs = map[string]attrs{}
			}
			s.attrs[path] = attrs{dir, m}
		}
	}
	return s.push(dir)
}

func (s *Stack) push(dir string) error {
	s.Dirs, s.Added = append(s.Dirs, dir), append(s.Added, dir)
	if s.tree == nil {
		return nil
	}
	return s.tree.push(s.st.LayerPath(dir))
}

// end looks below a layer for what it leaves open: for the attributes of a directory, if they are not those that a layer's directory has
// that it only implies, and whether the layer can be as it is.
func (s *Stack) end(e openEnd) (m *meta, ordinary bool, err error) {
	if e.path == "." { // without opening all layers, as many images have no entry for it
		m, err = s.rootMeta()
		if err == nil && m.equal(impliedMeta()) {
			m = nil
		}
		return m, true, err
	}
	p, err := s.place(e.path)
	switch {
	case err != nil:
		return nil, false, err
	case p.typ == 0:
		return nil, e.need != forWhiteouts, nil
	case p.typ != unix.S_IFDIR:
		return nil, false, nil
	case e.need == passed:
		return nil, true, nil
	}
	if a, ok := s.attrs[e.path]; ok && a.layer == s.Dirs[p.top()] {
		m = a.meta
	} else if m, err = p.meta(); err != nil {
		return nil, false, err
	}
	if m.equal(impliedMeta()) {
		m = nil
	}
	return m, true, nil
}

// impliedMeta is what finish gives to a directory that nothing was said of.
func impliedMeta() *meta { return &meta{mode: 0o755, mtime: time.Unix(0, 0)} }

// rootMeta is what the root of the stack has.
func (s *Stack) rootMeta() (*meta, error) {
	if len(s.Dirs) == 0 {
		return impliedMeta(), nil
	}
	top := s.Dirs[len(s.Dirs)-1]
	if a, ok := s.attrs["."]; ok && a.layer == top {
		return a.meta, nil
	}
	return dirMeta(s.st.LayerPath(top))
}

// place finds a path in the stack, through no link.
func (s *Stack) place(path string) (p *place, err error) {
	if s.tree == nil {
		if s.tree, err = newMerged(s.st, s.Dirs); err != nil {
			return nil, err
		}
	}
	p = s.tree.root
	if path == "." {
		return p, nil
	}
	for name := range strings.SplitSeq(path, "/") {
		if p, err = p.child(name); err != nil || p.typ != unix.S_IFDIR && p.level.Len() < len(path) {
			return &place{}, err
		}
	}
	return p, nil
}

// name is that of a layer directory which is made for the stack.
func (s *Stack) name(what string, more ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(slices.Concat([]string{what}, s.Dirs, more), "\n")))
	return "s-" + hex.EncodeToString(sum[:])
}

// Flush gives directories the attributes that they should have.
func (s *Stack) Flush(ctx context.Context) error {
	attrs := s.attrs
	s.attrs = nil
	for path, a := range attrs {
		p, err := s.place(path)
		if err != nil {
			return err
		}
		if p.typ != unix.S_IFDIR || s.Dirs[p.top()] != a.layer { // a later layer has said something of it
			delete(attrs, path)
		}
	}
	if len(attrs) == 0 {
		return nil
	}
	name := s.name("attributes 1")
	if s.st.HasLayer(name) {
		return s.push(name)
	}
	dir, err := newLayerDir(s.st)
	if err != nil {
		return err
	}
	defer discard(s.st, dir)
	w, err := newDirWriter(ctx, filepath.Join(dir, layerFiles))
	if err != nil {
		return err
	}
	defer w.close()
	metaAt := func(path string) (*meta, error) {
		if a, ok := attrs[path]; ok {
			return a.meta, nil
		}
		p, err := s.place(path)
		if err != nil {
			return nil, err
		}
		return p.meta()
	}
	if w.root.meta, err = metaAt("."); err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(attrs)) {
		if path == "." {
			continue
		}
		n := w.root
		for name := range strings.SplitSeq(path, "/") {
			if n, err = w.dir(n, name, clashFails); err != nil {
				return err
			}
			if n.meta == nil {
				if n.meta, err = metaAt(n.level.String()); err != nil {
					return err
				}
			}
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	if _, err := s.st.CommitLayer(dir, name); err != nil {
		return err
	}
	return s.push(name)
}

// apply applies a layer to the stack, and gives the name of the directory that it is there.
func (s *Stack) apply(ctx context.Context, layer string) (string, error) {
	name := s.name("applied 1", layer)
	if s.st.HasLayer(name) {
		return name, nil
	}
	root, err := s.place(".")
	if err != nil {
		return "", err
	}
	r, err := newReplay(filepath.Dir(s.st.LayerPath(layer)))
	if err != nil {
		return "", err
	}
	defer r.close()
	dir, err := newLayerDir(s.st)
	if err != nil {
		return "", err
	}
	defer discard(s.st, dir)
	w, err := newDirWriter(ctx, filepath.Join(dir, layerFiles))
	if err != nil {
		return "", err
	}
	defer w.close()
	u := untarrer{dirWriter: w, again: r}
	if len(s.Dirs) > 0 {
		if u.root.meta, err = s.rootMeta(); err != nil {
			return "", err
		}
		u.root.below = root
	}
	for i, e := range r.entries {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		r.next = i
		if err := u.entry(nil, e.Header); err != nil {
			return "", fmt.Errorf("%q: %w", short(e.Header.Name), err)
		}
	}
	if err := u.finish(); err != nil {
		return "", err
	}
	return s.st.CommitLayer(dir, name)
}

// A mergedDirs is what layer directories are on top of each other, looked at without mounting them.
type mergedDirs struct {
	dirs []int // base first
	root *place
}

func newMerged(st *cas.Store, dirs []string) (*mergedDirs, error) {
	m := &mergedDirs{}
	m.root = &place{m: m, level: &foreign.Level{}, typ: unix.S_IFDIR}
	for _, d := range dirs {
		if err := m.push(st.LayerPath(d)); err != nil {
			m.close()
			return nil, err
		}
	}
	return m, nil
}

// push puts a directory on top.
func (m *mergedDirs) push(path string) error {
	fd, err := openRoot(path)
	if err != nil {
		return err
	}
	m.dirs = append(m.dirs, fd)
	m.root.in = slices.Insert(m.root.in, 0, len(m.dirs)-1)
	return m.root.pushed()
}

func (m *mergedDirs) close() { closeAll(m.dirs) }

// A place is a path in merged directories.
type place struct {
	m     *mergedDirs
	up    *place
	level *foreign.Level
	typ   uint32 // as in st_mode; 0: nothing is there
	in    []int  // layers that have it, topmost first: for a directory all that are merged, else one
	kids  map[string]*place
}

// top is the number of the layer that has a place's own attributes.
func (p *place) top() int { return p.in[0] }

// pushed looks at what a layer that was put on top has in a directory of its own that is known already.
func (p *place) pushed() error {
	for _, k := range p.kids {
		i := p.in[0]
		typ, opaque, err := k.inLayer(i)
		switch {
		case err != nil:
			return k.fail(err)
		case typ == 0:
			continue
		case typ == typWhiteout:
			k.typ, k.in, k.kids = 0, nil, nil
		case typ != unix.S_IFDIR, opaque, k.typ != unix.S_IFDIR:
			k.typ, k.in, k.kids = typ, []int{i}, nil
		default:
			k.in = slices.Insert(k.in, 0, i)
			if err := k.pushed(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *place) fail(err error) error {
	return &fs.PathError{Op: "lstat", Path: p.level.Short(), Err: err}
}

// open opens the place in its topmost layer.
func (p *place) open(flags int) (int, error) {
	fd, err := foreign.OpenBeneath(p.m.dirs[p.in[0]], p.level.String(), flags|unix.O_NOFOLLOW)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: p.level.Short(), Err: err}
	}
	return fd, nil
}

// openParent opens the directory that holds the place's topmost entry.
func (p *place) openParent() (int, error) {
	up := *p.up
	up.in = p.in
	return up.open(unix.O_PATH | unix.O_DIRECTORY)
}

func (p *place) readLink() (string, error) {
	fd, err := p.open(unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return readLinkAt(fd, "")
}

// meta is a directory's.
func (p *place) meta() (*meta, error) {
	fd, err := p.open(unix.O_RDONLY | unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	m, _, err := fdMeta(fd)
	return m, err
}

// child looks for a name in a directory.
func (p *place) child(name string) (*place, error) {
	if k := p.kids[name]; k != nil {
		return k, nil
	}
	k := &place{m: p.m, up: p, level: p.level.Child(name)}
	for _, i := range p.in {
		typ, opaque, err := k.inLayer(i)
		if err != nil {
			return nil, k.fail(err)
		}
		if typ == 0 {
			continue
		}
		if typ == unix.S_IFDIR && (k.typ == 0 || k.typ == unix.S_IFDIR) {
			k.typ = typ
			k.in = append(k.in, i)
		}
		if typ == unix.S_IFDIR && !opaque {
			continue
		}
		if typ != unix.S_IFDIR && typ != typWhiteout && k.typ == 0 {
			k.typ, k.in = typ, []int{i}
		}
		break
	}
	if p.kids == nil {
		p.kids = map[string]*place{}
	}
	p.kids[name] = k
	return k, nil
}

const typWhiteout = 1 // no st_mode

// inLayer gives the type of what one layer has at a place, and whether it is opaque.
func (p *place) inLayer(i int) (typ uint32, opaque bool, err error) {
	fd, err := foreign.OpenBeneath(p.m.dirs[i], p.level.String(), unix.O_PATH|unix.O_NOFOLLOW)
	if err == unix.ENOENT {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, false, err
	}
	typ = st.Mode & unix.S_IFMT
	if isWhiteout(&st) {
		typ = typWhiteout
	}
	if typ == unix.S_IFDIR {
		opaque = isOpaque(fdPath(fd))
	}
	return typ, opaque, nil
}

func isOpaque(path string) bool {
	var v [2]byte
	n, err := unix.Getxattr(path, opaqueXattr, v[:])
	return err == nil && string(v[:n]) == "y"
}
