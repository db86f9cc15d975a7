package layers

import (
	"archive/tar"
	"encoding/base64"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/ocurrent/obx/cas/foreign"
)

const (
	schilyXattr = "SCHILY.xattr."
	// A PAX key ends at the first "=". libarchive's form of an attribute whose name has one: the name as in URLs, the
	// value in base64.
	libarchiveXattr = "LIBARCHIVE.xattr."
)

// maxHoles is how many bytes of holes may become bytes. A tar that all readers understand has no holes: OCI's specification advises against the
// sparse form of tars, Docker's reader writes its zeros out, and which blocks of a file are holes differs between file systems, so that
// a form that has them would not be the same bytes anywhere. So holes are written as zeros, hashed and compressed, and `truncate -s 1T f` would take
// hours in each layer, output and copy that has f. What is below the bound are disks that builds make, and takes a minute.
const maxHoles = 64 << 30

// A tarWriter writes one tar, deterministically, in PAX format where plain fields do not do.
type tarWriter struct {
	tw    *tar.Writer
	names map[inode]*foreign.Level // first name of each file that has several
	buf   []byte
	holes int64 // that became zeros
}

func newTarWriter(w io.Writer) *tarWriter {
	return &tarWriter{tw: tar.NewWriter(w), names: make(map[inode]*foreign.Level), buf: make([]byte, teeBlock)}
}

// add writes one file, and sets the header's name. content is called for a regular file that is not a hard link to an earlier one, and
// writes h.Size bytes.
func (t *tarWriter) add(at *foreign.Level, h *tar.Header, ino inode, xattrs map[string]string, content func(io.Writer) error) error {
	h.Name = at.String()
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if ino != (inode{}) {
		if first, ok := t.names[ino]; ok {
			return t.header(&tar.Header{
				Typeflag: tar.TypeLink, Name: h.Name, Linkname: first.String(),
				Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime,
			})
		}
		t.names[ino] = at
	}
	for k, v := range xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string, len(xattrs))
		}
		if strings.Contains(k, "=") {
			h.PAXRecords[libarchiveXattr+strings.ReplaceAll(url.QueryEscape(k), "+", "%20")] = base64.RawStdEncoding.EncodeToString([]byte(v))
		} else {
			h.PAXRecords[schilyXattr+k] = v
		}
	}
	if err := t.header(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return nil
	}
	if err := content(t.tw); err != nil {
		return fmt.Errorf("%s: %w", at.Short(), err)
	}
	return nil
}

// addHoles counts the holes of a file, before its content is written.
func (t *tarWriter) addHoles(n int64) error {
	if t.holes += n; t.holes > maxHoles {
		return tooSparse(t.holes)
	}
	return nil
}

// tooSparse says what the holes of a file cost.
func tooSparse(holes int64) error {
	return fmt.Errorf("it is sparse: at most %d GiB of holes are written as zeros, and this makes %d: remove it in the step that makes it, or make it smaller",
		maxHoles>>30, (holes+1<<30-1)>>30)
}

// mark writes an empty file that means something: a whiteout, an opaque directory.
func (t *tarWriter) mark(dir *foreign.Level, name string) error {
	return t.header(&tar.Header{Typeflag: tar.TypeReg, Name: dir.Child(name).String()})
}

func (t *tarWriter) header(h *tar.Header) error {
	h.Format = tar.FormatPAX
	if err := t.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", short(h.Name), err)
	}
	return nil
}

func (t *tarWriter) close() error { return t.tw.Close() }

// paxXattrs reads the extended attributes of a header that a layer keeps.
func paxXattrs(h *tar.Header) (map[string]string, error) {
	var m map[string]string
	for k, v := range h.PAXRecords {
		key, ok := strings.CutPrefix(k, schilyXattr)
		if !ok {
			if key, ok = strings.CutPrefix(k, libarchiveXattr); !ok {
				continue
			}
			var err error
			if key, err = url.PathUnescape(key); err != nil {
				return nil, fmt.Errorf("extended attribute %q: %w", k, err)
			}
			b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
			if err != nil {
				return nil, fmt.Errorf("extended attribute %q: %w", k, err)
			}
			v = string(b)
		}
		if IsOverlayXattr(key) {
			return nil, fmt.Errorf("extended attribute %s: a layer must not set it", key)
		}
		if KeepXattr(key) {
			if m == nil {
				m = make(map[string]string)
			}
			m[key] = v
		}
	}
	return m, nil
}
