package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/repo"
)

// A Problem is one broken thing in a Repo.
type Problem struct {
	Tag    string // of the record or image that it spoils
	Detail string
	Note   bool // nothing is broken yet
}

func (p Problem) String() string {
	if p.Note {
		return "note: " + p.Tag + ": " + p.Detail
	}
	return p.Tag + ": " + p.Detail
}

// Verify reads everything that obx has put into the Repo: records and their signatures (by Trust, if there is any), images, base images, what
// names mean, cache mounts, and each blob once. It gives one Problem for each thing that is wrong, in the order of tags, and an error when it cannot go on.
// Tags of other things are left alone.
func (c *Cache) Verify(ctx context.Context) iter.Seq2[Problem, error] {
	return func(yield func(Problem, error) bool) {
		tags, err := c.tagsOf(ctx, IsCacheTag)
		if err != nil {
			yield(Problem{}, err)
			return
		}
		v := &verification{Cache: c, blobs: make(map[digest.Digest]error)}
		for batch := range slices.Chunk(tags, maxReads) {
			found := make([][]Problem, len(batch))
			g, gctx := errgroup.WithContext(ctx)
			for i, tag := range batch {
				g.Go(func() (err error) {
					found[i], err = v.tag(gctx, tag)
					return err
				})
			}
			if err := g.Wait(); err != nil {
				yield(Problem{}, err)
				return
			}
			for _, p := range slices.Concat(found...) {
				if !yield(p, nil) {
					return
				}
			}
		}
	}
}

// IsCacheTag reports whether a tag is one that a Cache makes.
func IsCacheTag(tag string) bool {
	return isResult(tag) || isMountTag(tag) || images.IsTag(tag)
}

// isResult reports the tags of images and records.
func isResult(tag string) bool {
	_, _, _, ok := parseTag(tag)
	return ok
}

// tags lists the tags of images and records.
func (c *Cache) tags(ctx context.Context) ([]string, error) { return c.tagsOf(ctx, isResult) }

// tagsOf lists the tags that are wanted.
func (c *Cache) tagsOf(ctx context.Context, wanted func(tag string) bool) (tags []string, err error) {
	for tag, err := range c.Repo.Tags(ctx) {
		if err != nil {
			return nil, fmt.Errorf("list the tags of %s: %w", c.Repo.Name(), err)
		}
		if wanted(tag) {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags, nil
}

// maxReads is how many tags are verified, and entries copied, at once.
const maxReads = 4

// A verification remembers which blobs it has read.
type verification struct {
	*Cache
	reading cas.Claims[digest.Digest]
	mu      sync.Mutex
	blobs   map[digest.Digest]error // nil: as it should be
}

// tag verifies what is under a tag. Its error is one that is no fault of what is there.
func (v *verification) tag(ctx context.Context, tag string) (found []Problem, err error) {
	if isMountTag(tag) {
		return v.mount(ctx, tag)
	}
	if _, _, isRecord, _ := parseTag(tag); isRecord {
		return v.record(ctx, tag)
	}
	report := func(format string, args ...any) {
		found = append(found, Problem{Tag: tag, Detail: fmt.Sprintf(format, args...)})
	}
	_, b, err := v.Repo.Manifest(ctx, tag)
	if errors.Is(err, repo.ErrNotFound) {
		return nil, nil // deleted since the tags were listed
	}
	if err != nil {
		return nil, err
	}
	isName, err := images.VerifyTag(ctx, v.Repo, tag, b)
	if err != nil && ctx.Err() == nil {
		report("%v", err)
	}
	if isName || ctx.Err() != nil {
		return found, ctx.Err()
	}
	return found, v.image(ctx, b, report)
}

// record verifies a record, its image, and what both refer to.
func (v *verification) record(ctx context.Context, tag string) (found []Problem, err error) {
	report := func(format string, args ...any) {
		found = append(found, Problem{Tag: tag, Detail: fmt.Sprintf(format, args...)})
	}
	rec, d, err := v.read(ctx, tag)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, repo.ErrNotFound):
		return nil, nil
	case d == "":
		return nil, err
	default:
		report("%v", err)
		return found, nil
	}
	if want := tagOf(rec.Key, rec.Domain) + recordSuffix; tag != want {
		report("it is the record of %s", want)
	}
	if rec.Image != nil {
		image := strings.TrimSuffix(tag, recordSuffix)
		switch desc, err := v.Repo.Head(ctx, image); {
		case errors.Is(err, repo.ErrNotFound):
			report("its image has no tag")
		case err != nil:
			return nil, err
		case desc.Digest != rec.Image.Digest.digest():
			// Two builders at once do that. Who goes on from the record puts its image again.
			found = append(found, Problem{
				Tag: tag, Note: true,
				Detail: fmt.Sprintf("the tag %s is another image's, %s: garbage collection may remove that of the record", image, desc.Digest),
			})
		}
		if err := v.imageOf(ctx, rec, report); err != nil {
			return nil, err
		}
	}
	refs := append([]ocispec.Descriptor{rec.config}, rec.logs...)
	return found, v.all(ctx, append(refs, rec.layers()...), report)
}

// imageOf verifies the image of a record, and holds it against what that says.
func (v *verification) imageOf(ctx context.Context, rec *record, report func(string, ...any)) error {
	d := rec.Image.Digest.digest()
	_, b, err := v.Repo.Manifest(ctx, d.String())
	if errors.Is(err, repo.ErrNotFound) {
		report("its image %s is gone", d)
		return nil
	}
	if err != nil {
		return err
	}
	if err := oci.CheckBytes(b, d); err != nil {
		report("its image: %v", err)
		return nil
	}
	if config, ls, err := oci.ParseManifest(b); err == nil { // else image says what is wrong
		if config.Digest != rec.Config.Digest.digest() {
			report("its image has another configuration, %s", config.Digest)
		}
		if !slices.Equal(oci.Digests(ls), oci.Digests(rec.layers())) {
			report("its image has other layers than the record")
		}
	}
	return v.image(ctx, b, report)
}

// layers describes the layers of a record.
func (r *record) layers() (all []ocispec.Descriptor) {
	for _, l := range r.Layers {
		all = append(all, l.layer())
	}
	return all
}

// image verifies what the manifest of an image refers to.
func (v *verification) image(ctx context.Context, b []byte, report func(string, ...any)) error {
	config, ls, err := oci.ParseManifest(b)
	if err != nil {
		report("%v", err)
		return nil
	}
	return v.all(ctx, append(ls, config), report)
}

// alive reports whether the Repo still answers: then it is the blob that cannot be read.
func (v *verification) alive(ctx context.Context) bool {
	for _, err := range v.Repo.Tags(ctx) {
		return err == nil
	}
	return true
}

// all verifies blobs.
func (v *verification) all(ctx context.Context, descs []ocispec.Descriptor, report func(string, ...any)) error {
	for _, desc := range descs {
		wrong, err := v.blob(ctx, desc)
		if err != nil {
			return err
		}
		if wrong != nil {
			report("%v", wrong)
		}
	}
	return nil
}

// blob says what is wrong with a blob.
func (v *verification) blob(ctx context.Context, desc ocispec.Descriptor) (wrong, err error) {
	done, err := v.reading.Claim(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	defer done()
	v.mu.Lock()
	wrong, ok := v.blobs[desc.Digest]
	v.mu.Unlock()
	if ok {
		return wrong, nil
	}
	n, got, err := v.sum(ctx, desc)
	switch {
	case errors.Is(err, repo.ErrNotFound):
		wrong = fmt.Errorf("blob %s is gone", desc.Digest)
	case err != nil:
		err = fmt.Errorf("read blob %s: %w", desc.Digest, err)
		if !v.alive(ctx) {
			return nil, err
		}
		wrong = err
	case got != desc.Digest:
		wrong = fmt.Errorf("blob %s has the %d bytes of %s", desc.Digest, n, got)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.blobs[desc.Digest] = wrong
	return wrong, nil
}

// sum reads a blob.
func (v *verification) sum(ctx context.Context, desc ocispec.Descriptor) (int64, digest.Digest, error) {
	rc, err := v.Repo.Blob(ctx, desc)
	if err != nil {
		return 0, "", err
	}
	defer rc.Close()
	h := sha256.New()
	n, err := io.Copy(h, cas.Reader(ctx, rc))
	return n, digest.NewDigest(digest.SHA256, h), err
}

// mount verifies a cache mount.
func (v *verification) mount(ctx context.Context, tag string) (found []Problem, err error) {
	_, b, err := v.Repo.Manifest(ctx, tag)
	if errors.Is(err, repo.ErrNotFound) {
		return nil, nil // deleted since the tags were listed
	}
	if err != nil {
		return nil, err
	}
	report := func(format string, args ...any) {
		found = append(found, Problem{Tag: tag, Detail: fmt.Sprintf(format, args...)})
	}
	l, err := v.openMount(ctx, tag, b)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		report("%v", err)
		return found, nil
	}
	m, err := decodeMountManifest(b)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(m.Layers, func(d ocispec.Descriptor) bool { return d.Digest == l.Blob.Digest }) {
		report("its layer %s is not listed: garbage collection may remove it", l.Blob.Digest)
	}
	return found, v.all(ctx, []ocispec.Descriptor{oci.Bare(m.Config), l.Blob}, report)
}
