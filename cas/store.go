package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNotFound says that the store has no such thing.
var ErrNotFound = errors.New("not found in the store")

// format is the content of the file version.
const format = "1"

// The directories of a store.
const (
	blobsDir    = "blobs"
	layersDir   = "layers"
	resultsDir  = "results"
	cachesDir   = "caches"
	locksDir    = "locks"
	leasesDir   = "leases"
	deadDir     = "dead"
	unsyncedDir = "unsynced"
	hashesDir   = "hashes"
	tmpDir      = "tmp"
	trashDir    = "trash"

	gcLock      = "gc.lock"
	versionFile = "version"
)

func topDirs() []string {
	return []string{
		blobsDir, layersDir, resultsDir, cachesDir, locksDir, leasesDir, deadDir, unsyncedDir, hashesDir, tmpDir, trashDir,
	}
}

// A Store is one process's use of a store directory. Its methods may be called at the same time.
type Store struct {
	dir      string
	run      string
	boot     string // which boot of the machine, hashed; "" where that cannot be told
	epoch    string // of what is written now; "" where that cannot be told
	warnings []string
	dead     []string

	serial atomic.Uint64 // makes names in this run's directories

	mu           sync.Mutex // guards the following, and serialises commits
	closed       bool
	gc           *os.File        // locked shared during a commit
	lease        *os.File        // locked for as long as this run lives
	leased       map[string]bool // lines of lease
	journal      *os.File        // of unsynced; nil if nothing was committed since the last sync
	journalSince time.Time       // when journal was begun
	noted        map[string]bool // lines of journal
	held         map[closer]struct{}

	kinMu sync.Mutex
	kin   map[string]bool // epochs that are as good as ours

	syncing sync.Mutex // one Sync at a time

	known   sync.Map // of digest.Digest to fs.FileInfo: large blobs that need not be hashed to be used or marked
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup
	trashed chan struct{} // wakes the sweeper
}

// A closer is released with the Store, if nobody did before.
type closer interface{ Close() error }

// Open makes or opens a store, removes what dead processes have left in tmp, and makes this process's own directory
// in tmp. The store's directory is its user's alone; one that is another's, or that others could replace, is refused with an error that wraps
// fs.ErrPermission.
//
// It works on a full disk, so that the store can be pruned.
func Open(dir string) (*Store, error) { return OpenOn(dir, "") }

// OpenOn is Open for a process that has just left the mount namespace in which the store's mount was called so by MountOf: what others have written to
// the store by that mount is as much of now as what this process writes.
func OpenOn(dir, mount string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := prepare(dir); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s := &Store{
		dir:      dir,
		leased:   map[string]bool{},
		kin:      map[string]bool{},
		held:     map[closer]struct{}{},
		trashed:  make(chan struct{}, 1),
		warnings: placeWarnings(dir),
	}
	s.boot, s.epoch = epoch(dir, mount)
	if err := s.begin(); err != nil {
		s.end()
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.wg.Go(s.syncNowAndThen)
	s.wg.Go(s.sweepTrash)
	return s, nil
}

// prepare makes the tree, or checks its format.
func prepare(dir string) error {
	if err := claim(dir); err != nil {
		return err
	}
	version := filepath.Join(dir, versionFile)
	b, err := readFile(version)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if got := strings.TrimSpace(string(b)); len(b) > 0 && got != format {
		return fmt.Errorf("its format is %q, this program knows only %q: use a newer obx, or another store", got, format)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	there := make(map[string]bool)
	for _, e := range entries {
		there[e.Name()] = true
	}
	// What has most of the folders is a store, even if a power cut has taken its version, or somebody a folder, or another process is making it.
	// It may have directories that others keep there, see [PruneOptions.Derived].
	missing := slices.DeleteFunc(topDirs(), func(d string) bool { return there[d] })
	ours := len(missing) < len(topDirs())/2
	for name := range there {
		known := append(topDirs(), gcLock, "lost+found") // a file system of its own has its lost+found
		if !ours && !slices.Contains(known, name) && !strings.HasPrefix(name, versionFile) {
			return fmt.Errorf("it is not empty and not a store: it has %q: use an empty directory or a new one, as %s", name, filepath.Join(dir, "obx"))
		}
	}
	if len(missing) == 0 && len(b) > 0 {
		return closeToOthers(dir)
	}
	if err := closeToOthers(dir); err != nil {
		return err
	}
	for _, d := range append(topDirs(), filepath.Join(blobsDir, "sha256")) {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	tmp := version + "." + randomHex()
	if err := writeFile(tmp, []byte(format+"\n")); err != nil {
		return err
	}
	if err := Rename(tmp, version); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}

// begin opens the lock files, cleans up after the dead, and makes this run's directory.
func (s *Store) begin() error {
	var err error
	if s.gc, err = openFile(s.path(gcLock), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	if err := chmod(s.gc, 0o600); err != nil { // of an older obx
		return err
	}
	// The directory in tmp is made under the lock of the lease, and nobody takes the directory away without it.
	for s.lease == nil {
		// The part that tells the boot lets clean-up forget runs that cannot have left anything outside of the store.
		s.run = s.bootPrefix() + randomHex()
		if s.lease, err = createLocked(s.path(leasesDir, s.run)); err != nil {
			return err
		}
	}
	if s.dead, err = s.reap(); err != nil {
		return err
	}
	err = os.Mkdir(s.TempDir(), 0o700)
	if isFull(err) {
		if s.emptyTrash(context.Background()) == nil {
			err = os.Mkdir(s.TempDir(), 0o700)
		}
		if isFull(err) {
			return nil
		}
	}
	return err
}

// bootPrefix begins the names of runs of this boot.
func (s *Store) bootPrefix() string { return (s.boot + "000000")[:6] }

func (s *Store) isOfThisBoot(run string) bool { return strings.HasPrefix(run, s.bootPrefix()) }

// Close releases locks and leases, and removes this process's directory in tmp. It waits for a background sync that
// is under way, as the end of the process would; it begins none.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	held := s.held
	s.held = nil
	s.mu.Unlock()

	s.stop()
	for c := range held {
		_ = c.Close()
	}
	s.wg.Wait()
	return s.end()
}

// end undoes begin.
func (s *Store) end() error {
	var errs []error
	if s.lease != nil {
		// Mostly empty; what is not is no reason to keep anyone waiting.
		if err := os.Remove(s.TempDir()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, s.discard(s.TempDir()))
		}
		errs = append(errs, removeLocked(s.lease))
	}
	if s.journal != nil {
		errs = append(errs, s.journal.Close())
	}
	if s.gc != nil {
		errs = append(errs, s.gc.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close store %s: %w", s.dir, err)
	}
	return nil
}

// Dir is the absolute path of the store.
func (s *Store) Dir() string { return s.dir }

// Warnings tells in sentences what is wrong with where the store is (overlayfs, NFS), and what to do.
func (s *Store) Warnings() []string { return s.warnings }

// RunID names this process's use, unique among the living and the dead: the base name of TempDir().
func (s *Store) RunID() string { return s.run }

// TempDir is this process's own directory below STORE/tmp, on the same file system as all else. It goes with Close,
// or with the next Open by anyone after this process has died.
func (s *Store) TempDir() string { return s.path(tmpDir, s.run) }

// path is a path in the store.
func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// rel is the inverse of path, with slashes.
func (s *Store) rel(path string) string {
	return filepath.ToSlash(strings.TrimPrefix(path[len(s.dir):], string(filepath.Separator)))
}

// fresh is a new name within this run.
func (s *Store) fresh() string { return fmt.Sprintf("%s-%d", s.run, s.serial.Add(1)) }

// temp is a new path in TempDir.
func (s *Store) temp(what string) string {
	return filepath.Join(s.TempDir(), fmt.Sprintf("%s-%d", what, s.serial.Add(1)))
}

// commit leases refs and calls f, which makes things visible or sees that they are there, while no prune decides.
func (s *Store) commit(refs []string, f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	if err := lockFile(s.gc, false); err != nil {
		return fmt.Errorf("lock %s: %w", s.gc.Name(), err)
	}
	defer func() { _ = unlockFile(s.gc) }()
	if err := s.addLeases(refs); err != nil {
		return err
	}
	return errors.Join(f(), s.addLeases(s.kinRefs()))
}

// hold has c closed with the store, unless letGo comes first.
func (s *Store) hold(c closer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	s.held[c] = struct{}{}
	return nil
}

func (s *Store) letGo(c closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, c)
}

// ageOf tells how long ago a file was last changed or touched.
func ageOf(info fs.FileInfo) time.Duration { return time.Since(info.ModTime()) }
