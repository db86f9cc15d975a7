package build

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// inlineLog is how large a log may be to live in the record itself: most are, and a replay then reads one file a step.
const inlineLog = 64 << 10

// A Record is what the store keeps of one state: a base image, or a step's result.
type Record struct {
	Op       string `json:"op"`       // for people: `/src: (run (shell make))`, `(from busybox)`
	Preimage string `json:"preimage"` // of the key that the record is stored under
	// Input is the preimage of the step's input key, if that is another key: what `obx explain` compares with.
	Input  string `json:"input,omitempty"`
	Parent string `json:"parent,omitempty"` // content key of the state before; "" for a base
	// ID names these very files, and ParentID those that they were made on: a result made on other files under the same
	// key (rebuilt since, or not believed any more) does not fit.
	ID       string         `json:"id"`
	ParentID string         `json:"parentID,omitempty"`
	Uses     []keys.ID      `json:"uses,omitempty"`   // content keys of the build that the step copies from
	Layers   []layers.Layer `json:"layers,omitempty"` // of a base: its chain; of a step: one, or none if nothing changed
	Config   *ocispec.Image `json:"config,omitempty"` // of a base
	Ref      string         `json:"ref,omitempty"`    // of a base: where it can be had, NAME@DIGEST
	Env      keys.Context   `json:"context,omitzero"` // of a step: what its command saw
	// Mounts is of a step whose command had cache mounts: the mountTrust of its run.
	Mounts string `json:"mounts,omitempty"`

	// Pulled is set for a state that came from a cache: then Layers are all its layers, the base image's too, Config is
	// the image's as of this state, and nothing is below it.
	Pulled *Pulled `json:"pulled,omitempty"`

	Log     []byte        `json:"log,omitempty"`
	LogBlob digest.Digest `json:"logBlob,omitempty"` // instead of Log, when that would be large
	Took    time.Duration `json:"took,omitempty"`
}

// Pulled is what came with a state from a cache.
type Pulled struct {
	Base     int             `json:"base"`               // how many of the record's layers are the base image's
	BaseRef  string          `json:"baseRef,omitempty"`  // where the base image can be had
	Steps    []registry.Step `json:"steps"`              // of the stage up to this state
	Others   []registry.Step `json:"others,omitempty"`   // of other stages
	Envelope []byte          `json:"envelope,omitempty"` // with the signatures
}

// A state is a root file system: a record, and the states below it. Its files are in the store, or in a cache.
type state struct {
	id     keys.ID // content key
	rec    *Record
	parent *state // nil for a base, and for what came from a cache

	// Of a state that came from a cache in this run.
	cache   *registry.Cache
	remote  *registry.Result // as a cache gave it
	fetched bool             // its files and logs are in the store by now
}

// where is where a state was found, for people.
func (s *state) where() string {
	if s.cache != nil {
		return s.cache.Name()
	}
	return storeName
}

// logs is the cache that the logs of a state are read from; nil for the store.
func (s *state) logs() *registry.Cache {
	if s.fetched {
		return nil
	}
	return s.cache
}

// chain lists the layers of a state, base first.
func (s *state) chain() []layers.Layer {
	var n int
	for t := s; t != nil; t = t.parent {
		n += len(t.rec.Layers)
	}
	all := make([]layers.Layer, n)
	for t := s; t != nil; t = t.parent {
		n -= len(t.rec.Layers)
		copy(all[n:], t.rec.Layers)
	}
	return all
}

// depth is how many steps led to a state.
func (s *state) depth() int {
	n := 0
	for t := s; t.rec.Parent != "" || t.rec.Pulled != nil; t = t.parent {
		if p := t.rec.Pulled; p != nil {
			return n + len(p.Steps)
		}
		n++
	}
	return n
}

// failed reports a state that is none: the step that would have made it has failed elsewhere.
func (s *state) failed() bool { return s != nil && s.remote != nil && s.remote.Exit != 0 }

// lowest is the state at the bottom: a base image, or what came from a cache.
func (s *state) lowest() *state {
	for s.parent != nil {
		s = s.parent
	}
	return s
}

// find looks a key up in the domains of the build, follows an alias, and gives the record if all its bytes are here.
// Whatever is wrong with a record makes it a miss. A domain may have an alias of a result of its parents.
//
// A build that trusts believes no alias of the store: it may have been learned from files of somebody untrusted, and then
// leads to a result that is right for other files. It looks up by content instead, or asks a cache, where aliases are signed.
func (b *Builder) find(id keys.ID) (keys.ID, *Record, bool) {
	var refused error
	for _, domain := range b.domains() {
		res, err := b.Store.Result(domain, id.String())
		if err != nil {
			continue
		}
		if res.Alias == "" {
			rec, err := b.whole(domain, res)
			if rec != nil {
				return id, rec, true
			}
			refused = cmp.Or(refused, err)
			continue
		}
		content, err := keys.ParseID(res.Alias)
		if err != nil || len(b.Trust) > 0 {
			continue
		}
		for _, d := range b.domains() {
			if res, err := b.Store.Result(d, res.Alias); err == nil && res.Alias == "" {
				if rec, _ := b.whole(d, res); rec != nil {
					b.Store.Touch(domain, id.String())
					return content, rec, true
				}
			}
		}
	}
	if refused != nil && b.distrust != nil {
		b.distrust(id.String(), refused)
	}
	return keys.ID{}, nil, false
}

// whole gives the record in a result of a domain; nil if that is none, or lacks something. The error says why it is not trusted.
func (b *Builder) whole(domain string, res *cas.Result) (*Record, error) {
	rec, err := DecodeRecord(res)
	if err != nil || !b.complete(rec) {
		return nil, nil
	}
	if err := b.trusts(domain, res.Key, rec); err != nil {
		return nil, err
	}
	b.Store.Touch(domain, res.Key)
	return rec, nil
}

// trusts says why a record may not be used. It may if it was made here in the build's own domain, and with no cache mounts but such
// as the build would use itself; if it is a base image, which its digest vouches for; or if somebody trusted has signed it.
func (b *Builder) trusts(domain, key string, rec *Record) error {
	switch {
	case len(b.Trust) == 0:
		return nil
	case rec.Pulled != nil:
		id, err := keys.ParseID(key)
		if err != nil {
			return err
		}
		return registry.VerifyEnvelope(rec.Pulled.Envelope, b.Trust, id, b.domains(), rec.Layers)
	case rec.Parent == "":
		return nil
	case domain != b.domains()[0]:
		return fmt.Errorf("it was made in the domain %s, and is not signed", domain)
	case rec.Mounts != "" && rec.Mounts != b.mountTrust():
		return errors.New("its command had cache mounts that builds with other trust write to")
	}
	return nil
}

// mountTrust names who can have written to the cache mounts of the build: with Trust, builds that trust the same keys.
func (b *Builder) mountTrust() string {
	if len(b.Trust) == 0 {
		return "anybody"
	}
	var trusted []string
	for _, k := range b.Trust {
		_, key, _ := strings.Cut(k.String(), ":")
		trusted = append(trusted, key)
	}
	slices.Sort(trusted)
	return digest.FromString(strings.Join(slices.Compact(trusted), "\n")).Encoded()[:32]
}

// mountName is what the store calls a cache mount of the build. Those of builds with different trust are different, so that content
// that somebody untrusted has made cannot come into a result that is signed.
func (b *Builder) mountName(id string) string {
	const mark = "+"
	switch {
	case len(b.Trust) > 0:
		return mark + b.mountTrust() + ":" + id
	case strings.HasPrefix(id, mark): // no name that a spec gives leads into those
		return mark + id
	}
	return id
}

// complete reports whether the store has what a record refers to.
func (b *Builder) complete(rec *Record) bool {
	for _, l := range rec.Layers {
		if l.IsZero() || l.Dir != "" && b.Store.HasLayer(l.Dir) {
			continue
		}
		if _, ok := b.Store.HasBlob(l.Blob.Digest); !ok {
			return false
		}
	}
	if rec.LogBlob != "" {
		_, ok := b.Store.HasBlob(rec.LogBlob)
		return ok
	}
	return true
}

// load makes the state of a key, with all that is below it. When something below is lost, missing is its key.
func (b *Builder) load(id keys.ID) (top *state, missing keys.ID) {
	return loader{b, map[keys.ID]bool{}}.load(id)
}

// A loader loads states one after the other, and remembers what is lost: in a chain of which a low state is lost, each of
// those above would be read again for each of those above it.
type loader struct {
	*Builder
	lost map[keys.ID]bool // or stands on what is lost
}

func (l loader) load(id keys.ID) (top *state, missing keys.ID) {
	var read []keys.ID
	lost := func(missing keys.ID) (*state, keys.ID) {
		for _, id := range append(read, missing) {
			l.lost[id] = true
		}
		return nil, missing
	}
	link := &top
	var child *state
	for {
		if l.lost[id] {
			return lost(id)
		}
		found, rec, ok := l.find(id)
		if !ok {
			return lost(id)
		}
		s := &state{id: found, rec: rec}
		if child != nil && child.rec.ParentID != rec.ID {
			return lost(child.id)
		}
		read = append(read, id, found)
		child = s
		*link, link = s, &s.parent
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

// stateID names the files that a layer makes of its parent's.
func stateID(parent string, l layers.Layer) string {
	name := l.Dir
	if name == "" {
		name = l.DiffID.String()
	}
	return digest.FromString(parent + "\n" + name).Encoded()
}

// save makes a state visible in the build's own domain, and points the step's input key to it.
func (b *Builder) save(s *state, input keys.ID) error {
	data, err := json.Marshal(s.rec)
	if err != nil {
		return fmt.Errorf("encode the record of %s: %w", s.id, err)
	}
	domain, key := b.domains()[0], s.id.String()
	res := &cas.Result{Key: key, Created: time.Now().UTC(), Data: data}
	if s.rec.Parent != "" {
		res.Parents = []string{s.rec.Parent}
	}
	for _, id := range s.rec.Uses {
		res.Parents = append(res.Parents, id.String())
	}
	for _, l := range s.rec.Layers {
		if l.Dir != "" {
			res.Layers = append(res.Layers, l.Dir)
		}
		if l.Blob.Digest != "" {
			res.Blobs = append(res.Blobs, l.Blob.Digest)
		}
	}
	if s.rec.LogBlob != "" {
		res.Blobs = append(res.Blobs, s.rec.LogBlob)
	}
	if p := s.rec.Pulled; p != nil {
		for _, step := range slices.Concat(p.Steps, p.Others) {
			if step.Log.Blob != "" {
				res.Blobs = append(res.Blobs, step.Log.Blob)
			}
		}
	}
	if err := b.Store.PutResult(domain, res); err != nil {
		return fmt.Errorf("save result %s: %w", key, err)
	}
	return b.alias(input, s.id)
}

// Record reads the record of a key.
func (b *Builder) Record(key string) (*Record, error) {
	id, err := keys.ParseID(key)
	if err != nil {
		return nil, err
	}
	_, rec, ok := b.find(id)
	if !ok {
		return nil, fmt.Errorf("result %s: %w", key, cas.ErrNotFound)
	}
	return rec, nil
}

// DecodeRecord reads the data of a result that this package has written.
func DecodeRecord(res *cas.Result) (*Record, error) {
	if res.Alias != "" {
		return nil, errors.New("an alias has no record")
	}
	var rec Record
	if err := json.Unmarshal(res.Data, &rec); err != nil {
		return nil, fmt.Errorf("decode the record of %s: %w", res.Key, err)
	}
	// Either a state has one below it, or it tells all by itself.
	if rec.ID == "" || (rec.Parent == "") != (rec.Config != nil) {
		return nil, fmt.Errorf("decode the record of %s: it describes no state", res.Key)
	}
	return &rec, nil
}
