package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// A Cache is where results are shared: a Repo, and rules of whom to believe. What is broken, missing, untrusted or of an unknown format is a
// miss for its methods, told to Warn once a cause, and never an error: errors are ctx's alone, or, of Push, that it could not be done.
//
// Its methods may be called concurrently. A Cache remembers what it has seen of the Repo, and must not be copied.
type Cache struct {
	Repo        repo.Repo
	Store       *cas.Store
	Domains     []string           // results of all are read, first to last; new ones belong to the first. None: "default"
	Platform    ocispec.Platform   // if not zero, only results for it are read
	Trust       []PublicKey        // if not empty, only results with a signature by one of them are read
	Signer      *Signer            // may be nil
	Failures    time.Duration      // if not 0, failures younger than this are found too (Result.Exit != 0)
	Compression layers.Compression // of layers that Push must make (merged ranges)
	Warn        func(msg string)

	clock func() time.Time // nil: time.Now

	entries cas.Claims[string] // one push of a tag at a time
	merges  cas.Claims[string] // one merge of a range

	mu      sync.Mutex
	seen    map[string]tagState // by tag of a record
	sender  *repo.Sender
	members map[digest.Digest]int       // by diff id: of how many layers of steps a layer was merged
	packed  map[digest.Digest]packedLog // by digest of the log
	warned  map[string]bool
	plain   bool // the Repo refuses media types of records
}

// A Result is what is shared of a key.
type Result struct {
	Key      keys.ID
	Found    keys.ID // set by Find: which of the keys it was looked up by; Key, or a key that is an alias of Key
	Alias    keys.ID // of an input key: the content key that has the result. Then only Key, Alias, Preimage, Platform and Domain mean something
	Preimage string  // of Key
	Platform ocispec.Platform
	Domain   string         // set by Find; Push uses the Cache's first
	Exit     int            // of a step that failed; then Layers are those of the state before it, which Find does not give
	Config   ocispec.Image  // as of this state: env, user and directory of the next step, history. Push fills RootFS in; Find leaves all to Fetch
	Layers   []layers.Layer // base first; none is zero
	Base     int            // how many of Layers are the base image's
	BaseRef  string         // where the base can be had: a normalised name, to mount its blobs from; "" if that is unknown
	Steps    []Step         // of the stage, first to last; the last is Key's own
	Others   []Step         // of other stages that it depends on, in the order of the log
	Started  time.Time
	Took     time.Duration
	Builder  string

	Envelope []byte // as it was found; nil for a result that was made here

	record *record // as it was found
	alias  *record // of Found, if that is not Key
}

// A Step is one step of a Result: what a replay needs of it.
type Step struct {
	Key    keys.ID // content key
	Input  keys.ID // input key; zero if it is the same
	Op     string  // its heading, for people: one line, shortened
	Layers int     // how many of Result.Layers lead to the state after it; -1 for steps of other stages, and where layers were merged
	Took   time.Duration
	Log    Log
}

// A Log is what a step printed.
type Log struct {
	Data []byte             // all of it, for Push
	Blob digest.Digest      // else: a blob of the store (not compressed), for Push
	Desc ocispec.Descriptor // else: a blob of the Repo (zstd), from Find; its Data is there if it was inlined. Read it with OpenLog

	unpacked int64     // of Desc
	repo     repo.Repo // that has Desc
}

// fresh is how long the last look at a tag counts. Within it a push asks nothing before and after: a race that this misses costs a
// rebuild, while asking twice a step would cost every step.
const fresh = 10 * time.Second

// A tagState is what was last seen under the tag of a record.
type tagState struct {
	kind   tagKind
	at     time.Time
	digest digest.Digest // of the manifest
	made   time.Time     // of a failure: when
}

// A tagKind says what is under a tag, and so whether a push replaces it.
type tagKind int

const (
	unseen    tagKind = iota
	missing           // nothing
	broken            // nothing that anybody could use
	untrusted         // a record that others may believe
	newer             // a record of a later format
	failure           // a good record of a failure
	good              // a good record
)

// Name is that of the Repo.
func (c *Cache) Name() string { return c.Repo.Name() }

// Sender puts things into the Repo, and knows which blobs that has.
func (c *Cache) Sender() *repo.Sender {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sender == nil {
		c.sender = &repo.Sender{Repo: c.Repo}
	}
	return c.sender
}

func (c *Cache) now() time.Time {
	if c.clock != nil {
		return c.clock()
	}
	return time.Now()
}

func (c *Cache) domains() []string {
	if len(c.Domains) == 0 {
		return []string{defaultDomain}
	}
	return c.Domains
}

func (c *Cache) warn(cause, format string, args ...any) {
	c.mu.Lock()
	first := !c.warned[cause]
	if c.warned == nil {
		c.warned = make(map[string]bool)
	}
	c.warned[cause] = true
	c.mu.Unlock()
	if first && c.Warn != nil {
		c.Warn(c.Repo.Name() + ": " + fmt.Sprintf(format, args...))
	}
}

func (c *Cache) note(tag string, s tagState) {
	s.at = c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		c.seen = make(map[string]tagState)
	}
	c.seen[tag] = s
}

func (c *Cache) stateOf(tag string) tagState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[tag]
}

// lost gives a blob of a record that was found missing or wrong before, when another record named it.
func (c *Cache) lost(r *record) (digest.Digest, bool) {
	var blobs []digest.Digest
	for _, l := range r.Layers {
		blobs = append(blobs, l.Digest.digest())
	}
	for _, l := range r.logs {
		if l.Data == nil {
			blobs = append(blobs, l.Digest)
		}
	}
	for _, d := range blobs {
		if there, known := c.Sender().Knows(d); known && !there {
			return d, true
		}
	}
	return "", false
}

// maxRequests is how many requests a look-up has in flight.
const maxRequests = 32

// Find looks results up: keys of one chain of steps, deepest first. It asks for the first alone, since most builds are there as a whole; when that
// misses for the second, since most others lack their last step alone; and when that misses, which of all others are there (HEAD, at most 32 requests
// in flight). It gives the deepest good one, through its alias if that is what it finds; nil if there is none. A hit of the first key costs one
// request, or two through an alias.
func (c *Cache) Find(ctx context.Context, ids []keys.ID) (*Result, error) {
	ctx = repo.InPassing(ctx)
	r, err := c.deepest(ctx, ids)
	if errors.Is(err, errNoAnswer) { // more questions would only wait for it
		return nil, nil
	}
	return r, err
}

func (c *Cache) deepest(ctx context.Context, ids []keys.ID) (*Result, error) {
	const alone = 2
	for _, id := range ids[:min(alone, len(ids))] {
		if r, err := c.find(ctx, id, c.domains()); err != nil || r != nil {
			return r, err
		}
	}
	if len(ids) <= alone {
		return nil, nil
	}
	ids = ids[alone:]
	there, err := c.heads(ctx, ids)
	if err != nil {
		return nil, err
	}
	for i, id := range ids {
		if r, err := c.find(ctx, id, there[i]); err != nil || r != nil {
			return r, err
		}
	}
	return nil, nil
}

// errNoAnswer says that a Repo could not be asked. It has been told to Warn.
var errNoAnswer = errors.New("the cache does not answer")

// heads asks which records there are: for each key, it gives the domains that have one.
func (c *Cache) heads(ctx context.Context, ids []keys.ID) ([][]string, error) {
	there := make([][]string, len(ids))
	has := make([][]bool, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxRequests)
	for i, id := range ids {
		has[i] = make([]bool, len(c.domains()))
		for j, domain := range c.domains() {
			tag := tagOf(id, domain) + recordSuffix
			g.Go(func() error {
				_, err := c.Repo.Head(gctx, tag)
				switch {
				case err == nil:
					has[i][j] = true
				case gctx.Err() != nil:
					return gctx.Err()
				case errors.Is(err, repo.ErrNotFound):
					c.note(tag, tagState{kind: missing})
				default:
					c.warn("read", "cannot be read: %v", err)
				}
				return nil
			})
		}
	}
	err := g.Wait()
	for i := range ids {
		for j, domain := range c.domains() {
			if has[i][j] {
				there[i] = append(there[i], domain)
			}
		}
	}
	return there, err
}

// find gives the first result of a key in some domains, through an alias too. errNoAnswer, or ctx's error.
func (c *Cache) find(ctx context.Context, id keys.ID, domains []string) (*Result, error) {
	for _, domain := range domains {
		rec, err := c.lookUp(ctx, id, domain)
		if err != nil {
			return nil, err
		}
		if rec == nil {
			continue
		}
		if rec.Status != statusAlias {
			return c.result(rec, id), nil
		}
		for _, domain := range c.domains() {
			target, err := c.lookUp(ctx, rec.Alias, domain)
			if err != nil {
				return nil, err
			}
			if target != nil && target.Status != statusAlias {
				r := c.result(target, id)
				r.alias = rec
				return r, nil
			}
		}
		// Whoever builds it may get another content key: then this alias must not stand in the way.
		c.note(rec.tag, tagState{kind: broken, digest: rec.digest})
	}
	return nil, nil
}

// lookUp reads the record of a key in a domain. What cannot be used is nil; why is noted, and told once. errNoAnswer, or ctx's error.
func (c *Cache) lookUp(ctx context.Context, id keys.ID, domain string) (*record, error) {
	tag := tagOf(id, domain) + recordSuffix
	rec, d, err := c.read(ctx, tag)
	if err == nil {
		err = c.fits(rec, id, domain)
	}
	var distrust *untrustedError
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, repo.ErrNotFound):
		c.note(tag, tagState{kind: missing})
		return nil, nil
	case errors.As(err, &distrust):
		c.warn("untrusted", "the result of %s is not used: %v (trust its signer with --trust NAME:KEY, or let a machine that "+
			"is trusted build it with --sign-key)", id, err)
		c.note(tag, tagState{kind: untrusted, digest: d})
		return nil, nil
	case errors.Is(err, errNewer):
		c.warn("newer", "the result of %s is not used: %v", id, err)
		c.note(tag, tagState{kind: newer, digest: d})
		return nil, nil
	case d == "":
		c.warn("read", "cannot be read: %v", err)
		return nil, errNoAnswer
	default:
		c.warn("broken", "the result of %s is broken, and not used: %v", id, err)
		c.note(tag, tagState{kind: broken, digest: d})
		return nil, nil
	}
	if was := c.stateOf(tag); was.kind == broken && was.digest == d {
		return nil, nil // Fetch found it so, and nobody has mended it since
	}
	if lost, ok := c.lost(rec); ok {
		c.warn("broken", "the result of %s is broken, and not used: blob %s is gone", id, lost)
		c.note(tag, tagState{kind: broken, digest: d})
		return nil, nil
	}
	if rec.Status == statusFailed {
		c.note(tag, tagState{kind: failure, digest: d, made: rec.finished()})
		if !c.recent(rec.finished()) {
			return nil, nil
		}
	} else {
		c.note(tag, tagState{kind: good, digest: d})
	}
	blobs := []digest.Digest{rec.config.Digest}
	for _, l := range rec.Layers {
		blobs = append(blobs, l.Digest.digest())
	}
	for _, l := range rec.logs {
		blobs = append(blobs, l.Digest)
	}
	if rec.Config != nil {
		blobs = append(blobs, rec.Config.Digest.digest())
	}
	c.Sender().Note(true, blobs...)
	return rec, nil
}

// recent reports whether a failure of that time still counts. One from the future, beyond clocks that differ, does not.
func (c *Cache) recent(made time.Time) bool {
	age := c.now().Sub(made)
	return c.Failures > 0 && age < c.Failures && age > -time.Hour
}

// read gives what is under the tag of a record. The digest is that of its manifest, "" if there is none or it could not be read.
func (c *Cache) read(ctx context.Context, tag string) (*record, digest.Digest, error) {
	_, b, err := c.Repo.Manifest(ctx, tag)
	if err != nil {
		return nil, "", err
	}
	d := digest.FromBytes(b)
	m, err := decodeRecordManifest(b)
	if err != nil {
		return nil, d, err
	}
	envelope := m.Config.Data
	if envelope == nil {
		switch envelope, err = repo.ReadBlob(ctx, c.Repo, m.Config); {
		case errors.Is(err, repo.ErrNotFound):
			return nil, d, fmt.Errorf("its envelope %s is gone", m.Config.Digest)
		case err != nil:
			// Lost to us, as any blob that a Repo does not give though asked again: else nobody would ever mend it.
			return nil, d, fmt.Errorf("its envelope %s cannot be read: %w", m.Config.Digest, err)
		}
	}
	rec, err := openRecord(m, envelope, c.Trust)
	if err != nil {
		return nil, d, err
	}
	rec.tag, rec.digest, rec.manifest = tag, d, b
	return rec, d, nil
}

// fits holds a record against what was asked for.
func (c *Cache) fits(r *record, id keys.ID, domain string) error {
	switch {
	case r.Key != id:
		return fmt.Errorf("it is the result of %s", r.Key)
	case r.Domain != domain:
		return fmt.Errorf("it belongs to the domain %q, not to %q", r.Domain, domain)
	case c.Platform.OS == "":
		return nil
	}
	have, want := oci.PlatformString(oci.NormalizePlatform(r.Platform)), oci.PlatformString(oci.NormalizePlatform(c.Platform))
	if have != want {
		return fmt.Errorf("it is for %s, not for %s", have, want)
	}
	return nil
}

// result gives a record in the terms of those who use it.
func (c *Cache) result(rec *record, found keys.ID) *Result {
	r := &Result{
		Key:      rec.Key,
		Found:    found,
		Preimage: rec.Preimage,
		Platform: rec.Platform,
		Domain:   rec.Domain,
		Exit:     rec.Exit,
		Base:     rec.Base,
		Started:  rec.Started,
		Took:     time.Duration(rec.Took) * time.Millisecond,
		Builder:  rec.Builder,
		Envelope: rec.envelope,
		record:   rec,
	}
	for _, l := range rec.Layers {
		r.Layers = append(r.Layers, layers.Layer{DiffID: l.DiffID.digest(), Blob: l.layer(), Size: l.Unpacked})
		if l.Members > 1 {
			c.noteMembers(l.DiffID.digest(), l.Members)
		}
	}
	steps := func(refs []stepRef) (steps []Step) {
		for _, s := range refs {
			step := Step{Key: keys.ID(s.Key), Input: keys.ID(s.Input), Op: s.Op, Layers: s.Layers, Took: time.Duration(s.Took) * time.Millisecond}
			if s.Log >= 0 {
				step.Log = Log{Desc: rec.logs[s.Log], unpacked: rec.Logs[s.Log].Unpacked, repo: c.Repo}
			}
			steps = append(steps, step)
		}
		return steps
	}
	r.Steps, r.Others = steps(rec.Steps), steps(rec.Others)
	return r
}

// Touch notes that a result of Find is used, if that was last noted more than a day ago and the Repo can be written: garbage collection
// goes by it. It puts the image again if that is not, or no longer, under its tag.
func (c *Cache) Touch(ctx context.Context, r *Result) {
	for _, rec := range []*record{r.record, r.alias} {
		if rec != nil && rec.Status != statusFailed {
			c.touch(ctx, rec)
		}
	}
}

func (c *Cache) touch(ctx context.Context, rec *record) {
	m, err := decodeRecordManifest(rec.manifest)
	if err != nil {
		return
	}
	old := c.now().Sub(lastUse(m)) >= 24*time.Hour
	if !old && !rec.astray {
		return
	}
	// Whatever somebody has put there since is newer than this.
	if desc, err := c.Repo.Head(ctx, rec.tag); err != nil || desc.Digest != rec.digest {
		return
	}
	if rec.Image != nil && !rec.looked {
		_ = c.findImage(ctx, rec) // its error is ctx's
	}
	if rec.astray {
		c.restore(ctx, rec)
	}
	if !old {
		return
	}
	if m.Annotations == nil {
		m.Annotations = make(map[string]string)
	}
	m.Annotations[annotationUsed] = c.now().UTC().Format(time.RFC3339)
	var desc ocispec.Descriptor
	b, err := m.encode()
	if err == nil {
		desc, err = c.Repo.PutManifest(ctx, rec.tag, ocispec.MediaTypeImageManifest, b)
	}
	if err == nil {
		c.note(rec.tag, tagState{kind: good, digest: desc.Digest})
	} else if !errors.Is(err, repo.ErrReadOnly) && ctx.Err() == nil {
		c.warn("touch", "the date of last use cannot be noted: %v", err)
	}
}

// restore puts the image of a record again. What the Repo has lost of it makes the record a broken one, which the next push replaces.
func (c *Cache) restore(ctx context.Context, rec *record) {
	b, err := rec.imageManifest()
	if err == nil {
		err = oci.CheckBytes(b, rec.Image.Digest.digest())
	}
	if err == nil {
		_, err = c.Repo.PutManifest(ctx, strings.TrimSuffix(rec.tag, recordSuffix), ocispec.MediaTypeImageManifest, b)
	}
	switch {
	case err == nil:
		rec.astray = false
	case errors.Is(err, repo.ErrBlobUnknown):
		c.note(rec.tag, tagState{kind: broken, digest: rec.digest})
		fallthrough
	case !errors.Is(err, repo.ErrReadOnly) && ctx.Err() == nil:
		c.warn("restore", "the image of %s cannot be put again: %v", rec.Key, err)
	}
}

// lastUse reads when a record was used last. It is a hint: it stands outside the envelope.
func lastUse(m *recordManifest) time.Time {
	t, err := time.Parse(time.RFC3339, m.Annotations[annotationUsed])
	if err != nil {
		t, _ = time.Parse(time.RFC3339, m.Annotations[ocispec.AnnotationCreated])
	}
	return t
}

// Keys lists the keys that have records, aliases included, in the Cache's domains.
func (c *Cache) Keys(ctx context.Context) ([]keys.ID, error) {
	tags, err := c.tags(ctx)
	if err != nil {
		return nil, err
	}
	var ids []keys.ID
	for _, tag := range tags {
		id, _, isRecord, _ := parseTag(tag)
		ours := slices.ContainsFunc(c.domains(), func(d string) bool { return tag == tagOf(id, d)+recordSuffix })
		if isRecord && ours && !slices.Contains(ids[max(0, len(ids)-1):], id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
