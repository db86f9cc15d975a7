package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/internal/oci"
)

// A Layout is an OCI layout as a Repo, in a directory or a tar archive. What a tag names stands in a small file of its own, tags/TAG, that is renamed
// in: so many processes may write at once, and each tag is there as soon as it is put. Close derives index.json from these files for other tools, under
// a lock. Tags that only index.json has, because others put them there, are read too.
//
// Blobs are not synced: after a power cut some may hold zeros, which readers see by their digests, as they see all else that is broken.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
type Layout struct {
	name  string
	files layoutFiles

	mu      sync.Mutex
	ready   bool                   // directories and oci-layout were made
	dirty   bool                   // index.json is to be written
	deleted map[string]bool        // tags and digests to be left out of index.json
	index   *layoutIndex           // as last read
	tagged  map[digest.Digest]tags // of the files, as last read for Delete
}

type tags []string

// layoutFiles are the files of a layout, by names with slashes. What is not there is fs.ErrNotExist.
type layoutFiles interface {
	open(name string) (io.ReadCloser, fileStamp, error)
	stat(name string) (fileStamp, error)
	list(dir string) ([]string, error)
	// create makes or replaces a file. It appears when write has succeeded.
	create(name string, write func(io.Writer) error) error
	remove(name string) error
	// lock keeps other processes from publishing.
	lock(ctx context.Context) (unlock func(), err error)
	// publish shows all to others; the lock is held.
	publish(ctx context.Context) error
	close() error
}

// A fileStamp tells whether a file is still the one that was read.
type fileStamp struct {
	size int64
	mod  time.Time
	gen  int // of what the file is in
}

// A layoutIndex is index.json with the stamp that it had.
type layoutIndex struct {
	stamp fileStamp
	ocispec.Index
	byTag map[string]ocispec.Descriptor
}

const (
	tagsDir      = "tags"
	maxTagFile   = 4 << 10
	maxIndexFile = 256 << 20 // some 700,000 entries
)

// Name implements Repo.
func (l *Layout) Name() string { return l.name }

// fail says what was being done in which layout.
func (l *Layout) fail(verb, what string, err error) error {
	switch {
	case errors.As(err, new(*sourceError)):
	case verb == "read" && errors.Is(err, fs.ErrNotExist):
		err = ErrNotFound
	case verb != "read" && (errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)):
		err = fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return fmt.Errorf("%s %s in %s: %w", verb, what, l.name, err)
}

// readFile reads a small file.
func (l *Layout) readFile(name string, limit int64) ([]byte, fileStamp, error) {
	f, stamp, err := l.files.open(name)
	if err != nil {
		return nil, stamp, err
	}
	defer f.Close()
	if stamp.size > limit {
		return nil, stamp, fmt.Errorf("%s has %d bytes: too many", name, stamp.size)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return b, stamp, err
}

// readTag reads the file of a tag. One that is broken is not there.
func (l *Layout) readTag(tag string) (ocispec.Descriptor, error) {
	b, _, err := l.readFile(path.Join(tagsDir, tag), maxTagFile)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var desc ocispec.Descriptor
	if err := json.Unmarshal(b, &desc); err != nil || oci.CheckDescriptor(desc) != nil {
		return desc, fs.ErrNotExist
	}
	return ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}, nil
}

// readIndex reads index.json if it has changed. It is empty if there is none.
func (l *Layout) readIndex() (*layoutIndex, error) {
	stamp, err := l.files.stat(ocispec.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return &layoutIndex{Index: oci.NewIndex()}, nil
	}
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.index != nil && l.index.stamp == stamp {
		return l.index, nil
	}
	b, stamp, err := l.readFile(ocispec.ImageIndexFile, maxIndexFile)
	if err != nil {
		return nil, err
	}
	if _, err := oci.ParseIndex(b); err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	index := &layoutIndex{stamp: stamp, byTag: make(map[string]ocispec.Descriptor)}
	if err := json.Unmarshal(b, &index.Index); err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	for _, e := range index.Manifests {
		tag := e.Annotations[ocispec.AnnotationRefName]
		if _, twice := index.byTag[tag]; oci.IsTag(tag) && !twice {
			index.byTag[tag] = ocispec.Descriptor{MediaType: e.MediaType, Digest: e.Digest, Size: e.Size}
		}
	}
	l.index = index
	return index, nil
}

// Index lists what index.json does, for those who look there as other tools do.
func (l *Layout) Index() ([]ocispec.Descriptor, error) {
	fail := func(err error) ([]ocispec.Descriptor, error) {
		return nil, fmt.Errorf("read the layout %s: %w", l.name, err)
	}
	if _, err := l.files.list("."); err != nil {
		return fail(err)
	}
	for _, name := range []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile} {
		if _, err := l.files.stat(name); errors.Is(err, fs.ErrNotExist) {
			return fail(fmt.Errorf("it is no OCI layout: it has no file %s", name))
		} else if err != nil {
			return fail(err)
		}
	}
	index, err := l.readIndex()
	if err != nil {
		return fail(err)
	}
	return index.Manifests, nil
}

func (l *Layout) isDeleted(ref string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deleted[ref]
}

// resolve finds what a tag or digest names. The media type of a digest is not known yet.
func (l *Layout) resolve(ref string) (ocispec.Descriptor, error) {
	if err := oci.CheckRef(ref); err != nil {
		return ocispec.Descriptor{}, err
	}
	if !oci.IsTag(ref) {
		return ocispec.Descriptor{Digest: digest.Digest(ref)}, nil
	}
	desc, err := l.readTag(ref)
	if !errors.Is(err, fs.ErrNotExist) || l.isDeleted(ref) {
		return desc, err
	}
	index, err := l.readIndex()
	if err != nil {
		return desc, err
	}
	if desc, ok := index.byTag[ref]; ok && !l.isDeleted(desc.Digest.String()) {
		return desc, nil
	}
	return desc, fs.ErrNotExist
}

// Head implements Repo.
func (l *Layout) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	desc, _, err := l.Manifest(ctx, ref) // the media type of a digest stands in the bytes only
	return desc, err
}

// Manifest implements Repo. Bytes that are not what a tag names are not there: the digest is not known to who asks for the tag.
func (l *Layout) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	if err := ctx.Err(); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	desc, b, err := l.manifest(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, l.fail("read", "manifest "+ref, err)
	}
	return desc, b, nil
}

func (l *Layout) manifest(ref string) (ocispec.Descriptor, []byte, error) {
	desc, err := l.resolve(ref)
	if err != nil {
		return desc, nil, err
	}
	b, stamp, err := l.readFile(oci.BlobPath(desc.Digest), oci.MaxDocument)
	if err != nil {
		if stamp.size > oci.MaxDocument {
			err = fmt.Errorf("%w: it has %d bytes: too many for a manifest", ErrNotFound, stamp.size)
		}
		return desc, nil, err
	}
	if err := oci.CheckBytes(b, desc.Digest); err != nil {
		return desc, nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if desc.MediaType == "" {
		if desc.MediaType, err = oci.MediaTypeOf(b); err != nil {
			return desc, nil, fmt.Errorf("%w: %w", ErrNotFound, err)
		}
	}
	desc.Size = int64(len(b))
	return desc, b, nil
}

// Blob implements Repo.
func (l *Layout) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	err := cmp.Or(ctx.Err(), oci.CheckDigest(desc.Digest))
	if err != nil {
		return nil, err
	}
	f, stamp, err := l.files.open(oci.BlobPath(desc.Digest))
	if err == nil && stamp.size != desc.Size {
		f.Close()
		err = fmt.Errorf("%w: what is there has %d bytes, but the manifest says %d", ErrNotFound, stamp.size, desc.Size)
	}
	if err != nil {
		return nil, l.fail("read", "blob "+desc.Digest.String(), err)
	}
	return f, nil
}

// HasBlob implements Repo.
func (l *Layout) HasBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := cmp.Or(ctx.Err(), oci.CheckDigest(desc.Digest)); err != nil {
		return false, err
	}
	stamp, err := l.files.stat(oci.BlobPath(desc.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, l.fail("read", "blob "+desc.Digest.String(), err)
	}
	return stamp.size == desc.Size, nil
}

// prepare makes what every layout has.
func (l *Layout) prepare() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ready {
		return nil
	}
	if _, err := l.files.stat(ocispec.ImageLayoutFile); errors.Is(err, fs.ErrNotExist) {
		if err := l.files.create(ocispec.ImageLayoutFile, writeBytes(oci.LayoutFile())); err != nil {
			return err
		}
	}
	l.ready = true
	return nil
}

func writeBytes(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// PutBlob implements Repo. It verifies what it stores.
func (l *Layout) PutBlob(ctx context.Context, desc ocispec.Descriptor, _ string, open func() (io.ReadCloser, error)) error {
	if err := cmp.Or(ctx.Err(), oci.CheckDigest(desc.Digest)); err != nil {
		return err
	}
	if err := l.prepare(); err != nil {
		return l.fail("put", "blob "+desc.Digest.String(), err)
	}
	err := l.files.create(oci.BlobPath(desc.Digest), func(w io.Writer) error {
		rc, err := open()
		if err != nil {
			return &sourceError{err}
		}
		defer rc.Close()
		verifier := desc.Digest.Verifier()
		source := cas.Marked(cas.Reader(ctx, rc), func(err error) error { return &sourceError{err} })
		n, err := io.Copy(io.MultiWriter(w, verifier), io.LimitReader(source, desc.Size))
		switch {
		case err != nil:
			return err
		case n != desc.Size:
			return fmt.Errorf("its source has %d bytes, not %d", n, desc.Size)
		case !verifier.Verified():
			return errors.New("the bytes of its source do not have its digest")
		}
		return nil
	})
	if err = cmp.Or(ctx.Err(), err); err != nil {
		return l.fail("put", "blob "+desc.Digest.String(), err)
	}
	return nil
}

// PutManifest implements Repo.
func (l *Layout) PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := ctx.Err(); err != nil {
		return desc, err
	}
	if err := l.putManifest(tag, desc, data); err != nil {
		return desc, l.fail("put", "manifest "+cmp.Or(tag, desc.Digest.String()), err)
	}
	return desc, nil
}

func (l *Layout) putManifest(tag string, desc ocispec.Descriptor, data []byte) error {
	if err := oci.CheckPut(tag, data); err != nil {
		return err
	}
	doc, err := oci.ParseDocument(data)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	for _, d := range doc.Refers() {
		if _, err := l.files.stat(oci.BlobPath(d.Digest)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s", ErrBlobUnknown, d.Digest)
		} else if err != nil {
			return err
		}
	}
	if err := l.prepare(); err != nil {
		return err
	}
	if err := l.files.create(oci.BlobPath(desc.Digest), writeBytes(data)); err != nil {
		return err
	}
	if tag != "" {
		b, err := json.Marshal(desc)
		if err != nil {
			return err
		}
		if err := l.files.create(path.Join(tagsDir, tag), writeBytes(b)); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dirty = true
	delete(l.deleted, tag)
	delete(l.deleted, desc.Digest.String())
	if l.tagged != nil && tag != "" {
		l.tagged[desc.Digest] = append(l.tagged[desc.Digest], tag)
	}
	return nil
}

// tagFiles lists the tags that have a file.
func (l *Layout) tagFiles() ([]string, error) {
	names, err := l.files.list(tagsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return slices.DeleteFunc(names, func(name string) bool { return !oci.IsTag(name) }), nil
}

// Tags implements Repo.
func (l *Layout) Tags(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := ctx.Err(); err != nil {
			yield("", err)
			return
		}
		all, err := l.allTags()
		if err != nil {
			yield("", l.fail("read", "tags", err))
			return
		}
		for _, tag := range all {
			if err := ctx.Err(); err != nil {
				yield("", err)
				return
			}
			if !yield(tag, nil) {
				return
			}
		}
	}
}

func (l *Layout) allTags() ([]string, error) {
	all, err := l.tagFiles()
	if err != nil {
		return nil, err
	}
	index, err := l.readIndex()
	if err != nil {
		return nil, err
	}
	for tag, desc := range index.byTag {
		if !l.isDeleted(tag) && !l.isDeleted(desc.Digest.String()) {
			all = append(all, tag)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Delete implements Repo. The blobs of a manifest stay until CollectGarbage.
func (l *Layout) Delete(ctx context.Context, ref string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.delete(ref); err != nil {
		return l.fail("delete", ref, err)
	}
	return nil
}

func (l *Layout) delete(ref string) error {
	if err := oci.CheckRef(ref); err != nil {
		return err
	}
	index, err := l.readIndex()
	if err != nil {
		return err
	}
	var names []string
	var found bool
	if oci.IsTag(ref) {
		names = []string{path.Join(tagsDir, ref)}
		_, found = index.byTag[ref]
	} else {
		d := digest.Digest(ref)
		named, err := l.tagsOf(d)
		if err != nil {
			return err
		}
		for _, tag := range named {
			names = append(names, path.Join(tagsDir, tag))
		}
		names = append(names, oci.BlobPath(d))
		found = slices.ContainsFunc(index.Manifests, func(e ocispec.Descriptor) bool { return e.Digest == d })
	}
	for _, name := range names {
		if _, err := l.files.stat(name); errors.Is(err, fs.ErrNotExist) {
			continue // also where nothing can be written
		}
		if err := l.files.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		found = true
	}
	if !found {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deleted == nil {
		l.deleted = make(map[string]bool)
	}
	l.deleted[ref] = true
	l.dirty = true
	return nil
}

// tagsOf finds the files of tags that name a digest. All are read for the first digest only: whoever deletes one deletes many.
func (l *Layout) tagsOf(d digest.Digest) (tags, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tagged == nil {
		l.tagged = make(map[digest.Digest]tags)
		all, err := l.tagFiles()
		if err != nil {
			return nil, err
		}
		for _, tag := range all {
			if desc, err := l.readTag(tag); err == nil {
				l.tagged[desc.Digest] = append(l.tagged[desc.Digest], tag)
			}
		}
	}
	named := l.tagged[d]
	delete(l.tagged, d)
	return slices.DeleteFunc(named, func(tag string) bool {
		desc, err := l.readTag(tag)
		return err != nil || desc.Digest != d // it names another by now
	}), nil
}

// CollectGarbage implements Collector.
func (l *Layout) CollectGarbage(ctx context.Context, grace time.Duration) (int64, error) {
	freed, err := l.collect(ctx, time.Now().Add(-grace))
	if err = cmp.Or(ctx.Err(), err); err != nil {
		return freed, l.fail("collect", "garbage", err)
	}
	return freed, nil
}

func (l *Layout) collect(ctx context.Context, before time.Time) (freed int64, err error) {
	all, err := l.allTags()
	if err != nil {
		return 0, err
	}
	index, err := l.readIndex()
	if err != nil {
		return 0, err
	}
	live := make(map[digest.Digest]bool)
	for _, tag := range all {
		desc, err := l.resolve(tag)
		if err == nil {
			err = l.mark(desc.Digest, live)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	for _, e := range index.Manifests {
		if e.Annotations[ocispec.AnnotationRefName] == "" && !l.isDeleted(e.Digest.String()) { // others may keep images without a name
			if err := l.mark(e.Digest, live); err != nil {
				return 0, err
			}
		}
	}
	dir := path.Join(ocispec.ImageBlobsDir, digest.SHA256.String())
	names, err := l.files.list(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		if live[digest.NewDigestFromEncoded(digest.SHA256, name)] {
			continue
		}
		name = path.Join(dir, name)
		stamp, err := l.files.stat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && stamp.mod.After(before) {
			continue
		}
		if err := cmp.Or(err, l.files.remove(name)); err != nil {
			return freed, err
		}
		freed += stamp.size
		l.mu.Lock()
		l.dirty = true
		l.mu.Unlock()
	}
	return freed, nil
}

// mark adds a manifest, and all that it refers to, to what is live. Indexes may be in indexes as deep as they like: one is in memory at a time.
func (l *Layout) mark(d digest.Digest, live map[digest.Digest]bool) error {
	for work := []digest.Digest{d}; len(work) > 0; {
		d, work = work[len(work)-1], work[:len(work)-1]
		if live[d] {
			continue
		}
		live[d] = true
		b, _, err := l.readFile(oci.BlobPath(d), oci.MaxDocument)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		doc, err := oci.ParseDocument(b)
		if err != nil {
			continue // broken, or of a kind that refers to nothing known
		}
		for _, m := range doc.Manifests {
			work = append(work, m.Digest)
		}
		for _, b := range doc.Layers {
			live[b.Digest] = true
		}
		if doc.Config != nil {
			live[doc.Config.Digest] = true
		}
	}
	return nil
}

// Close implements io.Closer: it writes index.json if anything was put or deleted.
func (l *Layout) Close() error {
	l.mu.Lock()
	dirty := l.dirty
	l.mu.Unlock()
	var err error
	if dirty {
		err = l.publish(context.Background())
	}
	if err = errors.Join(err, l.files.close()); err != nil {
		return l.fail("write", ocispec.ImageIndexFile, err)
	}
	return nil
}

func (l *Layout) publish(ctx context.Context) error {
	unlock, err := l.files.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	index, err := l.deriveIndex()
	if err != nil {
		return err
	}
	if err := l.writeIndex(index); err != nil {
		return err
	}
	if err := l.files.publish(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dirty = false
	l.deleted = nil
	return nil
}

// Add adds an image as other tools do, without files for its tags: blobs first, and last what index.json has to list, in the place of what has the same
// name there. Blobs are not verified: they come from the store.
func (l *Layout) Add(ctx context.Context, blobs []Blob, entries []ocispec.Descriptor) error {
	for _, b := range blobs {
		name := oci.BlobPath(b.Desc.Digest)
		if stamp, err := l.files.stat(name); err == nil && stamp.size == b.Desc.Size {
			continue
		}
		err := l.files.create(name, func(w io.Writer) error {
			r, err := b.Open()
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(w, cas.Reader(ctx, r))
			return err
		})
		if err != nil {
			return err
		}
	}
	unlock, err := l.files.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	old, err := l.readIndex()
	if err != nil {
		return err
	}
	if err := l.prepare(); err != nil {
		return err
	}
	index := old.Index
	index.Manifests = slices.DeleteFunc(slices.Clone(index.Manifests), func(d ocispec.Descriptor) bool {
		return slices.ContainsFunc(entries, func(e ocispec.Descriptor) bool {
			was := d.Annotations[ocispec.AnnotationRefName]
			return was == e.Annotations[ocispec.AnnotationRefName] && (was != "" || d.Digest == e.Digest)
		})
	})
	index.Manifests = append(index.Manifests, entries...)
	if err := l.writeIndex(index); err != nil {
		return err
	}
	return l.files.publish(ctx)
}

func (l *Layout) writeIndex(index ocispec.Index) error {
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return l.files.create(ocispec.ImageIndexFile, writeBytes(b))
}

// deriveIndex joins the tags with files and what others have put into index.json.
func (l *Layout) deriveIndex() (ocispec.Index, error) {
	old, err := l.readIndex()
	if err != nil {
		old = &layoutIndex{Index: oci.NewIndex()} // nobody can read it
	}
	files, err := l.tagFiles()
	if err != nil {
		return ocispec.Index{}, err
	}
	entries := make(map[string]ocispec.Descriptor, len(files))
	for _, tag := range files {
		if desc, err := l.readTag(tag); err == nil {
			desc.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
			entries[tag] = desc
		}
	}
	var others []ocispec.Descriptor
	for _, e := range old.Manifests {
		tag := e.Annotations[ocispec.AnnotationRefName]
		mine, ok := entries[tag]
		switch {
		case ok && mine.Digest == e.Digest:
			entries[tag] = e // with the annotations of others
		case !ok && !l.isDeleted(tag) && !l.isDeleted(e.Digest.String()):
			others = append(others, e)
		}
	}
	index := old.Index
	index.Manifests = slices.Concat([]ocispec.Descriptor{}, others)
	for _, tag := range slices.Sorted(maps.Keys(entries)) {
		index.Manifests = append(index.Manifests, entries[tag])
	}
	return index, nil
}
