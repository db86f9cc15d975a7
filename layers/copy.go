package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas/foreign"
)

// A Copy is a copy step.
type Copy struct {
	From    fs.FS  // where sources are: a Tree or the source directory (fs.ReadLinkFS)
	Parent  Tree   // the root file system to copy into, for resolving Dst
	Dst     string // absolute text of the destination, with its trailing slash if it has one
	Windows bool   // Dst, and links of Parent, are paths of Windows
	Items   []Item
	UID     int
	GID     int
	User    string // by name, for Windows; then UID and GID mean nothing
}

// An Item is one source of a copy, with everything below it, as it was hashed.
type Item struct {
	Src      string      // path in From; "." for all of it
	Name     string      // base name; "" for "."
	Mode     fs.FileMode // type bits only: 0, fs.ModeDir or fs.ModeSymlink
	Exec     bool
	Digest   digest.Digest // of a regular file's content
	Link     string
	Children []Item
}

// A CopyError is a copy that the spec or the image makes impossible: a failed step, not broken infrastructure.
type CopyError struct{ Path, Msg string }

func (e *CopyError) Error() string { return e.Path + ": " + e.Msg }

// maxLinks is the kernel's own limit for one path.
const maxLinks = 40

// maxDst is the longest path to a directory that is made for a copy, in bytes: the kernel takes no longer one. A layer has the path of each directory
// on the way, so its size is the square of that.
const maxDst = 4095

// A target is one name of the file system as the copy leaves it: something that it makes, or something of the parent
// that it has looked at on the way.
type target struct {
	up    *target
	name  string
	level *foreign.Level
	kids  map[string]*target // by copyPlan.key

	old  fs.FileInfo // of the parent's file, nil for what the copy makes
	mode fs.FileMode // type bits
	link string

	// Of what the copy makes: a source, or (item nil) a directory that is missing on the way.
	item  *Item
	src   string // item's path in From
	owned bool   // by the current user
}

func (t *target) path() string { return t.level.String() }

// made reports whether t or something below it belongs in the layer.
func (t *target) made() bool {
	if t.old == nil {
		return true
	}
	for _, k := range t.kids {
		if k.made() {
			return true
		}
	}
	return false
}

// sorted gives what is below t and belongs in the layer.
func (t *target) sorted() []*target {
	var out []*target
	for k := range maps.Values(t.kids) {
		if k.made() {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b *target) int { return strings.Compare(a.name, b.name) })
	return out
}

// planCopy decides where each source goes, and changes nothing. Names are resolved in the parent as it will look when
// the sources before are there.
func planCopy(c *Copy) (*target, error) {
	info, err := c.Parent.Lstat(".")
	if err != nil {
		return nil, err
	}
	root := &target{level: &foreign.Level{}, old: info, mode: fs.ModeDir}
	p := copyPlan{c, root}
	names := strings.Split(c.Dst, "/")
	if slices.Contains(names, "..") {
		return nil, &CopyError{c.Dst, `the destination must not contain ".."`}
	}
	last := names[len(names)-1]
	names = slices.DeleteFunc(names, func(s string) bool { return s == "" || s == "." })
	into := last == "" // the sources go into Dst, not to it
	if !into && len(c.Items) > 1 {
		return nil, &CopyError{c.Dst, "with several sources, the destination must end with /"}
	}
	for i := range c.Items {
		it := &c.Items[i]
		contents := it.Name == "" // of the whole source directory: they go straight into Dst
		switch {
		case into, len(names) == 0:
			if !into && !it.Mode.IsDir() {
				return nil, isDirectory(c.Dst)
			}
			dir, err := p.descend(root, names)
			if err != nil {
				return nil, err
			}
			if dir.old == nil && dir.item == nil {
				dir.owned = true
			}
			if contents || !into {
				err = p.merge(dir, it, it.Src)
			} else {
				err = p.land(dir, it.Name, it, it.Src)
			}
			if err != nil {
				return nil, err
			}
		case last == "." && !it.Mode.IsDir():
			return nil, isDirectory(c.Dst)
		default:
			dir, err := p.descend(root, names[:len(names)-1])
			if err != nil {
				return nil, err
			}
			if err := p.land(dir, names[len(names)-1], it, it.Src); err != nil {
				return nil, err
			}
		}
	}
	return root, nil
}

func isDirectory(name string) error {
	return &CopyError{name, "is a directory: a destination that ends with / puts files into it"}
}

type copyPlan struct {
	c    *Copy
	root *target
}

// kid finds a name in a directory, nil if it is missing.
func (p copyPlan) kid(t *target, name string) (*target, error) {
	if k := t.kids[p.key(name)]; k != nil || t.old == nil {
		return k, nil
	}
	file := path.Join(t.path(), name)
	info, err := p.c.Parent.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k := &target{old: info, mode: info.Mode().Type()}
	if k.mode == fs.ModeSymlink {
		if k.link, err = p.c.Parent.ReadLink(file); err != nil {
			return nil, err
		}
	}
	p.add(t, name, k)
	return k, nil
}

func (p copyPlan) add(t *target, name string, k *target) {
	k.up, k.name, k.level = t, name, t.level.Child(name)
	if t.kids == nil {
		t.kids = make(map[string]*target)
	}
	t.kids[p.key(name)] = k
}

// key is the same for two names of one file: for Windows they may differ in case.
func (p copyPlan) key(name string) string {
	if p.c.Windows {
		return strings.ToLower(name)
	}
	return name
}

// put adds what the copy makes.
func (p copyPlan) put(t *target, name string, k *target) (*target, error) {
	if strings.HasPrefix(name, whiteoutPrefix) {
		return nil, &CopyError{path.Join("/", t.path(), name), fmt.Sprintf("names that begin with %q cannot be kept in a layer", whiteoutPrefix)}
	}
	if CheckDepth(t.level, name) != nil {
		return nil, &CopyError{"/" + t.level.Child(name).Short(), ErrTooDeep.Error()}
	}
	if p.c.Windows && !validOnWindows(name) {
		return nil, &CopyError{path.Join("/", t.path(), name), "is a name that no file of Windows can have"}
	}
	p.add(t, name, k)
	return k, nil
}

// descend goes from t down names to a directory, through links as the kernel would with p.root as its root, and
// plans what is missing.
func (p copyPlan) descend(t *target, names []string) (*target, error) {
	for links := 0; len(names) > 0; {
		name := names[0]
		names = names[1:]
		switch name {
		case "", ".":
			continue
		case "..": // of a link
			if t.up != nil {
				t = t.up
			}
			continue
		}
		k, err := p.kid(t, name)
		if err != nil {
			return nil, err
		}
		switch {
		case k == nil && 1+t.level.Child(name).Len() > maxDst:
			return nil, &CopyError{p.c.Dst[:min(len(p.c.Dst), 100)] + "...", fmt.Sprintf("the destination is longer than %d bytes", maxDst)}
		case k == nil:
			if k, err = p.put(t, name, &target{mode: fs.ModeDir}); err != nil {
				return nil, err
			}
		case k.mode == fs.ModeSymlink:
			if links++; links > maxLinks {
				return nil, &CopyError{"/" + k.path(), "too many links: they seem to go in a circle"}
			}
			link := k.link
			if p.c.Windows {
				if link, err = windowsLink(link); err != nil {
					return nil, err
				}
			}
			if strings.HasPrefix(link, "/") {
				t = p.root
			}
			names = append(strings.Split(link, "/"), names...)
			continue
		case !k.mode.IsDir():
			return nil, &CopyError{"/" + k.path(), "is not a directory"}
		}
		t = k
	}
	return t, nil
}

// land puts a source at a name.
func (p copyPlan) land(dir *target, name string, it *Item, src string) error {
	k, err := p.kid(dir, name)
	if err != nil {
		return err
	}
	if !it.Mode.IsDir() {
		if k != nil && k.mode.IsDir() {
			return isDirectory("/" + k.path())
		}
		_, err := p.put(dir, name, &target{mode: it.Mode.Type(), item: it, src: src, link: it.Link})
		return err
	}
	switch {
	case k != nil && k.mode == fs.ModeSymlink:
		if k, err = p.descend(dir, []string{name}); err != nil {
			return err
		}
	case k == nil || !k.mode.IsDir():
		if k, err = p.put(dir, name, &target{mode: fs.ModeDir}); err != nil {
			return err
		}
	}
	return p.merge(k, it, src)
}

// merge puts what a source directory has into a directory. One that was there keeps its attributes.
func (p copyPlan) merge(dir *target, it *Item, src string) error {
	if dir.old == nil && dir.item == nil {
		dir.item, dir.src = it, src
	}
	for i := range it.Children {
		k := &it.Children[i]
		if err := p.land(dir, k.Name, k, path.Join(src, k.Name)); err != nil {
			return err
		}
	}
	return nil
}

// source looks at a source that is not a file again.
func (c *Copy) source(t *target) (fs.FileInfo, error) {
	info, err := fs.Lstat(c.From, t.src)
	if err != nil {
		return nil, changed(t.src, err)
	}
	if info.Mode().Type() != t.mode {
		return nil, changed(t.src, errors.New("it is of another type now"))
	}
	if t.mode != fs.ModeSymlink {
		return info, nil
	}
	now, err := fs.ReadLink(c.From, t.src)
	if err != nil {
		return nil, changed(t.src, err)
	}
	if now != t.link {
		return nil, changed(t.src, errors.New("the link leads elsewhere"))
	}
	return info, nil
}

// openSource opens a source that is a file.
func (c *Copy) openSource(t *target) (fs.File, fs.FileInfo, error) {
	f, err := c.From.Open(t.src)
	if err != nil {
		return nil, nil, changed(t.src, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is of another type now")
	}
	if err != nil {
		f.Close()
		return nil, nil, changed(t.src, err)
	}
	return f, info, nil
}

// changed says that a source is no longer what was hashed.
func changed(src string, err error) error {
	return fmt.Errorf("source %q changed while the build was running: %w", src, err)
}

func seconds(info fs.FileInfo) time.Time { return time.Unix(info.ModTime().Unix(), 0) }
