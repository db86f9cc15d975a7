package images

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/registry/internal/oci"
	"github.com/ocurrent/obx/registry/reference"
)

// scratch is the name of the empty base image.
const scratch = "scratch"

// Normalize gives the full form of a name that a user wrote, by Docker's rules: busybox is docker.io/library/busybox:latest, and a tag beside
// a digest is dropped. oci:DIR[:TAG][@DIGEST] becomes oci:ABSDIR:TAG (relative to the working directory; a Windows drive letter is no tag
// separator), scratch stays. Normalizing twice changes nothing.
func Normalize(ref string) (string, error) {
	n, err := parseName(ref)
	if err != nil {
		return "", err
	}
	return n.String(), nil
}

// An imageName is what a name says. The zero imageName is scratch.
type imageName struct {
	host, path string // of a repository: docker.io, library/busybox
	dir        string // of an OCI layout, absolute
	tag        string
	digest     digest.Digest // instead of a tag; beside one only for a layout
}

func (n imageName) isScratch() bool { return n == imageName{} }

func (n imageName) String() string {
	if n.isScratch() {
		return scratch
	}
	s := n.host + "/" + n.path
	if n.dir != "" {
		s = oci.LayoutPrefix + n.dir
		if n.tag == "" && n.digest == "" && strings.Contains(filepath.Base(n.dir), ":") {
			s += string(filepath.Separator) // lest the colon be read as a tag's
		}
	}
	if n.tag != "" {
		s += ":" + n.tag
	}
	if n.digest != "" {
		s += "@" + n.digest.String()
	}
	return s
}

func parseName(ref string) (imageName, error) {
	switch dir, isLayout := strings.CutPrefix(ref, oci.LayoutPrefix); {
	case ref == "":
		return imageName{}, errors.New("the name of an image is empty")
	case ref == scratch:
		return imageName{}, nil
	case isLayout:
		n, err := parseLayoutName(dir)
		if err != nil {
			return imageName{}, fmt.Errorf("image name %q: %w", ref, err)
		}
		return n, nil
	}
	if scheme, rest, ok := strings.Cut(ref, "://"); ok {
		return imageName{}, fmt.Errorf("image name %q: a name has no scheme: write %q, not %q", ref, rest, scheme+"://"+rest)
	}
	r, err := reference.Parse(ref)
	if err != nil {
		return imageName{}, fmt.Errorf("image name %q: %w", ref, err)
	}
	n := imageName{host: r.Host, path: r.Path, tag: r.Tag}
	switch {
	case r.Digest != "":
		n.tag, n.digest = "", r.Digest
		if err := oci.CheckDigest(n.digest); err != nil {
			return imageName{}, fmt.Errorf("image name %q: %w", ref, err)
		}
	case n.tag == "":
		n.tag = "latest"
	}
	return n, nil
}

// pinned matches a layout with a digest. It is compiled when it is needed: most runs do not, and one that finds everything in a cache takes 60 ms.
var pinned = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(.*)@([a-z0-9]+:[0-9a-fA-F]+)$`) })

func parseLayoutName(s string) (imageName, error) {
	var n imageName
	if m := pinned().FindStringSubmatch(s); m != nil {
		s, n.digest = m[1], digest.Digest(m[2])
		if err := oci.CheckDigest(n.digest); err != nil {
			return imageName{}, err
		}
	}
	// A colon with a separator after it belongs to the directory: C:\layout, ./a:b/c.
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.ContainsAny(s[i:], `/\`) {
		s, n.tag = s[:i], s[i+1:]
		if !oci.IsTag(n.tag) {
			return imageName{}, fmt.Errorf("%q is no tag", n.tag)
		}
	}
	if s == "" {
		return imageName{}, errors.New("the directory is missing: oci:DIR[:TAG]")
	}
	if strings.ContainsRune(s, 0) {
		return imageName{}, errors.New("the directory's name holds a zero byte")
	}
	dir, err := filepath.Abs(s)
	if err != nil {
		return imageName{}, fmt.Errorf("find the directory: %w", err)
	}
	n.dir = dir
	return n, nil
}
