package images

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/reference"
	"github.com/ocurrent/obx/registry/repo"
)

// A Target is a repository that images are published in, and the tags that they get there.
type Target struct {
	Repo repo.Repo
	Tags []string
}

// ParseTarget reads HOST/NAME[:TAG], as a user names what is published. Without a tag it is latest. As for caches, one word alone does not mean something
// on Docker Hub.
func ParseTarget(name string) (r, tag string, err error) {
	if !strings.Contains(name, "/") {
		return "", "", fmt.Errorf("image name %q: it names no registry: write HOST/NAME:TAG, as registry.example/app:1.0", name)
	}
	n, err := reference.Parse(name)
	if err != nil {
		return "", "", fmt.Errorf("image name %q: %w", name, err)
	}
	if n.Digest != "" {
		return "", "", fmt.Errorf("image name %q: what is published gets a digest of its own: name a tag", name)
	}
	return n.Host + "/" + n.Path, cmp.Or(n.Tag, "latest"), nil
}

// Targets opens the repositories of names, each once, by the connections and logins of a Resolver.
func Targets(im *Resolver, names []string) ([]Target, error) {
	var all []Target
	for _, name := range names {
		repo, tag, err := ParseTarget(name)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(t Target) bool { return t.Repo.Name() == repo })
		if i < 0 {
			r, err := im.client().Open(repo)
			if err != nil {
				return nil, err
			}
			i, all = len(all), append(all, Target{Repo: r})
		}
		all[i].Tags = append(all[i].Tags, tag)
	}
	return all, nil
}

// A Publication is an image that is pushed for others than obx, without a record.
type Publication struct {
	Image
	Store   *cas.Store
	Base    int      // how many layers are the base image's
	BaseRef string   // where that can be had, as in a Result
	Near    []string // repositories that may have the layers: caches
}

// Push sends an image: what the repository has not, and cannot mount from a repository of the same registry; the manifest last, under each of the tags,
// or under its digest alone. It tells how many bytes it sent. The descriptor has the platform, for an index.
func (p *Publication) Push(ctx context.Context, to Target) (ocispec.Descriptor, int64, error) {
	o, err := assemble(p.Image, nil)
	if err != nil {
		return ocispec.Descriptor{}, 0, fmt.Errorf("push to %s: %w", to.Repo.Name(), err)
	}
	send, sent := repo.Sender{Repo: to.Repo}, atomic.Int64{}
	blobs := []repo.Blob{{Desc: o.config, Open: oci.Opener(o.documents[o.config.Digest]), Ask: true}}
	i := 0
	for at, l := range p.Layers {
		if l.IsZero() {
			continue
		}
		blobs = append(blobs, repo.Blob{
			Desc: o.layers[i],
			Open: func() (io.ReadCloser, error) { return p.Store.Blob(l.Blob.Digest) },
			From: p.from(to.Repo, at < p.Base),
			Ask:  true,
		})
		i++
	}
	tags := to.Tags
	if tags == nil {
		tags = []string{""}
	}
	for _, tag := range tags {
		if _, err := send.Put(ctx, tag, o.manifest.MediaType, o.documents[o.manifest.Digest], blobs, &sent); err != nil {
			return ocispec.Descriptor{}, sent.Load(), fmt.Errorf("push to %s: %w", to.Repo.Name(), err)
		}
	}
	desc := o.manifest
	platform := oci.NormalizePlatform(p.Config.Platform)
	desc.Platform = &platform
	return desc, sent.Load(), nil
}

// from names a repository of the same registry that a layer may be mounted from: the base image's for what is its, else a cache.
func (p *Publication) from(to repo.Repo, base bool) string {
	host, _, _ := strings.Cut(to.Name(), "/")
	if n, err := parseName(p.BaseRef); base && err == nil && n.host == host {
		return p.BaseRef
	}
	for _, name := range p.Near {
		if n, err := parseName(name); err == nil && n.host == host {
			return name
		}
	}
	return ""
}

// PushIndex puts an index of images that are there under the tags.
func PushIndex(ctx context.Context, to Target, images []ocispec.Descriptor) (ocispec.Descriptor, error) {
	fail := func(err error) (ocispec.Descriptor, error) {
		return ocispec.Descriptor{}, fmt.Errorf("push an index to %s: %w", to.Repo.Name(), err)
	}
	b, err := json.Marshal(oci.NewIndex(images...))
	if err != nil {
		return fail(err)
	}
	var desc ocispec.Descriptor
	for _, tag := range to.Tags {
		if desc, err = to.Repo.PutManifest(ctx, tag, ocispec.MediaTypeImageIndex, b); err != nil {
			return fail(err)
		}
	}
	return desc, nil
}
