package results

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
)

// Places are where results are looked for, nearest first: the store, and the caches in their order. They are made for one run, and are not copied.
type Places struct {
	Store    *cas.Store
	Caches   []*registry.Cache
	Domains  []string             // of the store, at least one: all are read, the first is written
	Trust    []registry.PublicKey // not empty: see the package comment
	LogLimit int64                // of the logs that are fetched; 0: DefaultLogLimit
	Warned   func(msg string)     // told of what is not used, and why; nil: nobody listens

	distrust sync.Once
}

// Warn tells of something that is not used.
func (p *Places) Warn(format string, args ...any) {
	if p.Warned != nil {
		p.Warned(fmt.Sprintf(format, args...))
	}
}

// Record reads what the store has of a key, through an alias: the record, and the key that it has. It is nil if there is none, or if some of its own bytes
// are missing; what is below it may be lost.
func (p *Places) Record(id keys.ID) (content keys.ID, rec *Record) {
	var refused error
	for _, domain := range p.Domains {
		res, err := p.Store.Result(domain, id.String())
		if err != nil {
			continue
		}
		if res.Alias == "" {
			rec, err := p.whole(domain, res)
			if rec != nil {
				return id, rec
			}
			refused = cmp.Or(refused, err)
			continue
		}
		// With trust, an alias may have been learned from files of somebody untrusted, and then leads to a result that is right for other files. Results are
		// found by content instead, or by a cache, where aliases are signed.
		content, err := keys.ParseID(res.Alias)
		if err != nil || len(p.Trust) > 0 {
			continue
		}
		for _, d := range p.Domains { // a domain may have an alias of a result of its parents
			if res, err := p.Store.Result(d, res.Alias); err == nil && res.Alias == "" {
				if rec, _ := p.whole(d, res); rec != nil {
					p.Store.Touch(domain, id.String())
					return content, rec
				}
			}
		}
	}
	if refused != nil {
		p.distrust.Do(func() { // the others have the same cause
			p.Warn("the result of %s in the store is not used: %v (a run builds what is not trusted again)", id, refused)
		})
	}
	return keys.ID{}, nil
}

// whole gives the record in what a domain has; nil if that is none, or lacks something. The error says why it is not trusted.
func (p *Places) whole(domain string, res *cas.Result) (*Record, error) {
	rec, err := DecodeRecord(res)
	if err != nil || !p.complete(rec) {
		return nil, nil
	}
	if err := p.trusts(domain, res.Key, rec); err != nil {
		return nil, err
	}
	p.Store.Touch(domain, res.Key)
	return rec, nil
}

// complete reports whether the store has what a record refers to.
func (p *Places) complete(rec *Record) bool {
	for _, l := range rec.Layers {
		if l.IsZero() || l.Dir != "" && p.Store.HasLayer(l.Dir) {
			continue
		}
		if _, ok := p.Store.HasBlob(l.Blob.Digest); !ok {
			return false
		}
	}
	if rec.LogBlob != "" {
		_, ok := p.Store.HasBlob(rec.LogBlob)
		return ok
	}
	return true
}

// trusts says why a record may not be used. It may if it was made here in the first domain, and with no cache mounts but such
// as this run would use itself; if it is a base image, which its digest vouches for; or if somebody trusted has signed it.
func (p *Places) trusts(domain, key string, rec *Record) error {
	switch {
	case len(p.Trust) == 0:
		return nil
	case rec.Pulled != nil:
		id, err := keys.ParseID(key)
		if err != nil {
			return err
		}
		return registry.VerifyEnvelope(rec.Pulled.Envelope, p.Trust, id, p.Domains, rec.Layers)
	case rec.Parent == "":
		return nil
	case domain != p.Domains[0]:
		return fmt.Errorf("it was made in the domain %s, and is not signed", domain)
	case rec.Mounts != "" && rec.Mounts != p.MountTrust():
		return errors.New("its command had cache mounts that builds with other trust write to")
	}
	return nil
}

// MountTrust names who can have written to the cache mounts of this run: with Trust, runs that trust the same keys.
func (p *Places) MountTrust() string {
	if len(p.Trust) == 0 {
		return "anybody"
	}
	var trusted []string
	for _, k := range p.Trust {
		_, key, _ := strings.Cut(k.String(), ":")
		trusted = append(trusted, key)
	}
	slices.Sort(trusted)
	return digest.FromString(strings.Join(slices.Compact(trusted), "\n")).Encoded()[:32]
}

// MountName is what the store calls a cache mount of this run. Those of runs with different trust are different, so that content
// that somebody untrusted has made cannot come into a result that is signed.
func (p *Places) MountName(id string) string {
	const mark = "+"
	switch {
	case len(p.Trust) > 0:
		return mark + p.MountTrust() + ":" + id
	case strings.HasPrefix(id, mark): // no name that a spec gives leads into those
		return mark + id
	}
	return id
}

// Load gives the result that the store has of a key, with all that is below it. When something of that is lost, missing is its key.
func (p *Places) Load(id keys.ID) (top *Result, missing keys.ID) { return p.loader().load(id) }

// Above gives the result that the store has of the key of a step, whose parent is a result that is known; nil if there is none.
func (p *Places) Above(parent *Result, id keys.ID) *Result {
	if found, rec := p.Record(id); rec != nil && rec.Parent == parent.Key.String() && rec.ParentID == parent.Record.ID {
		return &Result{Key: found, Record: rec, Parent: parent} // most often, and nothing below it need be read
	}
	if r, _ := p.Load(id); r != nil && r.Depth() == parent.Depth()+1 {
		return r
	}
	return nil
}

// A loader loads results one after the other, and remembers what is lost: in a chain of which a low result is lost, each of
// those above would be read again for each of those above it.
type loader struct {
	*Places
	lost map[keys.ID]bool // or stands on what is lost
}

func (p *Places) loader() loader { return loader{p, map[keys.ID]bool{}} }

func (l loader) load(id keys.ID) (top *Result, missing keys.ID) {
	var read []keys.ID
	lost := func(missing keys.ID) (*Result, keys.ID) {
		for _, id := range append(read, missing) {
			l.lost[id] = true
		}
		return nil, missing
	}
	link := &top
	var child *Result
	for {
		if l.lost[id] {
			return lost(id)
		}
		found, rec := l.Record(id)
		if rec == nil {
			return lost(id)
		}
		if child != nil && child.Record.ParentID != rec.ID {
			return lost(child.Key)
		}
		read = append(read, id, found)
		child = &Result{Key: found, Record: rec}
		*link, link = child, &child.Parent
		if rec.Parent == "" {
			return top, keys.ID{}
		}
		parent, err := keys.ParseID(rec.Parent)
		if err != nil {
			return lost(found)
		}
		id = parent
	}
}

// others lists the steps of the builds that led to a result by copies, as far as they are known, each once, those first that
// others copy from.
func (p *Places) others(r *Result) []registry.Step {
	var all []registry.Step
	seen := map[keys.ID]bool{}
	add := func(step registry.Step) {
		if !seen[step.Key] {
			seen[step.Key] = true
			step.Layers = -1
			all = append(all, step)
		}
	}
	var visit func(r *Result)
	visit = func(r *Result) {
		if r.Parent != nil {
			visit(r.Parent)
		}
		if r.Record.Pulled != nil {
			for _, step := range r.Record.Pulled.Others {
				add(step)
			}
		}
		for _, id := range r.Record.Uses {
			used, _ := p.Load(id)
			if used == nil {
				continue
			}
			visit(used)
			for _, s := range used.Steps() {
				add(s.Step)
			}
		}
	}
	visit(r)
	return all
}
