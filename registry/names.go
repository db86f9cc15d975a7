package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
)

// What the names of base images meant, and base images themselves, can travel with a cache: then a machine without a network can plan and run what
// another has resolved. See FORMAT.md, section 8.
const (
	nameTag       = "name-"
	baseTag       = "base-"
	mediaTypeName = "application/vnd.obx.name.v1+json"
	// The bytes of an index that a name is pinned to. It is no manifest there, and registries shall not look for what it lists.
	mediaTypeNameIndex = "application/vnd.obx.name.index.v1+json"
)

// A Name is what the name of a base image meant.
type Name struct {
	For  ocispec.Platform // what was asked for
	Base keys.Base        // Ref is the name, normalized
}

func (r resolution) tag() string { return nameTag + r.key() }

// Names lists what the store remembers of names.
func (im *Images) Names(ctx context.Context) ([]Name, error) {
	var all []Name
	for info, err := range im.Store.Results() {
		if err := cmp.Or(ctx.Err(), err); err != nil {
			return nil, fmt.Errorf("list the names of base images: %w", err)
		}
		var res resolution
		if info.Domain != NamesDomain || json.Unmarshal(info.Result.Data, &res) != nil || res.key() != info.Result.Key {
			continue
		}
		all = append(all, Name{For: res.For, Base: keys.Base{Ref: res.Name, Digest: res.Digest, Platform: res.Platform}})
	}
	return all, nil
}

// Blobs lists the layers of a base image, as blobs.
func (im *Images) Blobs(ctx context.Context, base keys.Base) ([]digest.Digest, error) {
	ls, err := im.layersOf(ctx, base)
	return blobsOf(ls), err
}

// layersOf reads the manifest of a base image, from the store or where the image is.
func (im *Images) layersOf(ctx context.Context, base keys.Base) ([]ocispec.Descriptor, error) {
	if err := im.init(); err != nil || base.Digest == "" {
		return nil, err
	}
	n, err := im.origin(base)
	if err != nil {
		return nil, err
	}
	manifest, err := im.document(ctx, im.sources(n), base.Digest)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of %s: %w", base.Ref, err)
	}
	_, ls, err := parseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of %s: %w", base.Ref, err)
	}
	return ls, nil
}

func blobsOf(ls []ocispec.Descriptor) []digest.Digest {
	blobs := make([]digest.Digest, len(ls))
	for i, l := range ls {
		blobs[i] = l.Digest
	}
	return blobs
}

// PublishName puts into a cache what a name meant, also under the name that it stands for here by Bases. It tells how many bytes it sent: none,
// where the cache says so already. A name that is pinned to an index goes with that, and is left out where it cannot be had.
func (im *Images) PublishName(ctx context.Context, to *Cache, name Name) (sent int64, err error) {
	if err := im.init(); err != nil || name.Base.Digest == "" {
		return 0, err
	}
	n, err := parseName(name.Base.Ref)
	if err != nil {
		return 0, err
	}
	names := []string{n.String()}
	other, err := im.meaning(n)
	if err != nil {
		return 0, err
	}
	if other != n && other.dir == "" { // a directory is another one elsewhere
		names = append(names, other.String())
	}
	for _, s := range names {
		var index []byte
		if n, err := parseName(s); err != nil {
			return sent, err
		} else if n.digest != "" && n.digest != name.Base.Digest {
			index, err = im.document(ctx, im.sources(n), n.digest)
			if ctx.Err() != nil {
				return sent, ctx.Err()
			}
			if err != nil || !lists(index, name.Base.Digest) {
				continue // nobody would believe it
			}
		}
		more, err := to.putName(ctx, resolution{
			Name: s, For: normalizePlatform(name.For), Digest: name.Base.Digest, Platform: normalizePlatform(name.Base.Platform),
		}, index)
		sent += more
		if err != nil {
			return sent, fmt.Errorf("put the name %s into %s: %w", s, to.Repo.Name(), err)
		}
	}
	return sent, nil
}

// lists reports whether an index has a manifest in its list.
func lists(index []byte, d digest.Digest) bool {
	entries, err := parseIndex(index)
	return err == nil && slices.ContainsFunc(entries, func(e ocispec.Descriptor) bool { return e.Digest == d })
}

// putName puts a name, with the index that it is pinned to, if it is. The last writer wins.
func (c *Cache) putName(ctx context.Context, res resolution, index []byte) (int64, error) {
	switch there, _, err := readName(ctx, c.Repo, res.tag()); {
	case err == nil && there.Digest == res.Digest && platformString(there.Platform) == platformString(res.Platform):
		return 0, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	}
	p := &push{Cache: c}
	put := func(mediaType string, config any) error {
		b, err := json.Marshal(config)
		if err != nil {
			return err
		}
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b)), Data: b}
		blobs := []blob{{desc: bare(desc), open: opener(b)}}
		layers := []ocispec.Descriptor{}
		if index != nil {
			pin := ocispec.Descriptor{MediaType: mediaTypeNameIndex, Digest: digest.FromBytes(index), Size: int64(len(index))}
			layers = append(layers, pin)
			blobs = append(blobs, blob{desc: pin, open: opener(index)})
		}
		manifest, err := json.Marshal(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageManifest,
			Config:    desc,
			Layers:    layers,
			Annotations: map[string]string{
				ocispec.AnnotationBaseImageName: res.Name, ocispec.AnnotationBaseImageDigest: res.Digest.String(),
			},
		})
		if err != nil {
			return err
		}
		return p.putWhole(ctx, res.tag(), ocispec.MediaTypeImageManifest, manifest, blobs)
	}
	err := put(mediaTypeName, res)
	if errors.Is(err, ErrRefused) {
		// As an image that runs nowhere: its other fields are unknown to readers of names.
		err = put(ocispec.MediaTypeImageConfig, struct {
			resolution
			Architecture string         `json:"architecture"`
			OS           string         `json:"os"`
			RootFS       ocispec.RootFS `json:"rootfs"`
		}{res, "unknown", "unknown", ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}})
	}
	return p.sent.Load(), err
}

// putWhole puts blobs, and the manifest that refers to them.
func (p *push) putWhole(ctx context.Context, tag, mediaType string, manifest []byte, blobs []blob) error {
	if err := p.putAll(ctx, blobs); err != nil {
		return err
	}
	return p.retrying(ctx, blobs, func() error {
		_, err := p.Repo.PutManifest(ctx, tag, mediaType, manifest)
		if err == nil {
			p.sent.Add(int64(len(manifest)))
		}
		return err
	})
}

// readName reads what a Repo says of a name, and the index that the name is pinned to, if it is. Of a name with a digest, a Repo can only say what the
// digest says.
func readName(ctx context.Context, repo Repo, tag string) (resolution, []byte, error) {
	res, layers, err := readMeaning(ctx, repo, tag)
	if err != nil {
		return res, nil, err
	}
	n, err := parseName(res.Name)
	if err != nil {
		return res, nil, err
	}
	if n.digest == "" || n.digest == res.Digest {
		return res, nil, nil
	}
	if len(layers) != 1 || layers[0].Digest != n.digest {
		return res, nil, fmt.Errorf("it does not show that %s is of %s", res.Digest, n.digest)
	}
	index, err := readBlob(ctx, repo, layers[0])
	if err == nil {
		err = checkBytes(index, n.digest)
	}
	if err == nil && !lists(index, res.Digest) {
		err = fmt.Errorf("%s is not of %s", res.Digest, n.digest)
	}
	return res, index, err
}

func readMeaning(ctx context.Context, repo Repo, tag string) (res resolution, layers []ocispec.Descriptor, err error) {
	fail := func(err error) (resolution, []ocispec.Descriptor, error) { return res, nil, err }
	_, b, err := repo.Manifest(ctx, tag)
	if err != nil {
		return fail(err)
	}
	doc, err := parseDocument(b)
	if err != nil {
		return fail(err)
	}
	if doc.Config == nil {
		return fail(errors.New("it has no config"))
	}
	data := doc.Config.Data
	if data == nil {
		if data, err = readBlob(ctx, repo, *doc.Config); err != nil {
			return fail(err)
		}
	}
	if err := checkBytes(data, doc.Config.Digest); err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(data, &res); err != nil {
		return fail(fmt.Errorf("read what a name means: %w", err))
	}
	switch {
	case res.tag() != tag:
		return fail(fmt.Errorf("it is what %s for %s means", res.Name, platformString(res.For)))
	case platformString(res.For) != platformString(normalizePlatform(res.For)), res.Platform.OS != res.For.OS:
		return fail(fmt.Errorf("%q for %q is no platform", platformString(res.Platform), platformString(res.For)))
	}
	return res, doc.Layers, checkDigest(res.Digest)
}

// PublishBase puts a base image into a cache, byte for byte. What is no longer in the store comes from where the image is. It tells how many
// bytes it sent: none, where the cache has all of it.
func (im *Images) PublishBase(ctx context.Context, to *Cache, base keys.Base) (sent int64, err error) {
	if err := im.init(); err != nil || base.Digest == "" {
		return 0, err
	}
	p := &push{Cache: to}
	n, err := im.origin(base)
	if err == nil {
		err = im.publishBase(ctx, p, base.Digest, im.sources(n), n.String())
	}
	if err != nil {
		err = fmt.Errorf("put %s into %s: %w", base.Ref, to.Repo.Name(), err)
	}
	return p.sent.Load(), err
}

// publishBase puts an image that the sources have; blobs are mounted from a repository if it is in the same registry.
func (im *Images) publishBase(ctx context.Context, p *push, d digest.Digest, srcs []source, from string) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	srcs = append(srcs, cachedSource{p.Repo})
	manifest, err := im.document(ctx, srcs, d)
	if err != nil {
		return err
	}
	config, ls, err := parseManifest(manifest)
	if err != nil {
		return err
	}
	var blobs []blob
	for _, desc := range append(ls, config) {
		blobs = append(blobs, blob{
			desc: bare(desc), from: from, ask: true,
			open: func() (io.ReadCloser, error) { return im.open(ctx, srcs, desc) },
		})
	}
	tag := baseTag + d.Encoded()
	switch there, err := p.Repo.Head(ctx, tag); {
	case err == nil && there.Digest == d:
		return p.putAll(ctx, blobs) // whatever was lost
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	}
	doc, err := parseDocument(manifest)
	if err != nil {
		return err
	}
	return p.putWhole(ctx, tag, cmp.Or(doc.MediaType, ocispec.MediaTypeImageManifest), manifest, blobs)
}

// open reads a blob of an image: from the store, or from where it is, verified.
func (im *Images) open(ctx context.Context, srcs []source, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if size, ok := im.Store.HasBlob(desc.Digest); ok && size == desc.Size {
		return im.Store.Blob(desc.Digest)
	}
	return try(ctx, srcs, func(s source) (io.ReadCloser, error) {
		rc, err := s.blob(ctx, desc)
		if err != nil {
			return nil, err
		}
		return &verifyingReader{ReadCloser: rc, h: digest.SHA256.Digester(), want: desc}, nil
	})
}

// Import brings base images of a cache into the store, and what the cache says of their names: so Resolve finds them with Offline, and Pull fetches
// nothing. wanted says which by the blobs of their layers; nil: all. What is broken in the cache is left out, and told to its Warn.
func (im *Images) Import(ctx context.Context, from *Cache, wanted func(layers []digest.Digest) bool, p Progress) (bases int, err error) {
	if err := im.init(); err != nil {
		return 0, err
	}
	digests, names, err := listBases(ctx, from.Repo)
	if err != nil {
		return 0, err
	}
	here := make(map[digest.Digest]bool)
	for _, d := range digests {
		ok, err := im.importBase(ctx, from.Repo, d, wanted, p)
		if ctx.Err() != nil {
			return bases, ctx.Err()
		}
		if err != nil {
			from.warn("base", "base image %s is left out: %v", d, err)
		}
		if here[d] = ok; ok {
			bases++
		}
	}
	for _, tag := range names {
		res, _, err := readName(ctx, from.Repo, tag)
		switch {
		case ctx.Err() != nil:
			return bases, ctx.Err()
		case err != nil:
			from.warn("name", "%s is left out: %v", tag, err)
		case here[res.Digest]:
			if err := im.record(res); err != nil {
				return bases, err
			}
		}
	}
	return bases, nil
}

// CopyBases copies base images, and what their names mean, from one cache to another. What is broken is left out, and told to from's Warn.
func CopyBases(ctx context.Context, from, to *Cache) (copied int, sent int64, err error) {
	digests, names, err := listBases(ctx, from.Repo)
	if err != nil {
		return 0, 0, err
	}
	im := &Images{Store: from.Store}
	for _, d := range digests {
		p := &push{Cache: to}
		err := im.publishBase(ctx, p, d, []source{cachedSource{from.Repo}}, from.Repo.Name())
		sent += p.sent.Load()
		switch {
		case ctx.Err() != nil:
			return copied, sent, ctx.Err()
		case err != nil:
			from.warn("base", "base image %s is not copied to %s: %v", d, to.Repo.Name(), err)
		case p.sent.Load() > 0:
			copied++
		}
	}
	for _, tag := range names {
		var more int64
		res, index, err := readName(ctx, from.Repo, tag)
		if err == nil {
			more, err = to.putName(ctx, res, index)
			sent += more
		}
		switch {
		case ctx.Err() != nil:
			return copied, sent, ctx.Err()
		case err != nil:
			from.warn("name", "%s is not copied to %s: %v", tag, to.Repo.Name(), err)
		}
	}
	return copied, sent, nil
}

// listBases lists the digests of base images, and the tags of names.
func listBases(ctx context.Context, repo Repo) (bases []digest.Digest, names []string, err error) {
	for tag, err := range repo.Tags(ctx) {
		if err != nil {
			return nil, nil, fmt.Errorf("list the tags of %s: %w", repo.Name(), err)
		}
		if strings.HasPrefix(tag, nameTag) {
			names = append(names, tag)
		}
		hex, isBase := strings.CutPrefix(tag, baseTag)
		if d := digest.NewDigestFromEncoded(digest.SHA256, hex); isBase && checkDigest(d) == nil {
			bases = append(bases, d)
		}
	}
	return bases, names, nil
}

func (im *Images) importBase(ctx context.Context, from Repo, d digest.Digest, wanted func([]digest.Digest) bool, p Progress) (bool, error) {
	srcs := []source{cachedSource{from}}
	manifest, err := im.document(ctx, srcs, d)
	if err != nil {
		return false, err
	}
	confDesc, ls, err := parseManifest(manifest)
	if err != nil {
		return false, err
	}
	if wanted != nil && !wanted(blobsOf(ls)) {
		return false, nil
	}
	conf, err := im.config(ctx, srcs, confDesc, len(ls))
	if err != nil {
		return false, err
	}
	_, err = im.pull(ctx, srcs, keys.Base{Ref: from.Name(), Digest: d, Platform: conf.Platform}, false, &allowance{}, p)
	return err == nil, err
}

// remembered finds what a name meant: in the store, or, where nobody else can be asked, in the caches.
func (im *Images) remembered(ctx context.Context, res resolution) (resolution, error) {
	recorded, err := im.recorded(res)
	if !errors.Is(err, cas.ErrNotFound) || !im.Offline {
		return recorded, err
	}
	for _, repo := range im.Caches {
		if found, _, err := readName(ctx, repo, res.tag()); err == nil {
			return found, nil
		}
	}
	return res, cmp.Or(ctx.Err(), err)
}

// cached are the caches as sources of what others do not give.
func (im *Images) cached() (srcs []source) {
	for _, repo := range im.Caches {
		srcs = append(srcs, cachedSource{repo})
	}
	return srcs
}

// A cachedSource is a Repo that may have base images.
type cachedSource struct{ Repo }

// find finds nothing: what names mean is for others to say.
func (s cachedSource) find(context.Context, imageName) ([]ocispec.Descriptor, error) {
	return nil, ErrNotFound
}

func (s cachedSource) manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	_, b, err := s.Manifest(ctx, d.String())
	return b, err
}

func (s cachedSource) blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return s.Blob(ctx, bare(desc))
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
