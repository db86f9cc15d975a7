package cas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Result is what the store knows of a key: what it refers to, for garbage collection, and data that others own.
type Result struct {
	Key     string          `json:"key"`
	Alias   string          `json:"alias,omitempty"`   // the key that has the result; then all below is empty
	Parents []string        `json:"parents,omitempty"` // keys of the same domain (or its parents) that this one needs
	Layers  []string        `json:"layers,omitempty"`  // names of layer directories
	Blobs   []digest.Digest `json:"blobs,omitempty"`
	Created time.Time       `json:"created"`
	Epoch   string          `json:"epoch,omitempty"` // set by PutResult: boot and mount in which it was written
	Data    json.RawMessage `json:"data,omitempty"`  // kept as JSON, not byte for byte: spaces between tokens go
}

// needs are the keys without which the result is of no use.
func (r *Result) needs() []string {
	if r.Alias != "" {
		return append([]string{r.Alias}, r.Parents...)
	}
	return r.Parents
}

// resultPath is where the result of a key is, in a directory of some hundred others at most.
func (s *Store) resultPath(domain, key string) string {
	e := escape(key)
	return s.path(resultsDir, escape(domain), (e + "__")[:2], e)
}

// Result finds a key's result in domain, following no alias. It is ErrNotFound for one that was not yet durable
// when its epoch ended (power cut), and for one that cannot be read.
func (s *Store) Result(domain, key string) (*Result, error) {
	r, err := s.validResult(domain, key)
	if err == nil && !r.durable && r.res.Epoch != s.epoch {
		// Again, so that it is protected.
		err = s.commit(nil, func() (err error) {
			r, err = s.validResult(domain, key)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("result of %s in %s: %w", key, domain, notFound(err))
	}
	return r.res, nil
}

func (s *Store) validResult(domain, key string) (resultFile, error) {
	r, err := s.readResultAt(s.resultPath(domain, key))
	if err == nil {
		err = r.err
	}
	if err == nil && r.res.Key != key {
		err = fmt.Errorf("it is of key %q", r.res.Key)
	}
	if err == nil && !s.isValid(r.durable, r.res.Epoch) {
		err = ErrNotFound
	}
	return r, err
}

// notFound makes any error an ErrNotFound that tells it.
func notFound(err error) error {
	if errors.Is(err, ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	return fmt.Errorf("%w: %w", ErrNotFound, err)
}

// A resultFile is a file of results. If it cannot be read, err says why.
type resultFile struct {
	domain  string
	path    string
	info    fs.FileInfo
	durable bool
	res     *Result
	err     error
}

// readResultAt reads a result whatever its epoch. What is no result is told by the err in it.
func (s *Store) readResultAt(path string) (resultFile, error) {
	f, err := openFile(path, os.O_RDONLY)
	if err != nil {
		return resultFile{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return resultFile{}, err
	}
	r := resultFile{path: path, info: info, durable: isMarked(info)}
	b, err := readSmall(f)
	if err != nil {
		return resultFile{}, err
	}
	r.res, r.err = parseResult(b)
	return r, nil
}

func parseResult(b []byte) (*Result, error) {
	var r Result
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// PutResult makes a result visible, replacing another of that key. It does not wait for the disk.
func (s *Store) PutResult(domain string, r *Result) error {
	if err := s.putResult(domain, r); err != nil {
		return fmt.Errorf("store result of %s in %s: %w", r.Key, domain, err)
	}
	return s.settle()
}

func (s *Store) putResult(domain string, r *Result) error {
	if err := CheckDomain(domain); err != nil {
		return err
	}
	if r.Key == "" {
		return errors.New("it has no key")
	}
	for _, l := range r.Layers {
		if !validName(l) {
			return fmt.Errorf("%q cannot name a layer", l)
		}
	}
	c := *r
	c.Epoch = s.epoch
	if c.Created.IsZero() {
		c.Created = time.Now().UTC()
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(&c); err != nil {
		return err
	}
	tmp := s.temp("result")
	if err := writeFile(tmp, b.Bytes()); err != nil {
		return err
	}
	path := s.resultPath(domain, c.Key)
	err := s.commit([]string{keyRef(domain, c.Key)}, func() error {
		u := unmarked{store: s, seen: map[string]bool{path: true}}
		u.add(domain, &c)
		if err := s.note(append(u.paths, path)...); err != nil {
			return err
		}
		return install(tmp, path)
	})
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// unmarked collects the files that a result refers to, directly or through its parents, and that are neither durable
// nor in this run's journal: they may be another process's, which may never mark them. What is referred to comes
// first. It is used within commit.
type unmarked struct {
	store *Store
	seen  map[string]bool
	paths []string
}

func (u *unmarked) add(domain string, r *Result) {
	for _, l := range r.Layers {
		if p := u.store.path(layersDir, l, epochFile); u.isNew(p) {
			u.paths = append(u.paths, p)
		}
	}
	for _, d := range r.Blobs {
		if p, err := u.store.blobPath(d); err == nil && u.isNew(p) {
			u.paths = append(u.paths, p)
		}
	}
	for _, key := range r.needs() {
		for _, p := range u.store.holdersOf(domain, key) {
			if !u.isNew(p) {
				continue
			}
			if parent, err := u.store.readResultAt(p); err == nil && parent.err == nil {
				u.add(domain, parent.res)
				u.paths = append(u.paths, p)
			}
		}
	}
}

func (u *unmarked) isNew(path string) bool {
	if u.seen[path] || u.store.journal != nil && u.store.noted[path] {
		return false
	}
	u.seen[path] = true
	info, err := os.Lstat(path)
	return err == nil && !isMarked(info)
}

// holdersOf lists the files that a reference from domain to key may mean: that of the domain, else those of others,
// since this package does not know which domains are a domain's parents.
func (s *Store) holdersOf(domain, key string) []string {
	own := s.resultPath(domain, key)
	if _, err := os.Lstat(own); err == nil {
		return []string{own}
	}
	domains, _ := os.ReadDir(s.path(resultsDir))
	var paths []string
	for _, d := range domains {
		if p := s.resultPath(d.Name(), key); p != own {
			if _, err := os.Lstat(p); err == nil {
				paths = append(paths, p)
			}
		}
	}
	return paths
}

// RemoveResult forgets a key. It is no error if there is nothing.
func (s *Store) RemoveResult(domain, key string) error {
	if err := os.Remove(s.resultPath(domain, key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove result of %s in %s: %w", key, domain, err)
	}
	return nil
}

// touchEvery bounds the writes that mere reading causes. It is how far what is noted of a use may be behind it, which prune allows for.
const touchEvery = time.Minute

// Touch notes that a result is used (at most once a minute a result).
func (s *Store) Touch(domain, key string) { touch(s.resultPath(domain, key)) }

func touch(path string) {
	if info, err := os.Lstat(path); err == nil && ageOf(info) > touchEvery {
		_ = setTime(path, time.Now())
	}
}

// A ResultInfo is one row of Results.
type ResultInfo struct {
	Domain   string
	Result   *Result
	LastUsed time.Time
	Durable  bool
}

// Results lists all results. One that cannot be read is an error, after which the listing goes on.
func (s *Store) Results() iter.Seq2[ResultInfo, error] {
	return func(yield func(ResultInfo, error) bool) {
		for r, err := range s.resultFiles(nil) {
			if err == nil && r.err != nil {
				err = fmt.Errorf("result %s: %w", r.path, r.err)
			}
			info := ResultInfo{Domain: r.domain, Result: r.res, Durable: r.durable}
			if err == nil {
				if !s.isValid(r.durable, r.res.Epoch) {
					continue
				}
				info.LastUsed = r.info.ModTime()
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// resultFiles reads all files of results, but for those that before has and that did not change since. The errors are
// of the disk, or such; a file that is no result is no error here.
func (s *Store) resultFiles(before map[string]resultFile) iter.Seq2[resultFile, error] {
	return func(yield func(resultFile, error) bool) {
		for path, err := range filesBelow(s.path(resultsDir), 3) {
			var r resultFile
			if err == nil {
				r, err = s.readIfChanged(path, before)
			}
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed since it was listed
			}
			r.path, r.domain = path, filepath.Base(filepath.Dir(filepath.Dir(path)))
			if !yield(r, err) {
				return
			}
		}
	}
}

func (s *Store) readIfChanged(path string, before map[string]resultFile) (resultFile, error) {
	if old, ok := before[path]; ok {
		info, err := os.Lstat(path)
		if err != nil {
			return resultFile{}, err
		}
		// Files are replaced, not changed; an inode that is used again differs in its time.
		if os.SameFile(info, old.info) && info.ModTime().Equal(old.info.ModTime()) && info.Size() == old.info.Size() {
			old.info, old.durable = info, isMarked(info)
			return old, nil
		}
	}
	r, err := s.readResultAt(path)
	if err == nil && r.err == nil && escape(r.res.Key) != filepath.Base(path) {
		r.err = fmt.Errorf("it is of key %q", r.res.Key)
	}
	return r, err
}
