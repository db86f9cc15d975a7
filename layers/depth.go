package layers

import (
	"errors"
	"fmt"

	"github.com/ocurrent/obx/cas/foreign"
)

// What a layer may have in depth: the format has no limit, but what reads and writes layers has to end.
const (
	maxDepth = 4096     // names of a path
	maxPath  = 64 << 10 // bytes of a path; the kernel takes 4096 in one call
)

// ErrTooDeep says that a file is in more directories than a layer can hold.
var ErrTooDeep = fmt.Errorf("it is too deep for a layer, which holds paths of %d names and %d bytes at most", maxDepth, maxPath)

// CheckDepth reports whether a layer can hold a name in a directory, as far as depth goes. Its error has the path's beginning.
func CheckDepth(dir *foreign.Level, name string) error {
	if dir.Depth() < maxDepth && dir.Len()+1+len(name) <= maxPath {
		return nil
	}
	return fmt.Errorf("%s: %w", dir.Child(name).Short(), ErrTooDeep)
}

// short is a name of a tar for messages.
func short(name string) string {
	const most = 200
	if len(name) <= most {
		return name
	}
	return name[:most] + "..."
}

var errShrunk = errors.New("it became shorter while it was read")
