package layers

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// A layer is a sequence of entries, each of which is applied to what the ones before it have made of the layers below. So the directory that
// an entry's name leads to is looked for as the kernel would, in this layer first and then below it. While a layer is unpacked, what is
// below is not known: it is taken for nothing, or for ordinary directories, and a note says so.

// A need says what a directory is needed for.
type need byte

const (
	entered      need = 0   // it has an entry of its own, whatever is below
	passed       need = 'p' // a way leads through it: it is no link in the layers below
	implied      need = 'i' // it holds entries and has none: it has the attributes that the layers below have
	forWhiteouts need = 'w' // it holds only whiteouts: it exists if it does so below
	linkBelow    need = 'l' // a hard link in it leads to a file below
)

// A note is something about the layers below that unpacking has taken for granted.
type note struct {
	n    *node
	need need
}

func (u *untarrer) note(n *node, need need) { u.notes = append(u.notes, note{n, need}) }

// walk finds the directory that names lead to, through links. What is missing is not made yet.
func (u *untarrer) walk(names []string) (*node, error) {
	n := u.root
	if u.plain { // what is there already is not the tar's: no link is followed
		var err error
		for _, name := range names {
			if n, err = u.dir(n, name, clashFails); err != nil {
				return nil, err
			}
		}
		return n, nil
	}
	todo := slices.Clone(names)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if n.parent != nil {
				n = n.parent
			}
			continue
		}
		k, target, err := u.step(n, name)
		if err != nil {
			return nil, err
		}
		if k != nil {
			n = k
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("%s: %w", n.level.Child(name).Short(), unix.ELOOP)
		}
		if strings.HasPrefix(target, "/") {
			n = u.root
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return n, nil
}

// step gives a directory in a directory, or the target of the link that is in its place.
func (u *untarrer) step(n *node, name string) (k *node, target string, err error) {
	if k := n.kids[name]; k != nil {
		return k, "", nil
	}
	if err := CheckDepth(n.level, name); err != nil {
		return nil, "", err
	}
	st, ok, err := u.own(n, name)
	if err != nil {
		return nil, "", err
	}
	k = n.child(name)
	k.virtual = true
	switch {
	case ok && isWhiteout(st):
		n.add(k)
		return k, "", nil
	case ok && st.Mode&unix.S_IFMT == unix.S_IFLNK:
		target, err := readLinkAt(n.fd, name)
		return nil, target, err
	case ok:
		return nil, "", fmt.Errorf("%s: %w", k.path(), unix.ENOTDIR)
	}
	if k.below, err = u.look(n, name); err != nil {
		return nil, "", err
	}
	switch {
	case k.below == u.unknown:
		u.note(k, passed)
	case k.below == nil, k.below.typ == unix.S_IFDIR:
	case k.below.typ == unix.S_IFLNK:
		target, err := k.below.readLink()
		return nil, target, err
	default:
		return nil, "", fmt.Errorf("%s, in the layers below: %w", k.path(), unix.ENOTDIR)
	}
	n.add(k)
	return k, "", nil
}

// own looks for what this layer has made that is no directory.
func (u *untarrer) own(n *node, name string) (*unix.Stat_t, bool, error) {
	if n.virtual {
		return nil, false, nil
	}
	if err := u.fd(n); err != nil {
		return nil, false, err
	}
	if err := u.wait(fileID{n, name}); err != nil {
		return nil, false, err
	}
	var st unix.Stat_t
	err := unix.Fstatat(n.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, &fs.PathError{Op: "lstat", Path: n.level.Child(name).Short(), Err: err}
	}
	return &st, true, nil
}

// look looks for what the layers below have, as far as it is to be seen; nil if there is nothing.
func (u *untarrer) look(n *node, name string) (*place, error) {
	switch {
	case n.below == nil, n == u.root && name == linksDir:
		return nil, nil
	case n.below == u.unknown:
		return u.unknown, nil
	}
	p, err := n.below.child(name)
	if err != nil || p.typ == 0 {
		return nil, err
	}
	return p, nil
}

// seal forgets what the layers below have in a directory, since this layer hides it from here on.
func (u *untarrer) seal(n *node) error {
	if n.below == nil {
		return nil // so have all below it
	}
	n.below = nil
	for name, k := range n.kids {
		switch {
		case k.virtual:
			delete(n.kids, name)
		case k.hollow:
			if err := u.drop(k); err != nil {
				return err
			}
		default:
			if err := u.seal(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop removes a directory that is not of this layer.
func (u *untarrer) drop(n *node) error {
	if n.virtual {
		delete(n.parent.kids, n.level.Name())
		return nil
	}
	if err := u.leave(n); err != nil {
		return err
	}
	return foreign.RemoveAt(u.ctx, n.parent.fd, n.level.Name())
}

// make makes sure that a directory is there.
func (u *untarrer) make(n *node, why need) error {
	if !n.virtual && (!n.hollow || why == forWhiteouts) {
		return u.fd(n)
	}
	if err := u.make(n.parent, why); err != nil {
		return err
	}
	if n.hollow {
		n.hollow = false
		if n.below == u.unknown {
			u.note(n, implied)
		}
		return u.fd(n)
	}
	name := n.level.Name()
	err := unix.Mkdirat(n.parent.fd, name, 0o700)
	if err == unix.EEXIST { // the whiteout that has made it virtual: both hide what is below
		if err = unix.Unlinkat(n.parent.fd, name, 0); err == nil {
			n.opaque = true
			err = unix.Mkdirat(n.parent.fd, name, 0o700)
		}
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: n.path(), Err: err}
	}
	n.virtual, n.hollow = false, why == forWhiteouts
	switch {
	case n.below == u.unknown:
		if why != entered {
			u.note(n, why)
		}
	case n.below != nil:
		if n.meta, err = n.below.meta(); err != nil {
			return err
		}
	}
	return u.fd(n)
}

// directory makes a directory that has an entry.
func (u *untarrer) directory(parent *node, name string) (*node, error) {
	if u.plain {
		return u.dir(parent, name, clashReplaces)
	}
	if k := parent.kids[name]; k != nil {
		if err := u.make(parent, implied); err != nil {
			return nil, err
		}
		return k, u.make(k, entered)
	}
	if err := CheckDepth(parent.level, name); err != nil {
		return nil, err
	}
	if err := u.make(parent, implied); err != nil {
		return nil, err
	}
	_, ok, err := u.own(parent, name)
	if err != nil {
		return nil, err
	}
	k := parent.child(name)
	k.virtual, k.opaque = true, ok
	if ok {
		err = u.clear(parent, name)
	} else if k.below, err = u.look(parent, name); k.below != nil && k.below != u.unknown && k.below.typ != unix.S_IFDIR {
		k.below = nil
	}
	if err != nil {
		return nil, err
	}
	parent.add(k)
	return k, u.make(k, entered)
}

// clear makes room for an entry: a later one replaces what is there. The parent must have been made.
func (u *untarrer) clear(parent *node, name string) error {
	k := parent.kids[name]
	if k != nil && k.virtual {
		delete(parent.kids, name)
		k = nil
	}
	if k != nil {
		if err := u.leave(k); err != nil {
			return err
		}
	}
	if err := u.fd(parent); err != nil {
		return err
	}
	if err := u.wait(fileID{parent, name}); err != nil {
		return err
	}
	if k == nil {
		var st unix.Stat_t
		if err := unix.Fstatat(parent.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
			return nil
		} else if err != nil {
			return &fs.PathError{Op: "lstat", Path: parent.level.Child(name).Short(), Err: err}
		} else if u.log == nil || isWhiteout(&st) {
			if err := unix.Unlinkat(parent.fd, name, 0); err != nil {
				return &fs.PathError{Op: "replace", Path: parent.level.Child(name).Short(), Err: err}
			}
			return nil
		}
	}
	if u.log != nil {
		return u.log.keep(parent, name)
	}
	if err := foreign.RemoveAt(u.ctx, parent.fd, name); err != nil {
		return fmt.Errorf("replace %s: %w", parent.level.Child(name).Short(), err)
	}
	return nil
}

// finish completes the directory, and what is kept beside it.
func (u *untarrer) finish() error {
	if u.root.kids[linksDir] != nil {
		if err := u.clear(u.root, linksDir); err != nil {
			return err
		}
	}
	if err := u.dirWriter.finish(); err != nil || u.log == nil {
		return err
	}
	if u.root.meta == nil {
		u.note(u.root, implied)
	}
	return u.log.finish(u.ctx, u.openEnds())
}

// openEnds gives the notes in their form on disk.
func (u *untarrer) openEnds() []openEnd {
	var ends []openEnd
	seen := map[openEnd]bool{}
	for _, x := range u.notes {
		need := x.need
		if (need == implied || need == forWhiteouts) && (x.n.virtual || x.n.meta != nil || !x.n.attached()) {
			need = passed // it got an entry, or was replaced
		}
		if e := (openEnd{need, x.n.level.String()}); !seen[e] {
			seen[e] = true
			ends = append(ends, e)
		}
	}
	return ends
}

// attached reports whether a directory is still part of the tree.
func (n *node) attached() bool {
	for ; n.parent != nil; n = n.parent {
		if n.parent.kids[n.level.Name()] != n {
			return false
		}
	}
	return true
}
