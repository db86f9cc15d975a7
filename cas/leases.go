package cas

import (
	"bufio"
	"errors"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
)

// A lease is a line of leases/RUN: a kind, a space, and what is relied upon.
func keyRef(domain, key string) string { return "key " + domain + " " + escape(key) }
func epochRef(epoch string) string     { return "epoch " + epoch }
func layerRef(name string) string      { return "layer " + name }
func blobRef(d digest.Digest) string   { return "blob " + d.Encoded() }

// Hold leases keys of a domain until Close: prune skips them, all their parents, and what they refer to, also when
// they are written only later. Call it before the keys are looked up.
//
// Layers and blobs need no call: whatever this process has committed or was told to be there is leased as well.
func (s *Store) Hold(domain string, keys ...string) error {
	if err := CheckDomain(domain); err != nil {
		return err
	}
	refs := make([]string, len(keys))
	for i, k := range keys {
		refs[i] = keyRef(domain, k)
	}
	return s.commit(refs, func() error { return nil })
}

// addLeases appends the refs that are new, and first of all the epoch. It is called within commit.
func (s *Store) addLeases(refs []string) error {
	refs = append([]string{epochRef(s.epoch)}, refs...)
	return appendLines(s.lease, s.leased, refs, func(ref string) string { return ref })
}

// appendLines writes those of lines that are not among the known ones, as text has them, and makes them known.
func appendLines(f *os.File, known map[string]bool, lines []string, text func(string) string) error {
	// On a full disk, an earlier write may have left a part of a line: it must not swallow the next one.
	b := []byte("\n")
	for _, l := range lines {
		if !known[l] {
			b = append(append(b, text(l)...), '\n')
		}
	}
	if len(b) == 1 {
		return nil
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	for _, l := range lines {
		known[l] = true
	}
	return nil
}

// isLeased reports that ref is protected already.
func (s *Store) isLeased(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed && s.leased[ref]
}

// liveLeases reads what all living processes rely upon. It is complete under the exclusive gc.lock.
func (s *Store) liveLeases() (map[string]bool, error) {
	runs, err := os.ReadDir(s.path(leasesDir))
	if err != nil {
		return nil, err
	}
	refs := map[string]bool{}
	for _, run := range runs {
		path := s.path(leasesDir, run.Name())
		if f := tryExisting(path); f != nil {
			_ = f.Close() // dead
			continue
		}
		f, err := openFile(path, os.O_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed since
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			refs[lines.Text()] = true
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// reap moves what dead processes have left in tmp to the trash, and returns those that may have left things outside
// of the store.
func (s *Store) reap() ([]string, error) {
	runs, err := os.ReadDir(s.path(leasesDir))
	if err != nil {
		return nil, err
	}
	for _, run := range runs {
		name := run.Name()
		if name == s.run {
			continue
		}
		f := tryExisting(s.path(leasesDir, name))
		if f == nil {
			continue
		}
		// The directory first: while the lease is there, another clean-up will try again.
		if err := s.discard(s.path(tmpDir, name)); err != nil {
			_ = f.Close()
			return nil, err
		}
		s.bury(f, name)
	}
	if err := s.reapOrphans(); err != nil {
		return nil, err
	}
	return s.buried()
}

// reapOrphans discards directories in tmp that no lease stands for. No run makes its directory before its lease.
func (s *Store) reapOrphans() error {
	dirs, err := os.ReadDir(s.path(tmpDir))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if _, err := os.Lstat(s.path(leasesDir, d.Name())); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := s.discard(s.path(tmpDir, d.Name())); err != nil {
			return err
		}
	}
	return nil
}

// bury turns the lease of a dead run, which f has locked, into a note for DeadRuns.
func (s *Store) bury(f *os.File, run string) {
	if s.boot == "" || !s.isOfThisBoot(run) {
		_ = removeLocked(f) // what it left ended with its boot
		return
	}
	// A rename takes no space on a full disk.
	_ = Rename(f.Name(), s.path(deadDir, run))
	_ = f.Close()
}

// buried lists the notes of bury.
func (s *Store) buried() ([]string, error) {
	notes, err := os.ReadDir(s.path(deadDir))
	if err != nil {
		return nil, err
	}
	var runs []string
	for _, n := range notes {
		if s.boot == "" || !s.isOfThisBoot(n.Name()) {
			_ = os.Remove(s.path(deadDir, n.Name()))
			continue
		}
		runs = append(runs, n.Name())
	}
	return runs, nil
}

// DeadRuns lists the RunIDs of processes that died in this boot of the machine, and whose files in the store Open has
// cleaned away; executors remove what those left outside the store (cgroups), and then call ForgetRun.
func (s *Store) DeadRuns() []string { return s.dead }

// ForgetRun says that nothing is left of a dead run. Until then every Open reports it.
func (s *Store) ForgetRun(run string) error {
	if !validName(run) {
		return nil
	}
	if err := os.Remove(s.path(deadDir, run)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
