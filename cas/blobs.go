package cas

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math"
	"os"

	"github.com/opencontainers/go-digest"
)

// smallBlob is up to which size PutBlob takes bytes at once.
const smallBlob = 1 << 20

// blobPath is where a blob is, or an error for a digest that no blob can have.
func (s *Store) blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("blob %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("blob %s: %w: only sha256 digests are kept", d, ErrNotFound)
	}
	return s.path(blobsDir, "sha256", d.Encoded()), nil
}

// Blob opens the bytes of d. ErrNotFound.
func (s *Store) Blob(d digest.Digest) (*os.File, error) {
	path, err := s.blobPath(d)
	if err != nil {
		return nil, err
	}
	if _, ok := s.HasBlob(d); !ok {
		return nil, fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	f, err := openFile(path, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	return f, nil
}

// HasBlob tells a blob's size. A blob that is there stays until Close.
func (s *Store) HasBlob(d digest.Digest) (int64, bool) {
	path, err := s.blobPath(d)
	if err != nil {
		return 0, false
	}
	size, err := s.blobSize(path, d)
	if err != nil {
		return 0, false
	}
	if s.isLeased(blobRef(d)) {
		return size, true
	}
	err = s.commit([]string{blobRef(d)}, func() error {
		_, err := os.Lstat(path) // that it is right was seen above, and what takes its place is no worse
		return err
	})
	return size, err == nil
}

// blobSize looks whether a blob is there, and is what was written.
func (s *Store) blobSize(path string, d digest.Digest) (int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, ErrNotFound
	}
	if isMarked(info) || s.isKnown(d, info) {
		return info.Size(), nil
	}
	f, err := openFile(path, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return 0, err
	}
	n, err := checkBlob(f, d)
	if err == nil {
		s.know(d, info)
	}
	return n, err
}

// know notes that a large file was seen to be right, or was just written: until a power cut, after which this process is no more.
func (s *Store) know(d digest.Digest, info fs.FileInfo) {
	if info.Size() > smallBlob {
		_ = os.SameFile(info, info) // Windows looks which file it is when it is asked: now, before it is moved
		s.known.Store(d, info)
	}
}

// isKnown reports whether know was called for a file as it is now.
func (s *Store) isKnown(d digest.Digest, info fs.FileInfo) bool {
	was, ok := s.known.Load(d)
	if !ok {
		return false
	}
	k := was.(fs.FileInfo)
	return os.SameFile(k, info) && k.Size() == info.Size() && k.ModTime().Equal(info.ModTime())
}

// checkBlob hashes a blob without the durable mark, which a power cut may have spoiled.
func checkBlob(f *os.File, d digest.Digest) (int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, math.MaxInt64))
	if err != nil {
		return 0, fmt.Errorf("read blob %s: %w", d, err)
	}
	if digest.NewDigest(digest.SHA256, h) != d {
		return 0, fmt.Errorf("blob %s: its bytes have another digest", d)
	}
	return n, nil
}

// PutBlob stores small bytes. Up to a MiB it does not wait for the disk.
func (s *Store) PutBlob(b []byte) (digest.Digest, error) {
	if len(b) > smallBlob {
		w, err := s.NewBlob()
		if err != nil {
			return "", err
		}
		defer w.Close()
		if _, err := w.Write(b); err != nil {
			return "", err
		}
		d, _, err := w.Commit("")
		return d, err
	}
	d := digest.FromBytes(b)
	if _, ok := s.HasBlob(d); ok {
		return d, nil
	}
	tmp := s.temp("blob")
	if err := writeFile(tmp, b); err != nil {
		return "", fmt.Errorf("store blob %s: %w", d, err)
	}
	if err := s.installBlob(tmp, d); err != nil {
		return "", err
	}
	return d, s.settle()
}

// installBlob makes a file visible as a blob, unless it is there.
func (s *Store) installBlob(tmp string, d digest.Digest) error {
	path := s.path(blobsDir, "sha256", d.Encoded())
	info, err := os.Lstat(tmp)
	if err != nil {
		return fmt.Errorf("store blob %s: %w", d, err)
	}
	err = s.commit([]string{blobRef(d)}, func() error {
		if _, err := s.blobSize(path, d); err == nil {
			return os.Remove(tmp)
		}
		if err := s.note(path); err != nil {
			return err
		}
		s.know(d, info)
		return install(tmp, path)
	})
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("store blob %s: %w", d, err)
	}
	return nil
}

// NewBlob begins a blob. The caller writes, then Commits or Closes.
func (s *Store) NewBlob() (*BlobWriter, error) {
	f, err := os.OpenFile(s.temp("blob"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("new blob: %w", err)
	}
	return &BlobWriter{store: s, file: f, hash: sha256.New()}, nil
}

// A BlobWriter hashes and collects bytes in tmp.
type BlobWriter struct {
	store *Store
	file  *os.File // nil after Commit or Close
	hash  hash.Hash
	size  int64
	err   error // of the first failed write
}

func (w *BlobWriter) Write(p []byte) (int, error) {
	if w.file == nil {
		return 0, fs.ErrClosed
	}
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.file.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	w.err = err
	return n, err
}

// Commit makes the bytes visible; want may be "", else it must be their digest. It does not wait for the disk. Idempotent across
// writers.
func (w *BlobWriter) Commit(want digest.Digest) (digest.Digest, int64, error) {
	if w.file == nil {
		return "", 0, fmt.Errorf("commit blob: %w", fs.ErrClosed)
	}
	defer w.Close()
	if w.err != nil {
		return "", 0, fmt.Errorf("commit blob: %w", w.err)
	}
	d := digest.NewDigest(digest.SHA256, w.hash)
	if want != "" && want != d {
		return "", 0, fmt.Errorf("commit blob: the digest is %s, expected %s", d, want)
	}
	if _, ok := w.store.HasBlob(d); ok {
		return d, w.size, nil
	}
	// Windows renames no open files.
	path := w.file.Name()
	err := w.file.Close()
	w.file = nil
	if err != nil {
		_ = os.Remove(path)
		return "", 0, fmt.Errorf("commit blob %s: %w", d, err)
	}
	if err := w.store.installBlob(path, d); err != nil {
		return "", 0, err
	}
	return d, w.size, w.store.settle()
}

// Close drops what was not committed. Safe after Commit.
func (w *BlobWriter) Close() error {
	if w.file == nil {
		return nil
	}
	f := w.file
	w.file = nil
	err := errors.Join(f.Close(), os.Remove(f.Name()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the store was closed before
	}
	return err
}
