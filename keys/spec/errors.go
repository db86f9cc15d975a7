package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// An Error is one mistake at one place.
type Error struct {
	File string
	Pos  Pos // zero when a program made the node
	Msg  string
}

// Error is FILE:LINE:COL: MESSAGE, without what is not known.
func (e *Error) Error() string {
	switch {
	case e.Pos.Line != 0:
		return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Pos.Line, e.Pos.Col, e.Msg)
	case e.File != "":
		return e.File + ": " + e.Msg
	}
	return e.Msg
}

// An ErrorList is a list of mistakes, printed one a line.
type ErrorList []*Error

func (l ErrorList) Error() string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the single errors to errors.Is and errors.As.
func (l ErrorList) Unwrap() []error {
	errs := make([]error, len(l))
	for i, e := range l {
		errs[i] = e
	}
	return errs
}

// err is the sorted list as an error: nil if it is empty.
func (l ErrorList) err() error {
	if len(l) == 0 {
		return nil
	}
	l.sort()
	return l
}

func (l ErrorList) sort() {
	slices.SortStableFunc(l, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Col, b.Pos.Col))
	})
}

// Merge adds mistakes of the same file that were looked for later, in order of position. At a place where there is one already, a later one would only
// say again what follows from it.
func (l ErrorList) Merge(later ErrorList) ErrorList {
	taken := map[Pos]bool{}
	for _, e := range l {
		taken[e.Pos] = e.Pos != (Pos{})
	}
	all := slices.Clone(l)
	for _, e := range later {
		if !taken[e.Pos] {
			all = append(all, e)
		}
	}
	all.sort()
	return all
}

// Suggest is ": did you mean X?" for the known names that are nearest to a misspelt one, or "".
func Suggest(name string, known []string) string {
	near := nearest(name, known)
	if len(near) == 0 {
		return ""
	}
	return ": did you mean " + alternatives(near) + "?"
}

// nearest are the known names that are most like a misspelt one, if any is like it.
func nearest(name string, known []string) []string {
	if len(name) > 100 {
		return nil
	}
	limit := max(1, len(name)/3)
	var near []string
	for _, k := range known {
		d := distance(strings.ToLower(name), strings.ToLower(k))
		if d > limit {
			continue
		}
		if d < limit {
			limit, near = d, nil
		}
		near = append(near, k)
	}
	return near
}

// alternatives is "a, b or c".
func alternatives(words []string) string {
	n := len(words) - 1
	if n == 0 {
		return words[0]
	}
	return strings.Join(words[:n], ", ") + " or " + words[n]
}

// distance counts the insertions, deletions, substitutions and swaps of neighbours between two words.
func distance(a, b string) int {
	var before, last []int // the rows of a[:i-2] and a[:i-1]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := last[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
