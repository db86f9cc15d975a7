package foreign

import (
	"slices"
	"strings"
)

// A Level is a place in a tree: the way there from the root, as a list that the places below share. So the ways to all
// places of a tree take as much memory as their names, however deep it is. The zero Level is a root.
type Level struct {
	up     *Level
	name   string
	depth  int
	length int
}

// Child is the place of a name in a directory.
func (l *Level) Child(name string) *Level {
	length := len(name)
	if l.depth > 0 {
		length += l.length + 1
	}
	return &Level{up: l, name: name, depth: l.depth + 1, length: length}
}

// Name is the last name of the way; "" of the root.
func (l *Level) Name() string { return l.name }

// Depth is how many names the way has: 0 of the root.
func (l *Level) Depth() int { return l.depth }

// Len is the length of String, but for the root: 0.
func (l *Level) Len() int { return l.length }

// Names is the way, the root's entry first.
func (l *Level) Names() []string {
	names := make([]string, 0, l.depth)
	for ; l.depth > 0; l = l.up {
		names = append(names, l.name)
	}
	slices.Reverse(names)
	return names
}

// String is the way with slashes; "." for the root.
func (l *Level) String() string {
	if l.depth == 0 {
		return "."
	}
	return strings.Join(l.Names(), "/")
}

// Short is String for messages: of a long way only the beginning.
func (l *Level) Short() string {
	const most = 200
	if l.length <= most {
		return l.String()
	}
	for l.depth > 1 && l.up.length >= most {
		l = l.up
	}
	s := l.String()
	return s[:min(len(s), most)] + "..."
}
