// Package reference reads the names of images by Docker's rules.
//
// The rules are those of github.com/distribution/reference, and tests compare with it. obx does not use that package itself, for it compiles ten
// regular expressions when a program starts, whatever the program does: a tenth of all that a run took that finds everything in its store.
package reference

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	hub       = "docker.io"
	hubLegacy = "index.docker.io"
	official  = "library/" // of Docker Hub: what a name of one word is in

	maxPath = 255
	maxTag  = 128
)

// A Name is what a name says: a repository, and one or none of its images.
type Name struct {
	Host   string // docker.io, localhost:5000, [::1]:80
	Path   string // library/busybox
	Tag    string // may be empty
	Digest digest.Digest
}

// Parse reads [HOST/]PATH[:TAG][@DIGEST]. Without a host, or with one that is like a part of a path, it is of Docker Hub.
func Parse(s string) (Name, error) {
	if len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" {
		return Name{}, fmt.Errorf("invalid repository name (%s), cannot specify 64-byte hexadecimal strings", s)
	}
	host, rest := split(s)
	rest, sum, summed := strings.Cut(rest, "@")
	path, tag, tagged := strings.Cut(rest, ":")
	switch {
	case strings.ToLower(path) != path:
		return Name{}, fmt.Errorf("invalid reference format: repository name (%s) must be lowercase", path)
	case !isHost(host) || !isPath(path) || tagged && !IsTag(tag):
		return Name{}, errors.New("invalid reference format")
	case len(path) > maxPath:
		return Name{}, fmt.Errorf("repository name must not be more than %d characters", maxPath)
	}
	n := Name{Host: host, Path: path, Tag: tag, Digest: digest.Digest(sum)}
	if summed {
		if err := n.Digest.Validate(); err != nil {
			return Name{}, fmt.Errorf("invalid reference format: digest %q: %w", sum, err)
		}
	}
	return n, nil
}

// Familiar is the shortest text for a name, as Docker shows it.
func (n Name) Familiar() string {
	s := n.Host + "/" + n.Path
	if n.Host == hub {
		s = n.Path
		if name, ok := strings.CutPrefix(s, official); ok && !strings.Contains(name, "/") {
			s = name
		}
	}
	if n.Tag != "" {
		s += ":" + n.Tag
	}
	if n.Digest != "" {
		s += "@" + n.Digest.String()
	}
	return s
}

// IsTag reports whether a text can be a tag.
func IsTag(s string) bool {
	return s != "" && len(s) <= maxTag && s[0] != '.' && s[0] != '-' && only(s, func(c byte) bool {
		return isLower(c) || isUpper(c) || strings.IndexByte("_.-", c) >= 0
	})
}

// split finds the host in a name. The first part of a path is one if nothing else can look like it.
func split(s string) (host, rest string) {
	host, rest, ok := strings.Cut(s, "/")
	switch {
	case !ok:
		return hub, official + s
	case host == hubLegacy:
		host = hub
	case host != "localhost" && !strings.ContainsAny(host, ".:") && strings.ToLower(host) == host:
		return hub, s
	}
	if host == hub && !strings.Contains(rest, "/") {
		rest = official + rest
	}
	return host, rest
}

// isHost reports whether a text is a domain or an address, with a port or without.
func isHost(s string) bool {
	if address, ok := strings.CutPrefix(s, "["); ok {
		address, port, ok := strings.Cut(address, "]")
		return ok && address != "" && only(address, func(c byte) bool {
			return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' || c == ':'
		}) && (port == "" || port[0] == ':' && isPort(port[1:]))
	}
	domain, port, ok := strings.Cut(s, ":")
	if ok && !isPort(port) {
		return false
	}
	for part := range strings.SplitSeq(domain, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' || !only(part, func(c byte) bool { return isLower(c) || isUpper(c) || c == '-' }) {
			return false
		}
	}
	return true
}

func isPort(s string) bool { return s != "" && only(s, isDigit) }

// isPath reports whether a text is a repository's path: words, with a separator between two.
func isPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		for {
			word := 0
			for word < len(part) && isLower(part[word]) {
				word++
			}
			if word == 0 {
				return false
			}
			if part = part[word:]; part == "" {
				break
			}
			part = part[separator(part):]
		}
	}
	return true
}

// separator is how long the separator is that a text begins with: a dot, one or two underscores, or dashes.
func separator(s string) int {
	switch {
	case strings.HasPrefix(s, "__"):
		return 2
	case s[0] == '_' || s[0] == '.':
		return 1
	}
	return len(s) - len(strings.TrimLeft(s, "-"))
}

func only(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isLower(c byte) bool { return 'a' <= c && c <= 'z' || isDigit(c) }
func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
