package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// The domains of the store in which this package records: what names meant, and the images that were pulled.
const (
	namesDomain  = "obx.names"
	imagesDomain = "obx.images"
)

// A Resolver resolves names of base images and fetches images. It implements keys.Resolver. Safe for concurrent use; its fields are not to be changed
// after the first use. Close it: it holds the layouts open that it has read.
type Resolver struct {
	Store   *cas.Store
	Client  *repo.Client        // that images in registries are reached by; nil: one of its own
	Bases   map[string]string   // what a name in a spec means; names are compared in their full form. May be set after Client is used
	Mirrors map[string][]string // HOST[/PREFIX]es to try before a registry's host, in order
	// Guarded reaches images that a spec names, and that Bases does not say the meaning of; nil: Client does. Mirrors and Caches may be anywhere.
	Guarded *repo.Client
	// Limits bound an image that a spec names, and that Bases does not say the meaning of. The zero value leaves the bounds that each layer has.
	Limits  Limits
	Offline bool        // resolve only from what was recorded, and fetch nothing
	Lock    *Lockfile   // may be nil
	Caches  []repo.Repo // may have base images that cannot be had elsewhere, and, for Offline, what names mean. Set after Client is used

	hurry time.Duration // for tests; zero: what resolveBudget says
	own   repo.Client   // without Client

	basesOnce sync.Once
	basesErr  error
	bases     map[string]imageName

	resolved cas.Once[string, resolution] // by the name of the record

	mu      sync.Mutex
	origins map[digest.Digest]imageName // of what was resolved: under which name it can be had

	opening sync.Mutex
	layouts map[string]*repo.Layout // by the directory
}

// Close closes the layouts that were read. What was pulled from them stays.
func (im *Resolver) Close() error {
	im.opening.Lock()
	defer im.opening.Unlock()
	var err error
	for _, l := range im.layouts {
		err = errors.Join(err, l.Close())
	}
	im.layouts = nil
	return err
}

// layout opens the layout in a directory or an archive, once.
func (im *Resolver) layout(dir string) (*repo.Layout, error) {
	im.opening.Lock()
	defer im.opening.Unlock()
	if l := im.layouts[dir]; l != nil {
		return l, nil
	}
	l, err := repo.OpenLayout(dir)
	if err == nil {
		if im.layouts == nil {
			im.layouts = make(map[string]*repo.Layout)
		}
		im.layouts[dir] = l
	}
	return l, err
}

// A resolution is what a name means for a platform.
type resolution struct {
	Name     string           `json:"name"` // normalized
	For      ocispec.Platform `json:"for"`  // what was asked for
	Digest   digest.Digest    `json:"digest"`
	Platform ocispec.Platform `json:"platform"` // what the image is for
}

func compareResolutions(a, b resolution) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(oci.PlatformString(a.For), oci.PlatformString(b.For)))
}

// key is the name of the store's record.
func (r resolution) key() string {
	sum := sha256.Sum256([]byte(r.Name + "\n" + oci.PlatformString(r.For)))
	return hex.EncodeToString(sum[:])
}

// A source is where images may be: a repository of a registry, a layout, or a cache.
type source struct {
	repo.Repo
	isCache bool // it has base images, but what names mean is for others to say
}

// find looks up a tag or a digest: an index or a manifest, or several manifests for different platforms.
func (s source) find(ctx context.Context, n imageName) ([]ocispec.Descriptor, error) {
	if s.isCache {
		return nil, repo.ErrNotFound
	}
	if layout, ok := s.Repo.(*repo.Layout); ok && n.digest == "" { // its index may have a tag several times: once for each platform
		entries, err := layout.Index()
		if err != nil {
			return nil, err
		}
		return pick(s.Name(), entries, n.tag)
	}
	ref := cmp.Or(n.digest.String(), n.tag)
	desc, err := s.Head(ctx, ref) // registries that count pulls do not count it
	if err == nil && isVague(desc.MediaType) {
		var b []byte
		if _, b, err = s.Manifest(ctx, ref); err == nil {
			desc.MediaType, err = oci.MediaTypeOf(b)
		}
	}
	if errors.Is(err, repo.ErrNotFound) && n.dir == "" {
		err = fmt.Errorf("%w: check the name and the tag, or say what it means with --base NAME=REF", err)
	}
	return []ocispec.Descriptor{desc}, err
}

// isVague reports a media type that says nothing of a document, as some registries and proxies give for all: the document itself has to.
func isVague(mediaType string) bool {
	switch mediaType {
	case "", "application/json", "application/octet-stream", "text/plain":
		return true
	}
	return false
}

func (im *Resolver) client() *repo.Client { return cmp.Or(im.Client, &im.own) }

func (im *Resolver) readBases() error {
	im.basesOnce.Do(func() {
		im.bases = make(map[string]imageName)
		for from, to := range im.Bases {
			f, err := parseName(from)
			t, err2 := parseName(to)
			if err := cmp.Or(err, err2); err != nil {
				im.basesErr = fmt.Errorf("base %s=%s: %w", from, to, err)
				return
			}
			im.bases[f.String()] = t
		}
	})
	return im.basesErr
}

// Resolve finds the manifest of a platform for a name, with one HEAD (and a GET of an index where needed). The answer is kept for the process's
// life and recorded in the store for Offline. Base.Ref is the full form of ref itself, also where Bases says that it means another.
func (im *Resolver) Resolve(ctx context.Context, ref string, p ocispec.Platform) (keys.Base, error) {
	named, err := parseName(ref)
	if err != nil {
		return keys.Base{}, err
	}
	if p = oci.NormalizePlatform(p); p.OS == "" || p.Architecture == "" {
		return keys.Base{}, fmt.Errorf("resolve %s: %q is no platform", named, oci.PlatformString(p))
	}
	n, err := im.meaning(named)
	if err != nil {
		return keys.Base{}, err
	}
	if n.isScratch() {
		return keys.Base{Ref: named.String(), Platform: p}, nil
	}
	res, err := im.resolveOnce(ctx, n, p)
	if err != nil {
		if n != named {
			return keys.Base{}, fmt.Errorf("resolve %s, which is %s here: %w", named, n, err)
		}
		return keys.Base{}, fmt.Errorf("resolve %s: %w", named, specsFault(err))
	}
	return keys.Base{Ref: named.String(), Digest: res.Digest, Platform: res.Platform}, nil
}

// meaning applies Bases.
func (im *Resolver) meaning(n imageName) (imageName, error) {
	if err := im.readBases(); err != nil {
		return n, err
	}
	if to, ok := im.bases[n.String()]; ok {
		return to, nil
	}
	return n, nil
}

// given reports whether the user has named an image, in Bases.
func (im *Resolver) given(n imageName) bool {
	if im.readBases() != nil {
		return false
	}
	for _, to := range im.bases {
		if to == n {
			return true
		}
	}
	return false
}

// resolveOnce shares one resolution among all that ask.
func (im *Resolver) resolveOnce(ctx context.Context, n imageName, p ocispec.Platform) (resolution, error) {
	res := resolution{Name: n.String(), For: p}
	return im.resolved.Do(ctx, res.key(), func(ctx context.Context) (resolution, error) {
		res, err := im.resolve(ctx, n, res)
		if err == nil {
			im.mu.Lock()
			defer im.mu.Unlock()
			if im.origins == nil {
				im.origins = make(map[digest.Digest]imageName)
			}
			im.origins[res.Digest] = n
		}
		return res, err
	})
}

// resolve fills in what res.Name means for res.For.
func (im *Resolver) resolve(ctx context.Context, n imageName, res resolution) (resolution, error) {
	if locked, ok := im.Lock.lookup(res.Name, res.For); ok {
		return locked, nil
	}
	if n.dir == "" && (im.Offline || n.digest != "") {
		switch recorded, err := im.remembered(ctx, res); {
		case err == nil:
			im.Lock.add(recorded)
			return recorded, nil
		case !errors.Is(err, cas.ErrNotFound):
			return res, err
		case im.Offline:
			return res, fmt.Errorf("no record says what it means for %s: resolve it once without --offline", oci.PlatformString(res.For))
		}
	}
	srcs, err := im.sources(n)
	if err != nil {
		return res, err
	}
	found, err := within(ctx, im.budget(), "an image for "+oci.PlatformString(res.For), func(ctx context.Context) (ocispec.Descriptor, error) {
		return try(ctx, srcs, func(s source) (ocispec.Descriptor, error) {
			entries, err := s.find(ctx, n)
			if err != nil {
				return ocispec.Descriptor{}, err
			}
			return im.choose(ctx, srcs, entries, res.For)
		})
	})
	if err != nil {
		if im.Offline { // a layout that is elsewhere only
			if recorded, rerr := im.remembered(ctx, res); rerr == nil {
				im.Lock.add(recorded)
				return recorded, nil
			}
		}
		return res, err
	}
	res.Digest, res.Platform = found.Digest, *found.Platform
	if n.dir == "" { // a layout is here without a network, too
		if err := im.record(res); err != nil {
			return res, err
		}
	}
	if !im.isOwn(n) {
		im.Lock.add(res)
	}
	return res, nil
}

func (im *Resolver) budget() budget {
	b := resolveBudget
	b.time = cmp.Or(im.hurry, b.time)
	return b
}

// isOwn reports a layout in the store, which is made of what its name stands for: there is nothing to pin.
func (im *Resolver) isOwn(n imageName) bool {
	return n.dir != "" && strings.HasPrefix(n.dir, im.Store.Dir()+string(filepath.Separator))
}

// recorded finds what a name meant when it was last resolved.
func (im *Resolver) recorded(res resolution) (resolution, error) {
	r, err := im.Store.Result(namesDomain, res.key())
	if err != nil {
		return res, err
	}
	var rec resolution
	if err := json.Unmarshal(r.Data, &rec); err != nil || compareResolutions(rec, res) != 0 || oci.CheckDigest(rec.Digest) != nil {
		return res, fmt.Errorf("record of %s: %w", res.Name, cas.ErrNotFound)
	}
	im.Store.Touch(namesDomain, res.key())
	return rec, nil
}

func (im *Resolver) record(res resolution) error {
	if rec, err := im.recorded(res); err == nil && rec.Digest == res.Digest && oci.PlatformString(rec.Platform) == oci.PlatformString(res.Platform) {
		return nil
	}
	data, err := json.Marshal(res)
	if err != nil {
		return fmt.Errorf("record of %s: %w", res.Name, err)
	}
	return im.Store.PutResult(namesDomain, &cas.Result{Key: res.key(), Created: time.Now(), Data: data})
}

// sources lists where an image may be had, in the order to try: the caches last. For a registry they are all when offline.
func (im *Resolver) sources(n imageName) ([]source, error) {
	var srcs []source
	var failed error
	add := func(r repo.Repo, err error) {
		srcs, failed = append(srcs, source{Repo: r}), cmp.Or(failed, err)
	}
	client := im.client()
	switch {
	case n.dir != "":
		add(im.layout(n.dir))
	case !im.Offline:
		for _, mirror := range im.Mirrors[n.host] {
			host, prefix, _ := strings.Cut(mirror, "/")
			if prefix = strings.Trim(prefix, "/"); prefix != "" {
				prefix += "/"
			}
			add(client.Repo(host, prefix+n.path))
		}
		if im.Guarded != nil && !im.given(n) {
			client = im.Guarded
		}
		add(client.Repo(n.host, n.path))
	}
	for _, cache := range im.Caches {
		srcs = append(srcs, source{cache, true})
	}
	return srcs, failed
}

var errOffline = errors.New("it is not in the store, and nothing is fetched with --offline")

// try asks each source until one has an answer. If none has, the error is that of the last that is no cache, which is the one that was named.
func try[T any](ctx context.Context, srcs []source, ask func(source) (T, error)) (T, error) {
	var zero T
	err := errOffline
	var before, caches []string
	for _, s := range srcs {
		v, e := ask(s)
		if e == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			return zero, ctx.Err()
		}
		if isSpent(e) {
			return zero, e
		}
		if s.isCache {
			if !errors.Is(e, repo.ErrNotFound) { // that one need not have it goes without saying
				caches = append(caches, s.Name()+": "+e.Error())
			}
			continue
		}
		if err != errOffline {
			before = append(before, err.Error())
		}
		err = e
	}
	if before != nil {
		err = fmt.Errorf("%w (before, from mirrors: %s)", err, strings.Join(before, "; "))
	}
	if caches != nil {
		err = fmt.Errorf("%w (and in caches: %s)", err, strings.Join(caches, "; "))
	}
	return zero, err
}

// maxNesting is how deep indexes may lie in indexes.
const maxNesting = 4

// choose finds the manifest for a platform. The result's Platform is set.
func (im *Resolver) choose(ctx context.Context, srcs []source, entries []ocispec.Descriptor, p ocispec.Platform) (ocispec.Descriptor, error) {
	if len(entries) == 1 && !oci.IsIndex(entries[0].MediaType) {
		// A manifest for all platforms, so to speak: that it is for this one is seen when its config is here. Only Windows wants to know more.
		only := entries[0]
		if err := oci.CheckDocumentType(only.MediaType); err != nil {
			return only, err
		}
		only.Platform = &p
		if p.OS == "windows" {
			have, err := im.platformOf(ctx, srcs, only)
			if err != nil {
				return only, err
			}
			only.Platform = &have
		}
		return only, nil
	}
	c := choice{Resolver: im, srcs: srcs, want: p}
	if err := c.among(ctx, entries, maxNesting); err != nil {
		return ocispec.Descriptor{}, err
	}
	if c.best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("there is no image for %s, only for %s", oci.PlatformString(p), c.others())
	}
	return *c.best, nil
}

// A choice is that of one image among many. Of those it has seen it keeps the best alone.
type choice struct {
	*Resolver
	srcs []source
	want ocispec.Platform
	best *ocispec.Descriptor
	have []string // platforms of the first images, for people
	more bool     // there were others
}

// maxOthers is how many platforms an error names.
const maxOthers = 16

func (c *choice) others() string {
	slices.Sort(c.have)
	list := cmp.Or(strings.Join(c.have, ", "), "none")
	if c.more {
		list += " and others"
	}
	return list
}

// see looks at an image.
func (c *choice) see(d ocispec.Descriptor, p ocispec.Platform) {
	d.Platform = &p
	if name := oci.PlatformString(p); !slices.Contains(c.have, name) {
		if len(c.have) < maxOthers {
			c.have = append(c.have, name)
		} else {
			c.more = true
		}
	}
	if oci.RunsOn(c.want, p) && (c.best == nil || oci.ComparePlatforms(p, *c.best.Platform) > 0) {
		c.best = &d
	}
}

// isFound reports that no other image can be better. Of Windows, a newer version always is.
func (c *choice) isFound() bool {
	return c.best != nil && c.want.OS != "windows" && oci.PlatformString(*c.best.Platform) == oci.PlatformString(c.want)
}

// among looks at the images of entries and of the indexes among them, with their platforms.
func (c *choice) among(ctx context.Context, entries []ocispec.Descriptor, nesting int) error {
	for _, d := range entries {
		if c.isFound() {
			return nil // lists may have hundreds more, of signatures and the like, that do not say what they are
		}
		switch {
		case oci.IsIndex(d.MediaType):
			if nesting == 0 {
				return errors.New("its indexes are nested too deeply")
			}
			b, err := c.document(ctx, c.srcs, d.Digest)
			if err != nil {
				return err
			}
			inner, err := oci.ParseIndex(b)
			if err != nil {
				return err
			}
			if err := c.among(ctx, inner, nesting-1); err != nil {
				return err
			}
		case oci.CheckDocumentType(d.MediaType) != nil:
			// What is not an image is for other readers.
		default:
			p, err := c.platformIn(ctx, d)
			if errors.As(err, new(oci.Misfit)) {
				continue // as an attestation that does not say so
			}
			if err != nil {
				return err
			}
			if p.OS != "unknown" { // attestations are for unknown/unknown
				c.see(d, p)
			}
		}
	}
	return nil
}

// platformIn is what an entry of an index is for. What neither it nor the image says is as wanted.
func (c *choice) platformIn(ctx context.Context, d ocispec.Descriptor) (p ocispec.Platform, err error) {
	if d.Platform != nil && d.Platform.OS != "" && d.Platform.Architecture != "" {
		return oci.NormalizePlatform(*d.Platform), nil
	}
	p, err = c.platformOf(ctx, c.srcs, d)
	return oci.OrPlatform(p, c.want), err
}

// platformOf reads what an image is for in its config.
func (im *Resolver) platformOf(ctx context.Context, srcs []source, d ocispec.Descriptor) (ocispec.Platform, error) {
	b, err := im.document(ctx, srcs, d.Digest)
	if err != nil {
		return ocispec.Platform{}, err
	}
	conf, ls, err := oci.ParseManifest(b)
	if err != nil {
		return ocispec.Platform{}, err
	}
	img, err := im.config(ctx, srcs, conf, len(ls))
	if err != nil {
		return ocispec.Platform{}, err
	}
	return oci.NormalizePlatform(img.Platform), nil
}

// document reads an index or manifest from the store, or else from a source into the store.
func (im *Resolver) document(ctx context.Context, srcs []source, d digest.Digest) ([]byte, error) {
	return im.small(ctx, srcs, d, func(s source) ([]byte, error) {
		_, b, err := s.Manifest(ctx, d.String())
		return b, err
	})
}

func (im *Resolver) config(ctx context.Context, srcs []source, desc ocispec.Descriptor, layers int) (*ocispec.Image, error) {
	if desc.Size > oci.MaxDocument {
		return nil, fmt.Errorf("its config has %d bytes: at most %d are read", desc.Size, oci.MaxDocument)
	}
	b, err := im.small(ctx, srcs, desc.Digest, func(s source) ([]byte, error) { return repo.ReadBlob(ctx, s, desc) })
	if err != nil {
		return nil, fmt.Errorf("fetch its config: %w", err)
	}
	return oci.ParseConfig(b, layers)
}

// small reads a document, from what ctx may spend.
func (im *Resolver) small(ctx context.Context, srcs []source, d digest.Digest, fetch func(source) ([]byte, error)) ([]byte, error) {
	s := spendingOf(ctx)
	if err := s.next(); err != nil {
		return nil, err
	}
	b, err := im.fetchSmall(ctx, srcs, d, fetch)
	s.read(len(b))
	return b, err
}

func (im *Resolver) fetchSmall(ctx context.Context, srcs []source, d digest.Digest, fetch func(source) ([]byte, error)) ([]byte, error) {
	if f, err := im.Store.Blob(d); err == nil {
		defer f.Close()
		if b, err := io.ReadAll(io.LimitReader(f, oci.MaxDocument+1)); err == nil && oci.CheckBytes(b, d) == nil {
			return b, nil
		}
	} else if !errors.Is(err, cas.ErrNotFound) {
		return nil, err
	}
	return try(ctx, srcs, func(s source) ([]byte, error) {
		b, err := fetch(s)
		if err != nil {
			return nil, err
		}
		if err := oci.CheckBytes(b, d); err != nil {
			return nil, err
		}
		if _, err := im.Store.PutBlob(b); err != nil {
			return nil, err
		}
		return b, nil
	})
}

// annotationContainerName is where containerd and BuildKit keep a full name; the reference name is then only the tag.
const annotationContainerName = "io.containerd.image.name"

// pick finds the entries of a tag in a layout: more than one only if these are for several platforms. Without a tag, there has to be one image only.
func pick(layout string, entries []ocispec.Descriptor, tag string) ([]ocispec.Descriptor, error) {
	if tag == "" {
		if len(entries) == 1 {
			return entries, nil
		}
		return nil, fmt.Errorf("%s holds %d images, name one by its tag: %s", layout, len(entries), tagList(entries))
	}
	var found []ocispec.Descriptor
	for _, e := range entries {
		if e.Annotations[ocispec.AnnotationRefName] == tag {
			found = append(found, e)
		}
	}
	if found == nil {
		// Some tools write the whole name.
		for _, e := range entries {
			if n, err := parseName(e.Annotations[ocispec.AnnotationRefName]); err == nil && n.tag == tag {
				found = append(found, e)
			}
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%s has no tag %q: %w: it has %s", layout, tag, repo.ErrNotFound, tagList(entries))
	}
	return found, nil
}

func tagList(entries []ocispec.Descriptor) string {
	var tags []string
	for _, e := range entries {
		tag := e.Annotations[ocispec.AnnotationRefName]
		if tag == "" {
			tag = "@" + e.Digest.String()
		}
		tags = append(tags, tag)
	}
	if tags == nil {
		return "none"
	}
	slices.Sort(tags)
	return strings.Join(slices.Compact(tags), ", ")
}
