package cas

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// PruneOptions says what to evict beside garbage: what no result refers to, and results that are spoiled or lack
// something that they refer to. Leased results and what they need stay. The zero PruneOptions evicts only garbage.
type PruneOptions struct {
	All       bool
	OlderThan time.Duration // by last use, which is noted to the minute: what was used later stays; 0: no limit
	KeepBytes int64         // evict least recently used until blobs, layers and caches are this small; <=0: no limit
	Keys      []string      // evict the results of these, in all domains, with all that need them
	DryRun    bool

	// Derived names directories below the store that others than this package fill, with entries that can be made again. OlderThan counts for each
	// entry, All for what was not used for an hour. Whoever uses an entry sets its time: it holds no lease.
	Derived []string
}

// A PruneReport says what went.
type PruneReport struct {
	Results, Blobs, Layers, Caches int
	Derived                        int // entries of PruneOptions.Derived
	Bytes                          int64
	Trash                          int64    // what was evicted before, and is deleted only now; a part of Bytes
	Kept                           int      // results in use
	Busy                           []string // of Keys: those that stay, as they are in use or needed by what is

	// Odd is what could not be looked at, moved or deleted. All else was done.
	Odd []error
}

// derivedInUse is how long whoever needs a derived directory may take from its use to the last file that it opens.
const derivedInUse = time.Hour

// Prune evicts. A result is used when any result that needs it is, and goes after those.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	report, err := s.prune(ctx, o)
	if err != nil {
		return report, fmt.Errorf("prune %s: %w", s.dir, err)
	}
	s.pruneDerived(ctx, o, &report)
	if o.DryRun {
		return report, nil
	}
	s.sweepLocks()
	s.sweepMemos(o)
	// Whoever asked for space wants it now. What cannot be deleted stays in the trash, which is no failure of the
	// prune.
	if err := s.emptyTrash(ctx); err != nil && ctx.Err() == nil {
		report.Odd = append(report.Odd, err)
	}
	return report, ctx.Err()
}

func (s *Store) prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	// The slow part first, while others go on.
	if !o.DryRun {
		if _, err := s.reap(); err != nil {
			return PruneReport{}, err
		}
	}
	sz, err := s.measure(ctx)
	if err != nil {
		return PruneReport{}, err
	}
	trash, untold := s.trashSize(ctx)
	sz.odd = append(sz.odd, untold...)
	before, odd, err := s.readAll(nil)
	if err != nil {
		return PruneReport{}, err
	}
	lock, err := acquire(ctx, s.path(gcLock), true)
	if err != nil {
		return PruneReport{}, err
	}
	defer lock.Close()
	p := pruner{store: s, options: o, now: time.Now(), sizes: sz}
	p.report.Odd = append(sz.odd, odd...)
	p.report.Trash, p.report.Bytes = trash, trash
	if err := p.read(ctx, before); err != nil {
		return p.report, err
	}
	p.dropSpoiled()
	p.protect()
	p.dropBroken()
	p.count()
	p.choose()
	p.makeRoom()
	p.remove()
	return p.report, nil
}

func (s *Store) pruneDerived(ctx context.Context, o PruneOptions, r *PruneReport) {
	for _, dir := range o.Derived {
		for path, err := range filesBelow(s.path(dir), 1) {
			if err != nil {
				r.odd(err)
				continue
			}
			info, err := os.Lstat(path)
			if err != nil {
				continue // another has removed it
			}
			age := ageOf(info)
			if !(o.All && age > derivedInUse || o.OlderThan > 0 && age > o.OlderThan) {
				continue
			}
			n, err := diskSize(ctx, path)
			r.odd(err)
			if !o.DryRun {
				if err := s.Trash(path); err != nil {
					r.odd(err)
					continue
				}
			}
			r.Derived++
			r.Bytes += n
		}
	}
}

func (r *PruneReport) odd(err error) {
	if err != nil {
		r.Odd = append(r.Odd, err)
	}
}

// readAll reads all files of results. What cannot be read is told, and is a file of no result where it is one.
func (s *Store) readAll(before map[string]resultFile) (files map[string]resultFile, odd []error, err error) {
	files = map[string]resultFile{}
	for r, err := range s.resultFiles(before) {
		if isSystemic(err) { // as if all results were broken
			return nil, nil, err
		}
		if err != nil {
			odd = append(odd, fmt.Errorf("result %s: %w", r.path, err))
			r.err = err
			if r.info, err = os.Lstat(r.path); err != nil || filepath.Dir(filepath.Dir(filepath.Dir(r.path))) != s.path(resultsDir) {
				continue // a directory that results are in
			}
		}
		files[r.path] = r
	}
	return files, odd, nil
}

// isSystemic reports an error that says nothing of the file at hand: with all others it would be the same.
func isSystemic(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// A node is a result in the graph of what needs what.
type node struct {
	file      resultFile
	parents   []*node
	children  []*node
	used      time.Time // by itself or any that needs it
	depth     int
	protected bool // in use, or needed by one in use
	evicted   bool
	stuck     bool // cannot be removed, or is needed by one that cannot
}

// A pruner is one decision. It holds gc.lock exclusively from read to remove.
type pruner struct {
	store   *Store
	options PruneOptions
	now     time.Time
	sizes   sizes
	leases  map[string]bool
	nodes   []*node
	layers  map[string]int // existing layers: how many results that stay refer to them, and leases
	blobs   map[string]int // same
	caches  map[string]time.Time
	evicted []*node // in the order in which they go
	goes    []string
	report  PruneReport
}

// read looks at everything, again.
func (p *pruner) read(ctx context.Context, before map[string]resultFile) error {
	s := p.store
	var err error
	if p.leases, err = s.liveLeases(); err != nil {
		return err
	}
	files, odd, err := s.readAll(before)
	if err != nil {
		return err
	}
	p.report.Odd = append(p.report.Odd, odd...) // what has changed since
	for _, f := range files {
		p.nodes = append(p.nodes, &node{file: f, used: f.info.ModTime()})
	}
	slices.SortFunc(p.nodes, func(a, b *node) int { return cmp.Compare(a.file.path, b.file.path) })
	p.link()

	p.layers, p.blobs, p.caches = map[string]int{}, map[string]int{}, map[string]time.Time{}
	for path, err := range filesBelow(s.path(layersDir), 1) {
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		p.layers[name] = 0
		if _, ok := p.sizes.layers[name]; !ok {
			p.sizes.layers[name], err = s.layerSize(ctx, name)
			p.report.odd(err)
		}
	}
	for path, err := range filesBelow(s.path(blobsDir, "sha256"), 1) {
		if err != nil {
			return err
		}
		p.blobs[filepath.Base(path)] = 0
		if info, err := os.Lstat(path); err == nil {
			p.sizes.blobs[filepath.Base(path)] = diskUse(info)
		}
	}
	for path, err := range filesBelow(s.path(cachesDir), 2) {
		if err != nil {
			continue // measure has told
		}
		info, err := os.Lstat(filepath.Join(path, cacheLock))
		if errors.Is(err, fs.ErrNotExist) {
			info, err = os.Lstat(path)
		}
		if err == nil {
			p.caches[path] = info.ModTime()
		}
	}
	return nil
}

// link makes the graph, and spreads last uses to what was needed for them.
func (p *pruner) link() {
	type name struct{ domain, key string }
	own, all := map[name]*node{}, map[string][]*node{}
	for _, n := range p.nodes {
		if n.file.err != nil {
			continue
		}
		own[name{n.file.domain, n.file.res.Key}] = n
		all[n.file.res.Key] = append(all[n.file.res.Key], n)
	}
	for _, n := range p.nodes {
		if n.file.err != nil {
			continue
		}
		for _, key := range n.file.res.needs() {
			// As in holdersOf.
			parents := all[key]
			if parent := own[name{n.file.domain, key}]; parent != nil {
				parents = []*node{parent}
			}
			for _, parent := range parents {
				n.parents = append(n.parents, parent)
				parent.children = append(parent.children, n)
			}
		}
	}
	// Longest paths; the bound ends cycles, which nobody makes.
	for again, round := true, 0; again && round <= len(p.nodes); round++ {
		again = false
		for _, n := range p.nodes {
			for _, parent := range n.parents {
				if parent.used.Before(n.used) {
					parent.used, again = n.used, true
				}
				if n.depth <= parent.depth && parent.depth < len(p.nodes) {
					n.depth, again = parent.depth+1, true
				}
			}
		}
	}
}

// dropSpoiled evicts what does not exist for anybody: even for who holds it.
func (p *pruner) dropSpoiled() {
	for _, n := range p.nodes {
		if n.file.err == nil {
			// As isValid, by the leases that are complete now.
			epoch := n.file.res.Epoch
			if n.file.durable || epoch == p.store.epoch || p.leases[epochRef(epoch)] {
				continue
			}
		}
		n.evicted = true
		p.evicted = append(p.evicted, n)
	}
}

// protect marks what is in use.
func (p *pruner) protect() {
	var keep func(n *node)
	keep = func(n *node) {
		if n.protected || n.evicted {
			return
		}
		n.protected = true
		p.report.Kept++
		for _, parent := range n.parents {
			keep(parent)
		}
	}
	for _, n := range p.nodes {
		if p.leases["key "+n.file.domain+" "+filepath.Base(n.file.path)] {
			keep(n)
		}
	}
}

// dropBroken evicts results that lack what they refer to.
func (p *pruner) dropBroken() {
	for _, n := range p.nodes {
		if !n.evicted && !n.protected && p.lacks(n) {
			p.evict(n)
		}
	}
}

// lacks reports whether something that a result refers to is missing.
func (p *pruner) lacks(n *node) bool {
	r := n.file.res
	for _, l := range r.Layers {
		if _, ok := p.layers[l]; !ok || !p.store.layerIsValid(l) {
			return true
		}
	}
	for _, d := range r.Blobs {
		if _, ok := p.blobs[hexOf(d)]; !ok {
			return true
		}
	}
	found := map[string]bool{}
	for _, parent := range n.parents {
		if !parent.evicted {
			found[parent.file.res.Key] = true
		}
	}
	for _, key := range r.needs() {
		if !found[key] {
			return true
		}
	}
	return false
}

// evict takes a result and all that need it off, those first.
func (p *pruner) evict(n *node) {
	if n.evicted {
		return
	}
	n.evicted = true
	for _, c := range n.children {
		if !c.protected {
			p.evict(c)
		}
	}
	p.evicted = append(p.evicted, n)
}

// count counts the references of what stays.
func (p *pruner) count() {
	for name := range p.layers {
		if p.leases[layerRef(name)] {
			p.layers[name]++
		}
	}
	for hex := range p.blobs {
		if p.leases["blob "+hex] {
			p.blobs[hex]++
		}
	}
	for _, n := range p.nodes {
		if !n.evicted {
			p.refer(n, 1)
		}
	}
}

// refer counts the references of a result up or down, and returns the bytes that nothing refers to after it.
func (p *pruner) refer(n *node, by int) int64 {
	var freed int64
	add := func(counts map[string]int, sizes map[string]int64, name string) {
		if _, ok := counts[name]; !ok {
			return
		}
		counts[name] += by
		if counts[name] == 0 {
			freed += sizes[name]
		}
	}
	for _, l := range n.file.res.Layers {
		add(p.layers, p.sizes.layers, l)
	}
	for _, d := range n.file.res.Blobs {
		add(p.blobs, p.sizes.blobs, hexOf(d))
	}
	return freed
}

// evictUnused evicts a result, with all that need it, and returns the bytes that this frees.
func (p *pruner) evictUnused(n *node) int64 {
	if n.evicted || n.protected {
		return 0
	}
	from := len(p.evicted)
	p.evict(n)
	var freed int64
	for _, gone := range p.evicted[from:] {
		freed += p.refer(gone, -1)
	}
	return freed
}

// choose evicts by the options that do not count bytes.
func (p *pruner) choose() {
	isOld := func(used time.Time) bool {
		return p.options.All || p.options.OlderThan > 0 && p.now.Sub(used) > p.options.OlderThan+touchEvery
	}
	for _, n := range p.nodes {
		named := n.file.res != nil && slices.Contains(p.options.Keys, n.file.res.Key)
		if named && n.protected {
			p.report.Busy = append(p.report.Busy, n.file.res.Key)
		}
		if named || isOld(n.used) {
			p.evictUnused(n)
		}
	}
	for path, used := range p.caches {
		if isOld(used) {
			p.evictCache(path)
		}
	}
}

func (p *pruner) evictCache(path string) {
	delete(p.caches, path)
	p.goes = append(p.goes, path)
}

// makeRoom evicts the least recently used until what stays is small enough.
func (p *pruner) makeRoom() {
	if p.options.KeepBytes <= 0 {
		return
	}
	type candidate struct {
		used  time.Time
		depth int
		node  *node
		cache string
	}
	var cs []candidate
	for _, n := range p.nodes {
		if !n.evicted && !n.protected {
			cs = append(cs, candidate{used: n.used, depth: n.depth, node: n})
		}
	}
	for path, used := range p.caches {
		cs = append(cs, candidate{used: used, cache: path})
	}
	slices.SortFunc(cs, func(a, b candidate) int {
		// Of a chain that was last used as a whole, the end first.
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(b.depth, a.depth), cmp.Compare(a.cache, b.cache))
	})
	size := p.size()
	for _, c := range cs {
		if size <= p.options.KeepBytes {
			return
		}
		if c.node != nil {
			size -= p.evictUnused(c.node)
			continue
		}
		p.evictCache(c.cache)
		size -= p.sizes.caches[c.cache]
	}
}

// size is what stays.
func (p *pruner) size() int64 {
	var n int64
	for name, refs := range p.layers {
		if refs > 0 {
			n += p.sizes.layers[name]
		}
	}
	for hex, refs := range p.blobs {
		if refs > 0 {
			n += p.sizes.blobs[hex]
		}
	}
	for path := range p.caches {
		n += p.sizes.caches[path]
	}
	return n
}

// remove does what was decided. Children go before their parents, and results before what they refer to, so that a
// prune that is killed leaves only garbage. A result that cannot go keeps what it refers to.
func (p *pruner) remove() {
	gone := func(path string, n int64, count *int) bool {
		if !p.options.DryRun {
			if err := p.store.discard(path); err != nil {
				p.report.odd(err)
				return false
			}
		}
		*count++
		p.report.Bytes += n
		return true
	}
	for _, n := range p.evicted {
		if !n.stuck && gone(n.file.path, diskUse(n.file.info), &p.report.Results) {
			continue
		}
		for _, parent := range n.parents {
			parent.stuck = true
		}
		if n.file.res != nil {
			p.refer(n, 1)
		}
	}
	for name, refs := range p.layers {
		if refs == 0 {
			gone(p.store.path(layersDir, name), p.sizes.layers[name], &p.report.Layers)
		}
	}
	for hex, refs := range p.blobs {
		if refs == 0 {
			gone(p.store.path(blobsDir, "sha256", hex), p.sizes.blobs[hex], &p.report.Blobs)
		}
	}
	for _, path := range p.goes {
		free, err := p.store.discardCache(path, p.options.DryRun)
		if err != nil {
			p.report.odd(err)
		} else if free {
			p.report.Caches++
			p.report.Bytes += p.sizes.caches[path]
		}
	}
}

// hexOf is the name of a blob's file. Digests in a result may be anything.
func hexOf(d digest.Digest) string {
	if d.Validate() != nil {
		return ""
	}
	return d.Encoded()
}
