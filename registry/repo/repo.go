package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/reference"
)

// A Repo is one repository: blobs by digest, manifests by digest and by tag. There are four: a remote one, an OCI layout in a directory or a
// tar archive, and one in memory. What a Repo gives is not verified, and may be anything: its readers check digests and sizes.
//
// All methods may be called concurrently, and end soon when ctx does, with its error. Errors wrap ErrNotFound where something is not there,
// ErrReadOnly where writing is not allowed, and are otherwise what stopped the call; a remote Repo has retried what may pass by itself. What is
// there but cannot be what was asked for, as a Repo sees without reading it (a blob of another size), is not there.
//
// A Repo that is an io.Closer has to be closed: it then writes what others read of it.
type Repo interface {
	// Name is what a user calls it: registry.example/cache, oci:DIR.
	Name() string

	// Head gives the descriptor of the manifest under a tag or digest, without its bytes.
	Head(ctx context.Context, ref string) (ocispec.Descriptor, error)

	// Manifest reads the manifest under a tag or digest, of at most 4 MiB. The descriptor's digest and size are those of the bytes.
	Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)

	// Blob opens a blob. It may be shorter or longer than desc.Size. A remote Repo resumes an interrupted one.
	Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)

	// HasBlob asks whether a blob is there.
	HasBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error)

	// PutBlob stores a blob; it replaces one that is there, for that may be broken. open is called again for each further try; what it
	// opens is read up to desc.Size, and may be closed while it is read. from, if not empty, names a repository of the same registry that may have the
	// blob already (repository@digest or name as in BaseRef): then it is mounted from there if the registry allows that.
	PutBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) error

	// PutManifest stores a manifest, under a tag too if that is not empty. It replaces what the tag named. An error that wraps ErrBlobUnknown
	// says that a blob it refers to is not there; one that wraps ErrRefused, that the registry does not take such a manifest.
	PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error)

	// Tags lists all tags. Slow on a registry: for tools only. A repository that does not exist has none.
	Tags(ctx context.Context) iter.Seq2[string, error]

	// Delete removes the manifest of a digest with its tags, or only a tag where the Repo can: registries that cannot lose the manifest that the
	// tag names. What is not there is no error.
	Delete(ctx context.Context, ref string) error
}

// A Collector is a Repo that keeps what nothing refers to until it is told otherwise. Registries have their own rules for that.
type Collector interface {
	// CollectGarbage removes manifests without a tag, and blobs that no manifest refers to, if they are older than grace: others may be about to
	// refer to newer ones. It tells how many bytes it removed.
	CollectGarbage(ctx context.Context, grace time.Duration) (int64, error)
}

var (
	ErrNotFound    = errors.New("not found")
	ErrReadOnly    = errors.New("it cannot be written")
	ErrBlobUnknown = errors.New("a blob of the manifest is not there")
	ErrRefused     = errors.New("the registry does not take this kind of manifest")
)

// Open opens the repository that a user named: HOST/NAME in a registry, oci:DIR for a layout in a directory, oci:FILE.tar or FILE.tar for
// one in an archive. Nothing is asked of a registry yet; directory and file need not exist.
func (c *Client) Open(ref string) (Repo, error) {
	path, isLayout := strings.CutPrefix(ref, oci.LayoutPrefix)
	rest, login := cutLogin(ref)
	switch {
	case ref == "":
		return nil, errors.New("the name of a repository is empty")
	case isLayout && path == "":
		return nil, fmt.Errorf("repository %q: the directory is missing: oci:DIR or oci:FILE.tar", ref)
	case isLayout && hasTag(path):
		return nil, fmt.Errorf("repository %q: it names a tag: results have tags of their own, write %s", ref, ref[:strings.LastIndex(ref, ":")])
	case isLayout || strings.HasSuffix(ref, ".tar"):
		l, err := OpenLayout(path)
		if err != nil {
			return nil, fmt.Errorf("repository %q: %w", ref, err)
		}
		if err := l.checkDir(); err != nil {
			return nil, fmt.Errorf("repository %q: %w", ref, errors.Join(err, l.Close()))
		}
		return l, nil
	}
	if login { // it is not repeated: it may hold a password
		return nil, fmt.Errorf("repository %q: a name has no login before it: obx login keeps that", rest)
	}
	host, path, err := parseName(ref)
	if err != nil {
		return nil, fmt.Errorf("repository %q: %w", ref, err)
	}
	return c.Repo(host, path)
}

// hasTag reports whether a directory or file is named as images of layouts are, oci:DIR:TAG, and is not there under that name.
func hasTag(path string) bool {
	name, tag, ok := strings.Cut(filepath.Base(path), ":")
	if !ok || name == "" || !oci.IsTag(tag) {
		return false
	}
	_, err := os.Lstat(path)
	return err != nil
}

// cutLogin cuts off what stands before a host, as in URLs. The @ of a digest is no such thing.
func cutLogin(ref string) (rest string, login bool) {
	at := strings.LastIndex(ref, "@")
	if at >= 0 && oci.CheckDigest(digest.Digest(ref[at+1:])) == nil {
		at = strings.LastIndex(ref[:at], "@")
	}
	return ref[at+1:], at >= 0
}

// OpenLayout opens the layout in a directory, or in the archive that a file is, or is named as. Neither has to be there yet.
func OpenLayout(path string) (*Layout, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	l := &Layout{name: oci.LayoutPrefix + path, files: &dirFiles{dir: path}}
	if info, err := os.Stat(path); err == nil && !info.IsDir() || err != nil && strings.HasSuffix(path, ".tar") {
		l.files, err = newTarFiles(path)
		return l, err
	}
	return l, nil
}

// parseName reads HOST/NAME. It is stricter than Docker's rules: that a path or one word alone means something on Docker Hub would
// surprise.
func parseName(ref string) (host, path string, err error) {
	if scheme, rest, ok := strings.Cut(ref, "://"); ok {
		return "", "", fmt.Errorf("a name has no scheme: write %q, not %q", rest, scheme+"://"+rest)
	}
	if strings.HasPrefix(ref, ".") || filepath.IsAbs(ref) || !strings.Contains(ref, "/") {
		return "", "", fmt.Errorf("it is no HOST/NAME: a directory is written oci:%s", ref)
	}
	n, err := reference.Parse(ref)
	if err != nil {
		return "", "", err
	}
	if n.Tag != "" || n.Digest != "" {
		return "", "", fmt.Errorf("it names a tag or digest: write %s/%s", n.Host, n.Path)
	}
	return n.Host, n.Path, nil
}
