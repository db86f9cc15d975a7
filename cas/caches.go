package cas

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// A cache mount is a directory of its own:
//
//	CACHE/lock            held while generations are looked up, added or removed; its time is that of the last use
//	CACHE/gen-N           a generation: JSON that lists directories, base first. Its users hold it locked, shared
//	CACHE/fs-RUN-N/       a directory in overlay form, of one or several generations
//	CACHE/shared/fs/      the directory of sharing shared and locked
//	CACHE/shared.lock     held by its users: shared, or exclusive
//
// Private uses, and uses that share, of one name have nothing in common: a directory that is written to cannot be
// below an overlay.
//
// A generation has an epoch and a mark like a result. The newest durable one is kept until a newer one is durable, so
// that a power cut costs a cache only its last seconds. The shared directory is what a power cut leaves, as on any
// machine.

// maxCacheDirs is how many directories a generation may have before they are made one: each costs a little in every
// lookup of a file that is missing, and flattening costs one link a file.
const maxCacheDirs = 8

const (
	generationPrefix = "gen-"
	cacheDirPrefix   = "fs-"
	cacheLock        = "lock"
	sharedLock       = "shared.lock"
	sharedDir        = "shared"
)

// A CacheMount is one use of a cache mount, by one step.
type CacheMount struct {
	Lower  []string // directories of the newest generation, base first; empty for a new cache
	Shared string   // sharing shared or locked: the one directory to mount read-write; Lower is then empty

	store *Store
	dir   string
	base  int      // the generation of Lower; 0: none
	lock  *os.File // of that generation's file, or of the shared directory; nil for a new cache
	once  sync.Once
}

// A generation is the content of a generation's file.
type generation struct {
	Dirs  []string `json:"dirs"` // names in the cache's directory
	Epoch string   `json:"epoch,omitempty"`
}

func parseGeneration(b []byte) (generation, error) {
	var g generation
	if err := json.Unmarshal(b, &g); err != nil {
		return g, err
	}
	for _, d := range g.Dirs {
		if !strings.HasPrefix(d, cacheDirPrefix) || !validName(d) {
			return g, fmt.Errorf("%q is not the name of a directory of generations", d)
		}
	}
	return g, nil
}

// OpenCache begins a use. sharing is "" or "private" (copy-on-write, OBuilder's rule), "shared" or "locked" (waits).
// Any name is fine: it is escaped, and cannot leave the domain's directory.
func (s *Store) OpenCache(ctx context.Context, domain, name, sharing string) (*CacheMount, error) {
	c, err := s.openCache(ctx, domain, name, sharing)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", name, err)
	}
	if err := s.hold(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (s *Store) openCache(ctx context.Context, domain, name, sharing string) (*CacheMount, error) {
	if err := CheckDomain(domain); err != nil {
		return nil, err
	}
	c := &CacheMount{store: s, dir: s.path(cachesDir, domain, escape(name))}
	switch sharing {
	case "", "private":
		return c, c.openNewest(ctx)
	case "shared", "locked":
		return c, c.openShared(ctx, sharing == "locked")
	}
	return nil, fmt.Errorf("its sharing is %q, neither private, shared nor locked", sharing)
}

func (c *CacheMount) openNewest(ctx context.Context) error {
	lock, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	gens, err := c.generations()
	if err != nil {
		return err
	}
	newest := newestOf(gens)
	if newest == nil {
		return nil
	}
	// Nobody has it exclusively: that takes the lock we hold.
	f, err := tryAcquire(newest.path, false)
	if err != nil {
		return err
	}
	if f == nil {
		return fmt.Errorf("%s is locked", newest.path)
	}
	c.lock, c.base = f, newest.number
	for _, d := range newest.Dirs {
		c.Lower = append(c.Lower, filepath.Join(c.dir, d))
	}
	return nil
}

func (c *CacheMount) openShared(ctx context.Context, exclusive bool) error {
	shared := filepath.Join(c.dir, sharedDir, layerRoot)
	for {
		f, err := acquire(ctx, filepath.Join(c.dir, sharedLock), exclusive)
		if err != nil {
			return err
		}
		// Under the other lock, or a prune may take the directory away as it is made.
		lock, err := c.acquire(ctx)
		if err != nil {
			return errors.Join(err, f.Close())
		}
		if !isStill(f, f.Name()) {
			_, _ = f.Close(), lock.Close()
			continue
		}
		if err := errors.Join(os.MkdirAll(shared, 0o755), lock.Close()); err != nil {
			return errors.Join(err, f.Close())
		}
		c.lock, c.Shared = f, shared
		return nil
	}
}

// acquire takes the lock of the cache, and notes its use.
func (c *CacheMount) acquire(ctx context.Context) (*os.File, error) {
	lock, err := acquire(ctx, filepath.Join(c.dir, cacheLock), true)
	if err != nil {
		return nil, err
	}
	touch(lock.Name())
	return lock, nil
}

// A generationFile is a generation and its file.
type generationFile struct {
	generation
	path    string
	number  int
	durable bool
	valid   bool
}

// generations lists those that are there, valid or not, newest first.
func (c *CacheMount) generations() ([]generationFile, error) {
	entries, err := readDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var gens []generationFile
	for _, e := range entries {
		n, ok := strings.CutPrefix(e.Name(), generationPrefix)
		number, err := strconv.Atoi(n)
		if !ok || err != nil {
			continue
		}
		g, err := c.readGeneration(e.Name(), number)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed by who has the lock
		}
		if err != nil {
			return nil, err
		}
		gens = append(gens, g)
	}
	slices.SortFunc(gens, func(a, b generationFile) int { return b.number - a.number })
	return gens, nil
}

func (c *CacheMount) readGeneration(name string, number int) (generationFile, error) {
	g := generationFile{path: filepath.Join(c.dir, name), number: number}
	f, err := openFile(g.path, os.O_RDONLY)
	if err != nil {
		return g, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return g, err
	}
	b, err := readSmall(f)
	if err != nil {
		return g, err
	}
	if g.generation, err = parseGeneration(b); err != nil {
		return g, nil // spoiled
	}
	g.durable = isMarked(info)
	g.valid = c.store.isValid(g.durable, g.Epoch)
	for _, d := range g.Dirs {
		if _, err := os.Lstat(filepath.Join(c.dir, d)); err != nil {
			g.valid = false
		}
	}
	return g, nil
}

func newestOf(gens []generationFile) *generationFile {
	for i := range gens {
		if gens[i].valid {
			return &gens[i]
		}
	}
	return nil
}

// Commit makes upper (a directory in TempDir, in overlay form) the next generation, unless another step did so since
// OpenCache: then upper is dropped. When a generation would have too many directories, flatten is called to make one
// of them: dst, which does not exist and is in TempDir, out of dirs (base first; the last is upper), by hard links.
func (c *CacheMount) Commit(upper string, flatten func(dst string, dirs []string) error) error {
	if err := c.commit(upper, flatten); err != nil {
		return fmt.Errorf("commit cache %s: %w", filepath.Base(c.dir), errors.Join(err, c.store.discard(upper)))
	}
	return c.store.settle()
}

func (c *CacheMount) commit(upper string, flatten func(dst string, dirs []string) error) error {
	if c.Shared != "" {
		return errors.New("it is shared: what was written is there already")
	}
	if same, err := c.changesNothing(upper); err != nil {
		return err
	} else if same {
		return c.store.discard(upper)
	}
	ctx := context.Background() // the lock is held for moments only
	if current, err := c.isCurrent(); err != nil {
		return err
	} else if !current {
		return c.store.discard(upper)
	}
	top, below := upper, c.Lower
	if len(c.Lower) >= maxCacheDirs {
		top, below = c.store.temp("cache"), nil
		if err := flatten(top, append(slices.Clone(c.Lower), upper)); err != nil {
			return errors.Join(err, c.store.discard(top))
		}
		if err := c.store.discard(upper); err != nil {
			return err
		}
	}
	lock, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := c.add(top, below); err != nil {
		return errors.Join(err, c.store.discard(top))
	}
	// Where an epoch cannot be recognised, only what is durable is a generation: tidy would remove it.
	if err := c.store.settle(); err != nil {
		return err
	}
	return c.tidy()
}

// isCurrent reports whether no newer generation than that of Lower is there.
func (c *CacheMount) isCurrent() (bool, error) {
	gens, err := c.generations()
	if err != nil {
		return false, err
	}
	newest := newestOf(gens)
	return newest == nil && c.base == 0 || newest != nil && newest.number == c.base, nil
}

// add makes a generation of top above below, unless there is a newer one. The cache's lock is held.
func (c *CacheMount) add(top string, below []string) error {
	gens, err := c.generations()
	if err != nil {
		return err
	}
	newest := newestOf(gens)
	if newest != nil && newest.number != c.base {
		return c.store.discard(top)
	}
	g := generation{Epoch: c.store.epoch}
	for _, d := range below {
		g.Dirs = append(g.Dirs, filepath.Base(d))
	}
	name := cacheDirPrefix + c.store.fresh()
	g.Dirs = append(g.Dirs, name)
	number := 1
	if len(gens) > 0 {
		number = gens[0].number + 1
	}
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	tmp := c.store.temp("generation")
	if err := writeFile(tmp, b); err != nil {
		return err
	}
	path := filepath.Join(c.dir, generationPrefix+strconv.Itoa(number))
	dir := filepath.Join(c.dir, name)
	err = c.store.commit(nil, func() error {
		if err := c.store.note(path); err != nil {
			return err
		}
		if err := Rename(top, dir); err != nil {
			return err
		}
		if err := Rename(tmp, path); err != nil {
			return errors.Join(err, Rename(dir, top))
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// tidy removes generations that nobody uses or will use, and directories that are in none. The cache's lock is held.
func (c *CacheMount) tidy() error {
	gens, err := c.generations()
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	newest, durable := newestOf(gens), false
	for i := range gens {
		g := &gens[i]
		keep := g == newest || g.valid && g.durable && !durable
		durable = durable || g.valid && g.durable
		if !keep {
			if f := tryExisting(g.path); f != nil {
				if err := removeLocked(f); err != nil {
					return err
				}
				continue
			}
		}
		for _, d := range g.Dirs {
			needed[d] = true
		}
	}
	entries, err := readDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), cacheDirPrefix) && !needed[e.Name()] {
			if err := c.store.discard(filepath.Join(c.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// changesNothing reports whether upper neither holds anything nor changes the root directory.
func (c *CacheMount) changesNothing(upper string) (bool, error) {
	if len(c.Lower) == 0 {
		return false, nil
	}
	entries, err := os.ReadDir(upper)
	if err != nil || len(entries) > 0 {
		return false, err
	}
	a, err := os.Lstat(upper)
	if err != nil {
		return false, err
	}
	b, err := os.Lstat(c.Lower[len(c.Lower)-1])
	if err != nil {
		return false, err
	}
	return a.Mode() == b.Mode() && sameOwner(a, b), nil
}

// Close ends the use. Safe to call again.
func (c *CacheMount) Close() error {
	var err error
	c.once.Do(func() {
		c.store.letGo(c)
		if c.lock == nil {
			return
		}
		err = c.lock.Close()
		if c.Shared != "" {
			return
		}
		// A newer generation may have been waiting for this one to go. If somebody is busy there, they tidy up.
		lock, lockErr := tryAcquire(filepath.Join(c.dir, cacheLock), true)
		if lockErr != nil || lock == nil {
			return
		}
		err = errors.Join(err, c.tidy(), lock.Close())
	})
	return err
}

// discardCache removes the cache in dir; false if it is in use.
func (s *Store) discardCache(dir string, dryRun bool) (bool, error) {
	lock, err := tryAcquire(filepath.Join(dir, cacheLock), true)
	if lock == nil || err != nil {
		return false, err
	}
	locks := []*os.File{lock}
	defer func() {
		for _, f := range locks {
			_ = f.Close()
		}
	}()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), generationPrefix) && e.Name() != sharedLock {
			continue
		}
		f := tryExisting(filepath.Join(dir, e.Name()))
		if f == nil {
			return false, nil
		}
		locks = append(locks, f)
	}
	if dryRun {
		return true, nil
	}
	return true, withLocked(locks, func() error { return s.discard(dir) })
}
