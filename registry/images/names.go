package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
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
func (im *Resolver) Names(ctx context.Context) ([]Name, error) {
	var all []Name
	for info, err := range im.Store.Results() {
		if err := cmp.Or(ctx.Err(), err); err != nil {
			return nil, fmt.Errorf("list the names of base images: %w", err)
		}
		var res resolution
		if info.Domain != namesDomain || json.Unmarshal(info.Result.Data, &res) != nil || res.key() != info.Result.Key {
			continue
		}
		all = append(all, Name{For: res.For, Base: keys.Base{Ref: res.Name, Digest: res.Digest, Platform: res.Platform}})
	}
	return all, nil
}

// Blobs lists the layers of a base image, as blobs.
func (im *Resolver) Blobs(ctx context.Context, base keys.Base) ([]digest.Digest, error) {
	ls, err := im.layersOf(ctx, base)
	return oci.Digests(ls), err
}

// layersOf reads the manifest of a base image, from the store or where the image is.
func (im *Resolver) layersOf(ctx context.Context, base keys.Base) ([]ocispec.Descriptor, error) {
	if base.Digest == "" {
		return nil, nil
	}
	_, srcs, err := im.origin(base)
	if err != nil {
		return nil, err
	}
	manifest, err := im.document(ctx, srcs, base.Digest)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of %s: %w", base.Ref, err)
	}
	_, ls, err := oci.ParseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of %s: %w", base.Ref, err)
	}
	return ls, nil
}

// PublishName puts into a cache what a name meant, also under the name that it stands for here by Bases. It tells how many bytes it sent: none,
// where the cache says so already. A name that is pinned to an index goes with that, and is left out where it cannot be had.
func (im *Resolver) PublishName(ctx context.Context, to *repo.Sender, name Name) (int64, error) {
	if name.Base.Digest == "" {
		return 0, nil
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
	var sent atomic.Int64
	for _, s := range names {
		var index []byte
		if n, err := parseName(s); err != nil {
			return sent.Load(), err
		} else if n.digest != "" && n.digest != name.Base.Digest {
			srcs, err := im.sources(n)
			if err == nil {
				index, err = im.document(ctx, srcs, n.digest)
			}
			if ctx.Err() != nil {
				return sent.Load(), ctx.Err()
			}
			if err != nil || !lists(index, name.Base.Digest) {
				continue // nobody would believe it
			}
		}
		err := putName(ctx, to, resolution{
			Name: s, For: oci.NormalizePlatform(name.For), Digest: name.Base.Digest, Platform: oci.NormalizePlatform(name.Base.Platform),
		}, index, &sent)
		if err != nil {
			return sent.Load(), fmt.Errorf("put the name %s into %s: %w", s, to.Repo.Name(), err)
		}
	}
	return sent.Load(), nil
}

// lists reports whether an index has a manifest in its list.
func lists(index []byte, d digest.Digest) bool {
	entries, err := oci.ParseIndex(index)
	return err == nil && slices.ContainsFunc(entries, func(e ocispec.Descriptor) bool { return e.Digest == d })
}

// putName puts a name, with the index that it is pinned to, if it is. The last writer wins.
func putName(ctx context.Context, to *repo.Sender, res resolution, index []byte, sent *atomic.Int64) error {
	switch there, _, err := readName(ctx, to.Repo, res.tag()); {
	case err == nil && there.Digest == res.Digest && oci.PlatformString(there.Platform) == oci.PlatformString(res.Platform):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	put := func(mediaType string, config any) error {
		b, err := json.Marshal(config)
		if err != nil {
			return err
		}
		blobs := []repo.Blob{repo.BytesBlob(mediaType, b)}
		desc := blobs[0].Desc
		desc.Data = b
		layers := []ocispec.Descriptor{}
		if index != nil {
			pin := repo.BytesBlob(mediaTypeNameIndex, index)
			layers, blobs = append(layers, pin.Desc), append(blobs, pin)
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
		_, err = to.Put(ctx, res.tag(), ocispec.MediaTypeImageManifest, manifest, blobs, sent)
		return err
	}
	err := put(mediaTypeName, res)
	if errors.Is(err, repo.ErrRefused) {
		// As an image that runs nowhere: its other fields are unknown to readers of names.
		err = put(ocispec.MediaTypeImageConfig, struct {
			resolution
			Architecture string         `json:"architecture"`
			OS           string         `json:"os"`
			RootFS       ocispec.RootFS `json:"rootfs"`
		}{res, "unknown", "unknown", ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}})
	}
	return err
}

// readName reads what a Repo says of a name, and the index that the name is pinned to, if it is. Of a name with a digest, a Repo can only say what the
// digest says.
func readName(ctx context.Context, r repo.Repo, tag string) (resolution, []byte, error) {
	res, layers, err := readMeaning(ctx, r, tag)
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
	index, err := repo.ReadBlob(ctx, r, layers[0])
	if err == nil {
		err = oci.CheckBytes(index, n.digest)
	}
	if err == nil && !lists(index, res.Digest) {
		err = fmt.Errorf("%s is not of %s", res.Digest, n.digest)
	}
	return res, index, err
}

func readMeaning(ctx context.Context, r repo.Repo, tag string) (res resolution, layers []ocispec.Descriptor, err error) {
	fail := func(err error) (resolution, []ocispec.Descriptor, error) { return res, nil, err }
	_, b, err := r.Manifest(ctx, tag)
	if err != nil {
		return fail(err)
	}
	doc, err := oci.ParseDocument(b)
	if err != nil {
		return fail(err)
	}
	if doc.Config == nil {
		return fail(errors.New("it has no config"))
	}
	data := doc.Config.Data
	if data == nil {
		if data, err = repo.ReadBlob(ctx, r, *doc.Config); err != nil {
			return fail(err)
		}
	}
	if err := oci.CheckBytes(data, doc.Config.Digest); err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(data, &res); err != nil {
		return fail(fmt.Errorf("read what a name means: %w", err))
	}
	switch {
	case res.tag() != tag:
		return fail(fmt.Errorf("it is what %s for %s means", res.Name, oci.PlatformString(res.For)))
	case oci.PlatformString(res.For) != oci.PlatformString(oci.NormalizePlatform(res.For)), res.Platform.OS != res.For.OS:
		return fail(fmt.Errorf("%q for %q is no platform", oci.PlatformString(res.Platform), oci.PlatformString(res.For)))
	}
	return res, doc.Layers, oci.CheckDigest(res.Digest)
}

// PublishBase puts a base image into a cache, byte for byte. What is no longer in the store comes from where the image is. It tells how many
// bytes it sent: none, where the cache has all of it.
func (im *Resolver) PublishBase(ctx context.Context, to *repo.Sender, base keys.Base) (int64, error) {
	if base.Digest == "" {
		return 0, nil
	}
	var sent atomic.Int64
	n, srcs, err := im.origin(base)
	if err == nil {
		err = im.publishBase(ctx, to, base.Digest, srcs, n.String(), &sent)
	}
	if err != nil {
		err = fmt.Errorf("put %s into %s: %w", base.Ref, to.Repo.Name(), err)
	}
	return sent.Load(), err
}

// publishBase puts an image that the sources have; blobs are mounted from a repository if it is in the same registry.
func (im *Resolver) publishBase(ctx context.Context, to *repo.Sender, d digest.Digest, srcs []source, from string, sent *atomic.Int64) error {
	if err := oci.CheckDigest(d); err != nil {
		return err
	}
	srcs = append(srcs, source{to.Repo, true})
	manifest, err := im.document(ctx, srcs, d)
	if err != nil {
		return err
	}
	config, ls, err := oci.ParseManifest(manifest)
	if err != nil {
		return err
	}
	var blobs []repo.Blob
	for _, desc := range append(ls, config) {
		blobs = append(blobs, repo.Blob{
			Desc: oci.Bare(desc), From: from, Ask: true,
			Open: func() (io.ReadCloser, error) { return im.open(ctx, srcs, desc) },
		})
	}
	tag := baseTag + d.Encoded()
	switch there, err := to.Repo.Head(ctx, tag); {
	case err == nil && there.Digest == d:
		return to.Send(ctx, blobs, sent) // whatever was lost
	case err != nil && !errors.Is(err, repo.ErrNotFound):
		return err
	}
	doc, err := oci.ParseDocument(manifest)
	if err != nil {
		return err
	}
	_, err = to.Put(ctx, tag, cmp.Or(doc.MediaType, ocispec.MediaTypeImageManifest), manifest, blobs, sent)
	return err
}

// open reads a blob of an image: from the store, or from where it is, verified.
func (im *Resolver) open(ctx context.Context, srcs []source, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if size, ok := im.Store.HasBlob(desc.Digest); ok && size == desc.Size {
		return im.Store.Blob(desc.Digest)
	}
	return try(ctx, srcs, func(s source) (io.ReadCloser, error) {
		rc, err := s.Blob(ctx, oci.Bare(desc))
		if err != nil {
			return nil, err
		}
		return repo.Verified(rc, desc), nil
	})
}

// Import brings base images of a cache into the store, and what the cache says of their names: so Resolve finds them with Offline, and Pull fetches
// nothing. wanted says which by the blobs of their layers; nil: all. What is broken there is left out, and told to
// warn, once a cause; warn may be nil.
func (im *Resolver) Import(
	ctx context.Context, from repo.Repo, wanted func(layers []digest.Digest) bool, p layers.Progress, warn func(msg string),
) (bases int, err error) {
	digests, names, err := listBases(ctx, from)
	if err != nil {
		return 0, err
	}
	tell := tellOnce(from, warn)
	here := make(map[digest.Digest]bool)
	for _, d := range digests {
		ok, err := im.importBase(ctx, from, d, wanted, p)
		if ctx.Err() != nil {
			return bases, ctx.Err()
		}
		if err != nil {
			tell("base", "base image %s is left out: %v", d, err)
		}
		if here[d] = ok; ok {
			bases++
		}
	}
	for _, tag := range names {
		res, _, err := readName(ctx, from, tag)
		switch {
		case ctx.Err() != nil:
			return bases, ctx.Err()
		case err != nil:
			tell("name", "%s is left out: %v", tag, err)
		case here[res.Digest]:
			if err := im.record(res); err != nil {
				return bases, err
			}
		}
	}
	return bases, nil
}

// CopyBases copies base images, and what their names mean, from one cache to another. What the store has need not be read.
// What is broken is left out, and told to warn, as by Import.
func CopyBases(ctx context.Context, st *cas.Store, from repo.Repo, to *repo.Sender, warn func(msg string)) (copied int, sent int64, err error) {
	digests, names, err := listBases(ctx, from)
	if err != nil {
		return 0, 0, err
	}
	im, tell := &Resolver{Store: st}, tellOnce(from, warn)
	var all atomic.Int64
	for _, d := range digests {
		before := all.Load()
		err := im.publishBase(ctx, to, d, []source{{from, true}}, from.Name(), &all)
		switch {
		case ctx.Err() != nil:
			return copied, all.Load(), ctx.Err()
		case err != nil:
			tell("base", "base image %s is not copied to %s: %v", d, to.Repo.Name(), err)
		case all.Load() > before:
			copied++
		}
	}
	for _, tag := range names {
		res, index, err := readName(ctx, from, tag)
		if err == nil {
			err = putName(ctx, to, res, index, &all)
		}
		switch {
		case ctx.Err() != nil:
			return copied, all.Load(), ctx.Err()
		case err != nil:
			tell("name", "%s is not copied to %s: %v", tag, to.Repo.Name(), err)
		}
	}
	return copied, all.Load(), nil
}

// tellOnce gives what tells warn of what is wrong in a Repo, once a cause.
func tellOnce(in repo.Repo, warn func(msg string)) func(cause, format string, args ...any) {
	told := make(map[string]bool)
	return func(cause, format string, args ...any) {
		if warn != nil && !told[cause] {
			warn(in.Name() + ": " + fmt.Sprintf(format, args...))
		}
		told[cause] = true
	}
}

// IsTag reports the tags of base images, and of what names mean.
func IsTag(tag string) bool {
	_, isBase := baseOf(tag)
	return isBase || strings.HasPrefix(tag, nameTag)
}

// baseOf is the digest of the base image that a tag is of.
func baseOf(tag string) (digest.Digest, bool) {
	hex, ok := strings.CutPrefix(tag, baseTag)
	d := digest.NewDigestFromEncoded(digest.SHA256, hex)
	return d, ok && oci.CheckDigest(d) == nil
}

// VerifyTag says what is wrong with the manifest under a tag for which IsTag is true. Of others it says nothing. isName: it is no image.
func VerifyTag(ctx context.Context, in repo.Repo, tag string, manifest []byte) (isName bool, err error) {
	if strings.HasPrefix(tag, nameTag) {
		_, _, err := readName(ctx, in, tag)
		return true, err
	}
	if d, ok := baseOf(tag); ok {
		return false, oci.CheckBytes(manifest, d)
	}
	return false, nil
}

// listBases lists the digests of base images, and the tags of names.
func listBases(ctx context.Context, repo repo.Repo) (bases []digest.Digest, names []string, err error) {
	for tag, err := range repo.Tags(ctx) {
		if err != nil {
			return nil, nil, fmt.Errorf("list the tags of %s: %w", repo.Name(), err)
		}
		if strings.HasPrefix(tag, nameTag) {
			names = append(names, tag)
		}
		if d, ok := baseOf(tag); ok {
			bases = append(bases, d)
		}
	}
	return bases, names, nil
}

func (im *Resolver) importBase(ctx context.Context, from repo.Repo, d digest.Digest, wanted func([]digest.Digest) bool, p layers.Progress) (bool, error) {
	srcs := []source{{from, true}}
	manifest, err := im.document(ctx, srcs, d)
	if err != nil {
		return false, err
	}
	confDesc, ls, err := oci.ParseManifest(manifest)
	if err != nil {
		return false, err
	}
	if wanted != nil && !wanted(oci.Digests(ls)) {
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
func (im *Resolver) remembered(ctx context.Context, res resolution) (resolution, error) {
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
