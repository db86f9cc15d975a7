// Package layers turns file system changes into layer bytes and back.
//
// A change has two forms. As a layer directory of the store it is what overlayfs reads and writes: a whiteout is a
// character device 0:0, an opaque directory has trusted.overlay.opaque=y. As bytes it is an OCI layer: a tar with
// .wh. files, compressed. This package owns both forms and every way between them:
//
//	Pack, WriteChange        directory -> bytes
//	Load, Unpack             bytes -> directory
//	Stack                    directories of a chain -> directories that are right on top of each other
//	Flatten, FlattenBase     directories -> one directory
//	MakeCopy                 sources of a copy step -> directory
//	WriteTree, CopyTree      a whole root file system -> a tar, a directory
//	ExportTree               the same, for a directory that others than obx use
//
// Invariants:
//
//   - Round trip: a directory that was packed and unpacked gives the same file system over the same lower layers: types,
//     bytes, modes, owners, link groups, extended attributes, devices, and modification times to the nanosecond. The
//     root directory's own attributes are part of a layer. What does not survive (a name that begins with ".wh.")
//     is an error that names the path, sockets are left out: Seal brings a directory into the form that does.
//   - The same directory packs into the same uncompressed bytes anywhere, and into the same compressed bytes for one
//     version of obx.
//   - Bytes are hostile: unpacking resolves each name one component at a time below the root, follows links as if that were all
//     there is, and is bounded in bytes, entries and memory.
//   - The entries of a layer are a sequence, each applied to what is there by then. What one layer cannot know of the layers below is kept
//     beside its directory, and decided where a chain is put together: a hard link to a lower file is a further link to it.
//   - No other trusted.overlay.* attribute than the opaque mark is ever read, packed or unpacked. A directory with whiteouts gets an empty
//     trusted.overlay.origin, so that overlayfs never lists them. In a user namespace these are user.overlay.*: such a store is its user's, and
//     its layers have the same bytes.
//
// The package does not know what a layer is the result of, nor where its bytes come from or go.
package layers

import (
	"errors"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrReservedName says that a file's name means something else in a layer: one that begins with .wh. does not survive.
var ErrReservedName = errors.New("names that begin with .wh. cannot be kept in a layer")

// A Layer is one file system change. The zero Layer changes nothing. At least one of Dir and Blob is set otherwise.
type Layer struct {
	Dir    string             `json:"dir,omitempty"`    // name of a layer directory in the store
	DiffID digest.Digest      `json:"diffID,omitempty"` // of the uncompressed tar; "" if never packed
	Blob   ocispec.Descriptor `json:"blob,omitzero"`    // the packed bytes; zero if never packed
	Size   int64              `json:"size,omitempty"`   // of the uncompressed tar, in bytes
}

// IsZero reports a layer that changes nothing.
func (l Layer) IsZero() bool { return l.Dir == "" && l.Blob.Digest == "" }

// Devices are the device nodes that ExportTree has left out.
type Devices struct {
	Count int    // of names: a node may have several
	First string // a path below the root
}

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	metaPrefix     = ".wh..wh."     // aufs's own files; only opaqueMarker has a meaning in OCI layers
	linksDir       = ".wh..wh.plnk" // where aufs kept files with several names: other entries are hard links to these
)

// DirName is the name of the layer directory that unpacking a layer gives. Directories of an obx that took a layer for a set of names are
// called "d-...": results that name them keep them, and nothing else uses them.
func DirName(diffID digest.Digest) string { return "u-" + diffID.Encoded() }
