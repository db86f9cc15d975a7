package layers

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// What a layer leaves open until the layers below it are known is kept beside its files. Most layers leave nothing open, or the root's
// attributes alone.
const (
	openFile = "open"     // the open ends
	logFile  = "entries"  // the entries in their order
	keptDir  = "replaced" // what entries have replaced, by number

	layerFiles = "fs" // the files
)

// An openEnd is a note on disk. The file has for each its need, its path and a zero byte.
type openEnd struct {
	need need
	path string
}

// openEnds reads what a layer directory leaves open.
func openEnds(layer string) ([]openEnd, error) {
	b, err := os.ReadFile(filepath.Join(layer, openFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ends []openEnd
	for s := range strings.SplitSeq(string(b), "\x00") {
		if len(s) > 1 {
			ends = append(ends, openEnd{need(s[0]), s[1:]})
		}
	}
	return ends, nil
}

// A log keeps the sequence of a layer's entries, and what they replace.
type log struct {
	dir   string
	file  *os.File
	buf   *bufio.Writer
	line  []byte
	kept  int // a directory; -1 until something is kept
	count int
}

func newLog(dir string) (*log, error) {
	f, err := os.OpenFile(filepath.Join(dir, logFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &log{dir: dir, file: f, buf: bufio.NewWriterSize(f, 64<<10), kept: -1}, nil
}

func (l *log) add(e *logged) error {
	if e.Header != nil {
		h := e.Header
		e.Header = &tar.Header{
			Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime,
			Devmajor: h.Devmajor, Devminor: h.Devminor, PAXRecords: h.PAXRecords,
		}
		if e.Header.Typeflag != tar.TypeDir && h.Size > 0 {
			e.Header.Size = 1 // else a name with a slash is a directory
		}
	}
	l.line = e.append(l.line[:0])
	if _, err := l.buf.Write(l.line); err != nil {
		return fmt.Errorf("write the layer's sequence: %w", err)
	}
	return nil
}

// keep moves what is about to be replaced.
func (l *log) keep(parent *node, name string) error {
	if l.kept < 0 {
		dir := filepath.Join(l.dir, keptDir)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		var err error
		if l.kept, err = openRoot(dir); err != nil {
			return err
		}
	}
	l.count++
	at := parent.level.Child(name)
	if err := unix.Renameat(parent.fd, name, l.kept, strconv.Itoa(l.count)); err != nil {
		return &fs.PathError{Op: "replace", Path: at.Short(), Err: err}
	}
	return l.add(&logged{At: at.String(), Kept: l.count})
}

// finish keeps the log if it can be needed.
func (l *log) finish(ctx context.Context, ends []openEnd) error {
	again := false
	var b strings.Builder
	for _, e := range ends {
		again = again || e != openEnd{implied, "."}
		b.WriteString(string(e.need) + e.path + "\x00")
	}
	if len(ends) > 0 {
		if err := os.WriteFile(filepath.Join(l.dir, openFile), []byte(b.String()), 0o600); err != nil {
			return err
		}
	}
	if again {
		return l.buf.Flush()
	}
	if err := os.Remove(l.file.Name()); err != nil {
		return err
	}
	if l.kept < 0 {
		return nil
	}
	return foreign.RemoveAll(ctx, filepath.Join(l.dir, keptDir))
}

func (l *log) close() {
	l.file.Close()
	if l.kept >= 0 {
		unix.Close(l.kept)
	}
}

// A replay applies a layer again, when the layers below are known. Files come from its directory.
type replay struct {
	layer   int // the directory that holds the files, and what was kept
	entries []logged
	sources []string // of each entry's content, below layer
	next    int
}

func newReplay(layer string) (*replay, error) {
	file := filepath.Join(layer, logFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) { // as in a store of before the log had this format
		err = fmt.Errorf("%s: %w", file, errSequence)
	}
	if err != nil {
		return nil, err
	}
	r := &replay{}
	var made entryTree
	for s := (logReader{rest: b}); len(s.rest) > 0; {
		e, err := s.line()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if e.Kept != 0 {
			made.move(e.At, keptDir+"/"+strconv.Itoa(e.Kept), r.sources)
			continue
		}
		if e.At == "" && isFile(e.Header) {
			e.At = strings.Join(clean(e.Header.Name), "/")
		}
		r.entries = append(r.entries, e)
		r.sources = append(r.sources, layerFiles+"/"+e.At)
		if e.At != "" {
			made.add(e.At, len(r.entries))
		}
	}
	r.layer, err = openRoot(layer)
	return r, err
}

// clean is split for a name that was right once.
func clean(name string) []string {
	names, _ := split(name)
	return names
}

// An entryTree has at each path which entry has made what is there, if that was a file.
type entryTree struct {
	entry int // counted from 1
	kids  map[string]*entryTree
}

func (t *entryTree) add(path string, entry int) {
	for name := range strings.SplitSeq(path, "/") {
		k := t.kids[name]
		if k == nil {
			k = &entryTree{}
			if t.kids == nil {
				t.kids = map[string]*entryTree{}
			}
			t.kids[name] = k
		}
		t = k
	}
	t.entry = entry
}

// move takes out what is at a path, and says where its files are.
func (t *entryTree) move(path, to string, sources []string) {
	up, last := t, ""
	for name := range strings.SplitSeq(path, "/") {
		if t == nil {
			return
		}
		up, last, t = t, name, t.kids[name]
	}
	if t != nil {
		t.place(to, sources)
		delete(up.kids, last)
	}
}

func (t *entryTree) place(at string, sources []string) {
	if t.entry > 0 {
		sources[t.entry-1] = at
	}
	for name, k := range t.kids {
		k.place(at+"/"+name, sources)
	}
}

func (r *replay) close() { unix.Close(r.layer) }

// link puts the content of the present entry into its place.
func (r *replay) link(dirfd int, name string) error {
	source := r.sources[r.next]
	dir, base := filepath.Split(source)
	from, err := foreign.OpenBeneath(r.layer, strings.TrimSuffix(dir, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	return linkOrCopy(from, base, dirfd, name)
}
