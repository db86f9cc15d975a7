package keys

import (
	"cmp"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys/spec"
)

// A Context is what the operations before a step have set. Its slices are shared and must not be written to.
type Context struct {
	Workdir string // absolute, as OBuilder joins it: text, not normalised
	User    spec.User
	Env     []EnvVar // of the spec only, sorted by name; the base's variables are implied by its digest
	Shell   []string
}

// An EnvVar is one variable.
type EnvVar struct{ Name, Value string }

// DefaultContext is the context at the start of every stage.
func DefaultContext(p ocispec.Platform) Context {
	if isWindows(p) {
		return Context{
			Workdir: "C:/",
			User:    spec.User{Name: "ContainerAdministrator"},
			Shell:   []string{"cmd", "/S", "/C"},
		}
	}
	return Context{Workdir: "/", Shell: []string{"/usr/bin/env", "bash", "-c"}}
}

// after is the context that an operation leaves.
func (c Context) after(op spec.Op, windows bool) Context {
	switch op := op.(type) {
	case *spec.Workdir:
		c.Workdir = join(c.Workdir, op.Dir, windows)
	case *spec.User:
		// Positions, and ids beside a name, mean nothing: two users that are the same must compare so.
		if op.Name != "" {
			c.User = spec.User{Name: op.Name}
		} else {
			c.User = spec.User{UID: op.UID, GID: op.GID}
		}
	case *spec.Shell:
		c.Shell = op.Argv
	case *spec.Env:
		c.Env = setEnv(c.Env, op.Name, op.Value, windows)
	}
	return c
}

// setEnv gives env with a variable set, sorted by name. Windows finds no difference between Path and PATH, so there the
// newer spelling replaces the older.
func setEnv(env []EnvVar, name, value string, windows bool) []EnvVar {
	same := func(v EnvVar) bool {
		return v.Name == name || windows && strings.EqualFold(v.Name, name)
	}
	env = slices.DeleteFunc(slices.Clone(env), same)
	at, _ := slices.BinarySearchFunc(env, name, func(v EnvVar, n string) int { return cmp.Compare(v.Name, n) })
	return slices.Insert(env, at, EnvVar{name, value})
}

// join gives path itself when it is absolute, else base/path.
func join(base, path string, windows bool) string {
	switch {
	case isAbs(path, windows):
		return path
	case strings.HasSuffix(base, "/"), windows && strings.HasSuffix(base, `\`):
		return base + path
	}
	return base + "/" + path
}

func isAbs(path string, windows bool) bool {
	if strings.HasPrefix(path, "/") {
		return true
	}
	return windows && (strings.HasPrefix(path, `\`) || drive(path) != "")
}

// drive gives the "C:" of a Windows path, as an upper-case letter.
func drive(path string) string {
	if len(path) < 2 || path[1] != ':' {
		return ""
	}
	c := path[0] &^ 0x20
	if c < 'A' || c > 'Z' {
		return ""
	}
	return string(c) + ":"
}

// destination gives the absolute destination of a copy, without what has no meaning in it: empty and "." components, and
// on Windows the kind of slash and the case of the drive letter. A trailing slash has one, and stays; the root without
// one is "/.". ".." stays too: what it leads to depends on the links that are there.
func destination(workdir, dst string, windows bool) string {
	path := join(workdir, dst, windows)
	prefix := ""
	if windows {
		if prefix = drive(path); prefix != "" {
			path = path[len(prefix):]
		}
		path = strings.ReplaceAll(path, `\`, "/")
	}
	clean := cleanPath(path)
	switch slash := strings.HasSuffix(path, "/"); {
	case clean == "." && slash:
		return prefix + "/"
	case clean == ".":
		return prefix + "/."
	case slash:
		return prefix + "/" + clean + "/"
	}
	return prefix + "/" + clean
}

// cleanSource gives a src of a copy in the spelling that its key has.
func cleanSource(src string, windows bool) string {
	if windows {
		src = strings.ReplaceAll(src, `\`, "/")
	}
	return cleanPath(src)
}

func cleanSources(c *spec.Copy, windows bool) []string {
	out := make([]string, len(c.Src))
	for i, s := range c.Src {
		out[i] = cleanSource(s, windows)
	}
	return out
}

// exclusions are a set: sorted, each once.
func exclusions(c *spec.Copy) []string {
	return slices.Compact(slices.Sorted(slices.Values(c.Exclude)))
}

// cleanPath drops empty and "." components; nothing left is ".".
func cleanPath(path string) string {
	parts := strings.Split(path, "/")
	parts = slices.DeleteFunc(parts, func(p string) bool { return p == "" || p == "." })
	if len(parts) == 0 {
		return "."
	}
	return strings.Join(parts, "/")
}

func isWindows(p ocispec.Platform) bool { return strings.EqualFold(p.OS, "windows") }

// normalPlatform gives one spelling to what indexes and image configs spell in several ways, by containerd's rules, and
// drops what does not choose between images: os.version outside Windows.
func normalPlatform(p ocispec.Platform) ocispec.Platform {
	n := ocispec.Platform{
		OS:           strings.ToLower(p.OS),
		Architecture: strings.ToLower(p.Architecture),
		Variant:      strings.ToLower(p.Variant),
	}
	if n.OS == "macos" {
		n.OS = "darwin"
	}
	if n.OS == "windows" {
		n.OSVersion = p.OSVersion
	}
	switch n.Architecture {
	case "i386":
		n.Architecture, n.Variant = "386", ""
	case "x86_64", "x86-64":
		n.Architecture = "amd64"
	case "aarch64":
		n.Architecture = "arm64"
	case "armhf":
		n.Architecture, n.Variant = "arm", ""
	case "armel":
		n.Architecture, n.Variant = "arm", "v6"
	}
	if n.Variant != "" && n.Variant[0] >= '1' && n.Variant[0] <= '9' {
		n.Variant = "v" + n.Variant
	}
	switch [2]string{n.Architecture, n.Variant} {
	case [2]string{"amd64", "v1"}, [2]string{"arm64", "v8"}, [2]string{"arm64", "v8.0"}:
		n.Variant = ""
	case [2]string{"arm", ""}:
		n.Variant = "v7"
	}
	return n
}
