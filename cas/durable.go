package cas

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// isMarked reports whether a file has the durable mark: nobody may write it.
func isMarked(info fs.FileInfo) bool { return info.Mode().Perm()&0o222 == 0 }

// isValid reports whether a file that is marked or not, and of the given epoch, still says what was written.
func (s *Store) isValid(marked bool, epoch string) bool {
	return marked || epoch != "" && (epoch == s.epoch || s.isKin(epoch))
}

// isKin reports whether an epoch is of another mount of the same file system that is mounted now: the processes of
// two containers, or of two mount namespaces, that use one store have different mounts. A lock of another process
// that we run into is one of the same kernel on the same file system; so what such a process has written, and what it
// knew to be so written, is in the page cache that we read from.
//
// What is relied upon for this reason is protected by commit, which notes the epoch among the leases.
func (s *Store) isKin(epoch string) bool {
	s.kinMu.Lock()
	defer s.kinMu.Unlock()
	if s.kin[epoch] {
		return true
	}
	refs, err := s.liveLeases()
	if err != nil || !refs[epochRef(epoch)] {
		return false
	}
	s.kin[epoch] = true
	return true
}

// kinRefs are the leases of all epochs that isKin has found.
func (s *Store) kinRefs() []string {
	s.kinMu.Lock()
	defer s.kinMu.Unlock()
	var refs []string
	for e := range s.kin {
		refs = append(refs, epochRef(e))
	}
	return refs
}

// note writes paths in the store to this run's journal, for the next sync to mark. It is called within commit, before
// the files become visible, so that a killed process leaves nothing unmarked that is not noted.
func (s *Store) note(paths ...string) error {
	for s.journal == nil {
		f, err := createLocked(s.path(unsyncedDir, s.epoch+"-"+s.fresh()))
		if err != nil {
			return err
		}
		s.journal, s.noted, s.journalSince = f, map[string]bool{}, time.Now()
	}
	return appendLines(s.journal, s.noted, paths, s.rel)
}

// settle makes a commit durable where its epoch could not be recognised later.
func (s *Store) settle() error {
	if s.epoch != "" {
		return nil
	}
	return s.Sync(context.Background())
}

// Sync makes all results written before it durable (syncfs, then marks). Called in the background by Store itself every
// few seconds where little waits to be written, after syncAge where much does; a test or a command may call it.
func (s *Store) Sync(ctx context.Context) error { return s.sync(ctx, 0) }

// sync marks after a pause, so that whatever copies the file system's device meanwhile without a snapshot is
// likely to have the bytes when it has the mark.
func (s *Store) sync(ctx context.Context, pause time.Duration) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()

	// From here on the journal of this run is like one of a dead process: anybody may work it off.
	s.mu.Lock()
	if s.journal != nil {
		_ = s.journal.Close()
		s.journal = nil
	}
	s.mu.Unlock()

	journals, err := s.journals()
	if err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	var paths []string
	seen := map[string]bool{}
	for _, j := range journals {
		for _, p := range j.paths {
			if !seen[p] {
				seen[p] = true
				paths = append(paths, p)
			}
		}
	}
	// Files are open from before the flush until they are marked, so that no newer one of that name gets the mark.
	const batch = 256
	for len(paths) > 0 && err == nil {
		n := min(batch, len(paths))
		err = s.syncBatch(ctx, paths[:n], pause)
		paths = paths[n:]
	}
	for _, j := range journals {
		switch {
		case j.lock == nil:
		case err == nil:
			_ = removeLocked(j.lock)
		default:
			_ = j.lock.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	return nil
}

// A journal is a file of unsynced. Its lock is nil while a living process still writes to it.
type journal struct {
	lock  *os.File
	paths []string
}

// journals reads those of this epoch and its kin. Those of other boots are of no use and removed.
func (s *Store) journals() ([]journal, error) {
	entries, err := os.ReadDir(s.path(unsyncedDir))
	if err != nil {
		return nil, err
	}
	var js []journal
	for _, e := range entries {
		path := s.path(unsyncedDir, e.Name())
		epoch, run, _ := strings.Cut(e.Name(), "-")
		if !s.isOfThisBoot(run) {
			_ = os.Remove(path)
			continue
		}
		if !s.isNow(epoch) {
			continue
		}
		lock := tryExisting(path)
		f, err := openFile(path, os.O_RDONLY)
		if err != nil {
			continue // somebody else has worked it off
		}
		j := journal{lock: lock}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if filepath.IsLocal(filepath.FromSlash(lines.Text())) {
				j.paths = append(j.paths, lines.Text())
			}
		}
		_ = f.Close()
		js = append(js, j)
	}
	return js, nil
}

func (s *Store) syncBatch(ctx context.Context, paths []string, pause time.Duration) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, p := range paths {
		f, err := openFile(s.path(filepath.FromSlash(p)), os.O_RDONLY)
		if err != nil {
			continue // removed since, or never made
		}
		if !s.wantsMark(p, f) {
			_ = f.Close()
			continue
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := s.flush(files); err != nil {
		return err
	}
	if pause > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	for _, f := range files {
		if err := mark(f); err != nil {
			return err
		}
	}
	return nil
}

// mark sets the durable mark.
func mark(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return chmod(f, info.Mode().Perm()&^0o222)
}

// wantsMark reports whether an unmarked file is what its writer wrote: a journal may be of one that was killed before
// it replaced an older file, which a power cut has spoiled.
func (s *Store) wantsMark(path string, f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || isMarked(info) {
		return false
	}
	top, _, _ := strings.Cut(path, "/")
	if top == blobsDir {
		d := digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(path))
		if s.isKnown(d, info) {
			return true
		}
		_, err := checkBlob(f, d)
		return err == nil
	}
	b, err := readSmall(f)
	if err != nil {
		return false
	}
	switch top {
	case layersDir:
		return s.isNow(string(b))
	case resultsDir:
		r, err := parseResult(b)
		return err == nil && s.isNow(r.Epoch)
	case cachesDir:
		g, err := parseGeneration(b)
		return err == nil && s.isNow(g.Epoch)
	}
	return false
}

// isNow reports whether what is of an epoch was written to the file system as it is mounted now. Where there are no
// epochs, it was written a moment ago.
func (s *Store) isNow(epoch string) bool { return epoch == s.epoch || s.isValid(false, epoch) }

const (
	syncEvery = 5 * time.Second
	syncPause = 2 * time.Second
	// What a dead process left is looked for this long after Open: most runs are shorter, and a sync that is under way
	// delays the end of its process.
	syncFirst = time.Second
	// By then the kernel has written the bytes without being asked (vm.dirty_expire_centisecs is 30 s), and the sync is
	// cheap.
	syncAge = 30 * time.Second
	// Where more than this many bytes wait to be written, a sync takes the disk from who needs it, and delays the end of
	// its process: what has been pulled lately, which has the bulk, is left to the kernel until syncAge.
	syncLight = 64 << 20
)

// syncNowAndThen calls sync when there is need, until Close. An error is no loss: the journals stay.
func (s *Store) syncNowAndThen() {
	timer := time.NewTimer(syncFirst)
	defer timer.Stop()
	for first := true; ; first = false {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		var age time.Duration
		if first || dirtyBytes() > syncLight {
			age = syncAge
		}
		if s.hasUnsynced(age) {
			_ = s.sync(s.ctx, syncPause)
		}
		timer.Reset(syncEvery)
	}
}

// hasUnsynced reports whether this run, or one that is dead, has had a journal for so long.
func (s *Store) hasUnsynced(age time.Duration) bool {
	s.mu.Lock()
	own := s.journal != nil && time.Since(s.journalSince) >= age
	s.mu.Unlock()
	if own {
		return true
	}
	entries, err := os.ReadDir(s.path(unsyncedDir))
	if err != nil {
		return false
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || ageOf(info) < age {
			continue
		}
		if epoch, run, _ := strings.Cut(e.Name(), "-"); !s.isOfThisBoot(run) || !s.isNow(epoch) {
			continue
		}
		if f := tryExisting(s.path(unsyncedDir, e.Name())); f != nil {
			_ = f.Close()
			return true
		}
	}
	return false
}

// readSmall reads a file of the store's own, of which no valid one is large.
func readSmall(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	const limit = 64 << 20
	if info.Size() > limit {
		return nil, errors.New("it is too large")
	}
	b := make([]byte, info.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return nil, fmt.Errorf("read: %w", err)
	}
	return b, nil
}
