package repo

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas/foreign"
)

// tarFiles is a layout in a tar archive. Nothing is unpacked to read it. What is written goes into a directory beside the archive, until publish
// makes a new archive of both, which replaces the old one by one rename.
type tarFiles struct {
	file string

	mu      sync.Mutex
	old     *tarArchive
	parent  *os.Root        // where the archive is; nil until something is written
	spool   *dirFiles       // same
	removed map[string]bool // members of the old archive
	retired []*tarArchive   // still read from, maybe
	reads   int             // of archives: members look alike in all
}

// A tarArchive is an open archive. The zero archive has no members.
type tarArchive struct {
	f       *os.File
	info    fs.FileInfo
	members map[string]tarMember
}

// A tarMember says where the bytes of a member are.
type tarMember struct {
	offset, size int64
	mod          time.Time
}

func newTarFiles(file string) (*tarFiles, error) {
	old, err := openTar(file)
	if err != nil {
		return nil, err
	}
	return &tarFiles{file: file, old: old, removed: make(map[string]bool)}, nil
}

// openTar finds the members of an archive. One that does not exist has none.
func openTar(file string) (*tarArchive, error) {
	f, err := foreign.OpenFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return &tarArchive{}, nil
	}
	if err != nil {
		return nil, err
	}
	a := &tarArchive{f: f, members: make(map[string]tarMember)}
	if a.info, err = f.Stat(); err == nil {
		err = a.scan()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read the archive %s: %w", file, err)
	}
	return a, nil
}

// tarBlock is what all parts of an archive are multiples of.
const tarBlock = 512

// scan finds the members. An archive has to be whole, with the zeros that end it: unlike a layer, nothing else says what should be in it.
func (a *tarArchive) scan() error {
	r := tar.NewReader(a.f) // it seeks over the members' bytes
	end := int64(0)         // of the last member
	for {
		h, err := r.Next()
		if err == io.EOF {
			return a.checkEnd(end)
		}
		if err != nil {
			return err
		}
		if end, err = a.f.Seek(0, io.SeekCurrent); err != nil {
			return err
		}
		name := memberName(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			if h.Size > a.info.Size()-end {
				return fmt.Errorf("%s: %w", h.Name, io.ErrUnexpectedEOF)
			}
			a.members[name] = tarMember{end, h.Size, h.ModTime}
			end += (h.Size + tarBlock - 1) &^ (tarBlock - 1)
		case tar.TypeLink:
			if m, ok := a.members[memberName(h.Linkname)]; ok {
				a.members[name] = m
			}
		default:
			delete(a.members, name)
		}
	}
}

// checkEnd looks for the block of zeros that follows the last member, which archive/tar does not ask for.
func (a *tarArchive) checkEnd(at int64) error {
	block := make([]byte, tarBlock)
	if a.info.Size() == 0 {
		return nil // nothing was written yet
	}
	if _, err := a.f.ReadAt(block, at); err != nil && err != io.EOF {
		return err
	} else if err == io.EOF || !bytes.Equal(block, make([]byte, tarBlock)) {
		return fmt.Errorf("it is cut, its end is missing: %w", io.ErrUnexpectedEOF)
	}
	return nil
}

func memberName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (a *tarArchive) close() error {
	if a.f == nil {
		return nil
	}
	return a.f.Close()
}

// state gives what is to be read now.
func (t *tarFiles) state(name string) (spool *dirFiles, old *tarArchive, removed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.spool, t.old, t.removed[name]
}

func (t *tarFiles) open(name string) (io.ReadCloser, fileStamp, error) {
	spool, old, removed := t.state(name)
	if spool != nil {
		if rc, stamp, err := spool.open(name); !errors.Is(err, fs.ErrNotExist) {
			return rc, stamp, err
		}
	}
	m, ok := old.members[name]
	if !ok || removed {
		return nil, fileStamp{}, &fs.PathError{Op: "open", Path: t.file + ":" + name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(old.f, m.offset, m.size)), t.stamp(m), nil
}

func (t *tarFiles) stat(name string) (fileStamp, error) {
	spool, old, removed := t.state(name)
	if spool != nil {
		if stamp, err := spool.stat(name); !errors.Is(err, fs.ErrNotExist) {
			return stamp, err
		}
	}
	m, ok := old.members[name]
	if !ok || removed {
		return fileStamp{}, &fs.PathError{Op: "stat", Path: t.file + ":" + name, Err: fs.ErrNotExist}
	}
	return t.stamp(m), nil
}

func (t *tarFiles) stamp(m tarMember) fileStamp {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fileStamp{m.size, m.mod, t.reads}
}

func (t *tarFiles) list(dir string) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.old.f == nil && t.spool == nil {
		return nil, &fs.PathError{Op: "open", Path: t.file, Err: fs.ErrNotExist}
	}
	names := make(map[string]bool)
	for name := range t.old.members {
		if path.Dir(name) == dir && !t.removed[name] {
			names[path.Base(name)] = true
		}
	}
	if t.spool != nil {
		written, err := t.spool.list(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, name := range written {
			names[name] = true
		}
	}
	return slices.Collect(maps.Keys(names)), nil
}

func (t *tarFiles) create(name string, write func(io.Writer) error) error {
	spool, err := t.writable()
	if err != nil {
		return err
	}
	return spool.create(name, write)
}

// spoolName matches the directories for an archive beside it.
func (t *tarFiles) spoolName() string { return "." + filepath.Base(t.file) + tempPrefix }

// writable makes the directory for what is written.
func (t *tarFiles) writable() (*dirFiles, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spool != nil {
		return t.spool, nil
	}
	if err := os.MkdirAll(filepath.Dir(t.file), 0o755); err != nil {
		return nil, err
	}
	parent, err := os.OpenRoot(filepath.Dir(t.file))
	if err != nil {
		return nil, err
	}
	spool, err := t.makeSpool(parent)
	if err != nil {
		return nil, errors.Join(inDir(parent, err), parent.Close())
	}
	t.parent, t.spool = parent, spool
	return t.spool, nil
}

func (t *tarFiles) makeSpool(parent *os.Root) (*dirFiles, error) {
	if err := t.sweep(parent); err != nil {
		return nil, err
	}
	name := t.spoolName() + rand.Text()
	if err := parent.Mkdir(name, 0o700); err != nil {
		return nil, err
	}
	root, err := parent.OpenRoot(name) // whoever can write to parent may have put another in its place, but never one that is elsewhere
	if err != nil {
		return nil, err
	}
	return &dirFiles{dir: filepath.Join(parent.Name(), name), root: root}, nil
}

// sweep removes what killed processes have left.
func (t *tarFiles) sweep(parent *os.Root) error {
	names, err := foreign.ListIn(parent, ".", -1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, t.spoolName()) {
			continue
		}
		if info, err := parent.Lstat(name); err == nil && time.Since(info.ModTime()) > tempAge {
			if err := parent.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tarFiles) remove(name string) error {
	spool, err := t.writable()
	if err != nil {
		return err
	}
	t.mu.Lock()
	_, inOld := t.old.members[name]
	inOld = inOld && !t.removed[name]
	t.removed[name] = true
	t.mu.Unlock()
	if err := spool.remove(name); !inOld || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lock also sees what another process has published meanwhile.
func (t *tarFiles) lock(ctx context.Context) (func(), error) {
	if _, err := t.writable(); err != nil {
		return nil, err
	}
	unlock, err := lockDir(ctx, filepath.Dir(t.file))
	if err != nil {
		return nil, err
	}
	if err := t.refresh(); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

func (t *tarFiles) refresh() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && t.old.info != nil && os.SameFile(info, t.old.info) {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := openTar(t.file)
	if err != nil {
		return err
	}
	t.retired = append(t.retired, t.old)
	t.old = now
	t.reads++
	return nil
}

// publish makes the new archive: what other tools look for first, then all else by name.
func (t *tarFiles) publish(ctx context.Context) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	names, err := t.names()
	if err != nil {
		return err
	}
	out, tmp, err := createTemp(t.spool.root, ".")
	if err != nil {
		return err
	}
	defer out.Close()
	for _, name := range names {
		if err := t.copyMember(ctx, out, name); err != nil {
			return err
		}
	}
	if err := errors.Join(tar.NewWriter(out).Close(), out.Chmod(0o644), out.Sync(), out.Close()); err != nil {
		return err
	}
	from, to := filepath.Join(filepath.Base(t.spool.dir), tmp), filepath.Base(t.file)
	if runtime.GOOS != "windows" {
		return rename(t.parent, from, to)
	}
	// Windows replaces no file that is open. Who reads from the old one meanwhile has a failed read, and tries again or goes without.
	for _, a := range append(t.retired, t.old) {
		_ = a.close()
	}
	err = rename(t.parent, from, to)
	now, openErr := openTar(t.file)
	if openErr != nil {
		now = &tarArchive{}
	}
	t.old, t.retired = now, nil
	t.reads++
	return errors.Join(err, openErr)
}

// names lists the members of the new archive in their order.
func (t *tarFiles) names() ([]string, error) {
	all := make(map[string]bool)
	for name := range t.old.members {
		if !t.removed[name] {
			all[name] = true
		}
	}
	err := fs.WalkDir(t.spool.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.HasPrefix(e.Name(), tempPrefix) {
			all[name] = true
		}
		return err
	})
	first := []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile}
	return slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Or(-cmp.Compare(slices.Index(first, a), slices.Index(first, b)), cmp.Compare(a, b))
	}), err
}

// copyMember copies one member, by the kernel where it can.
func (t *tarFiles) copyMember(ctx context.Context, out *os.File, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	src, size, done, err := t.source(name)
	if err != nil {
		return err
	}
	defer done()
	if err := tar.NewWriter(out).WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	if _, err := io.CopyN(out, src, size); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	_, err = out.Write(make([]byte, -size&511)) // up to the next block
	return err
}

// source gives a file whose next bytes are those of a member.
func (t *tarFiles) source(name string) (f *os.File, size int64, done func(), err error) {
	f, stamp, err := t.spool.openFile(name)
	if err == nil {
		return f, stamp.size, func() { f.Close() }, nil
	}
	m, ok := t.old.members[name]
	if !ok {
		return nil, 0, nil, err
	}
	_, err = t.old.f.Seek(m.offset, io.SeekStart) // readers have offsets of their own
	return t.old.f, m.size, func() {}, err
}

// close removes the directory for what was written.
func (t *tarFiles) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	errs := []error{t.old.close()}
	for _, a := range t.retired {
		errs = append(errs, a.close())
	}
	if t.spool != nil {
		errs = append(errs, t.spool.close(), t.parent.RemoveAll(filepath.Base(t.spool.dir)), t.parent.Close())
		t.parent, t.spool = nil, nil
	}
	return errors.Join(errs...)
}
