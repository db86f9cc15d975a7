package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
)

// A layer of a Windows image is a tar too. Files are below Files/; what tar has no field for is in PAX records, as
// go-winio's package backuptar has them.
const (
	winFiles      = "Files"
	winHives      = "Hives" // changes of the registry; a copy has none
	winAttributes = "MSWINDOWS.fileattr"
	winSecurity   = "MSWINDOWS.rawsd" // a self-relative security descriptor, base64
	winCreated    = "LIBARCHIVE.creationtime"
)

// Attributes of files.
const (
	winDirectory = 0x10
	winArchive   = 0x20
	winReparse   = 0x400
)

// The names under which a Tree of Windows gives a file's security descriptor, in bytes, and its attributes, in decimal digits.
const (
	securityXattr   = winSecurity
	attributesXattr = winAttributes
)

// MakeWindowsCopy makes the layer of a copy step for Windows, by the rules of MakeCopy. Nothing runs in a container for
// it, so it works for images that have no shell. What differs from other systems:
//
//   - Dst is on drive C, whether it says so or not.
//   - Files belong to User, and give access as files do that are made below C:\, to the system, administrators and their
//     owner all, to users reading. There is no execute bit.
//   - A layer names the directories on the way to its files; existing ones are given the attributes and the security descriptor
//     that they have.
func MakeWindowsCopy(ctx context.Context, st *cas.Store, c Copy, comp Compression) (Layer, error) {
	fail := func(err error) (Layer, error) { return Layer{}, fmt.Errorf("copy: %w", err) }
	if err := c.useDriveC(); err != nil {
		return fail(err)
	}
	root, err := planCopy(&c)
	if err != nil {
		return fail(err)
	}
	l, err := packBlob(ctx, st, Layer{}, comp, func(ctx context.Context, w io.Writer) error {
		return writeWindowsCopy(ctx, w, &c, root)
	})
	if err != nil {
		return fail(err)
	}
	return l, nil
}

// useDriveC makes paths of Windows such as planCopy knows.
func (c *Copy) useDriveC() (err error) {
	c.Windows = true
	c.Dst, err = onDriveC(c.Dst)
	return err
}

// validOnWindows reports whether a file may have a name. With a backslash or a colon in it, or a dot or a space at its end, it would mean another
// file there.
func validOnWindows(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || strings.ContainsRune(`<>:"/\|?*`, r) }) &&
		!strings.HasSuffix(name, ".") && !strings.HasSuffix(name, " ")
}

// onDriveC takes the drive letter from a path.
func onDriveC(name string) (string, error) {
	slashed := strings.ReplaceAll(name, `\`, "/")
	if len(slashed) < 2 || slashed[1] != ':' {
		return slashed, nil
	}
	if slashed[0]&^0x20 != 'C' {
		return "", &CopyError{name, "a container has no other drive than C:"}
	}
	return slashed[2:], nil
}

// windowsLink is where a link leads, as a path on drive C.
func windowsLink(link string) (string, error) {
	for _, prefix := range []string{`\\?\`, `\??\`} {
		link = strings.TrimPrefix(link, prefix)
	}
	return onDriveC(link)
}

func writeWindowsCopy(ctx context.Context, w io.Writer, c *Copy, root *target) error {
	t := windowsWriter{tarWriter: newTarWriter(w), ctx: ctx, c: c, sd: windowsSecurity(c.User)}
	if err := t.header(&tar.Header{Typeflag: tar.TypeDir, Name: winHives + "/", Mode: 0o755}); err != nil {
		return err
	}
	if err := t.dir(root, winFiles); err != nil {
		return err
	}
	return t.close()
}

type windowsWriter struct {
	*tarWriter
	ctx context.Context
	c   *Copy
	sd  security
}

// dir writes a directory with everything below it that belongs in the layer.
func (t *windowsWriter) dir(d *target, name string) error {
	h, err := t.dirHeader(d)
	if err != nil {
		return err
	}
	h.Name = name + "/"
	if err := t.header(h); err != nil {
		return err
	}
	for _, k := range d.sorted() {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		at := path.Join(name, k.name)
		switch {
		case k.mode.IsDir():
			err = t.dir(k, at)
		case k.mode == fs.ModeSymlink:
			err = t.link(k, at)
		default:
			err = t.file(k, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// windowsHeader begins a header as backuptar would.
func windowsHeader(kind byte, attributes uint32, sd []byte, mtime time.Time) *tar.Header {
	return &tar.Header{
		Typeflag: kind, Mode: 0o666, ModTime: mtime,
		PAXRecords: map[string]string{
			winAttributes: strconv.FormatUint(uint64(attributes), 10),
			winSecurity:   base64.StdEncoding.EncodeToString(sd),
			winCreated:    strconv.FormatInt(mtime.Unix(), 10),
		},
	}
}

func (t *windowsWriter) dirHeader(d *target) (*tar.Header, error) {
	switch {
	case d.old != nil:
		x, err := t.c.Parent.Xattrs(d.path())
		if err != nil {
			return nil, err
		}
		sd := []byte(x[securityXattr])
		if len(sd) == 0 {
			sd = t.sd.ofDirs(false)
		}
		h := windowsHeader(tar.TypeDir, winDirectory, sd, d.old.ModTime())
		if a, ok := x[attributesXattr]; ok {
			h.PAXRecords[winAttributes] = a
		}
		return h, nil
	case d.item != nil:
		info, err := t.c.source(d)
		if err != nil {
			return nil, err
		}
		return windowsHeader(tar.TypeDir, winDirectory, t.sd.ofDirs(true), seconds(info)), nil
	}
	return windowsHeader(tar.TypeDir, winDirectory, t.sd.ofDirs(d.owned), time.Unix(0, 0)), nil
}

func (t *windowsWriter) link(k *target, name string) error {
	info, err := t.c.source(k)
	if err != nil {
		return err
	}
	attributes := uint32(winReparse)
	// Windows has two kinds of links: what this one leads to in the source says which.
	if to, err := fs.Stat(t.c.From, path.Join(path.Dir(k.src), strings.ReplaceAll(k.link, `\`, "/"))); err == nil && to.IsDir() {
		attributes |= winDirectory
	}
	h := windowsHeader(tar.TypeSymlink, attributes, t.sd.ofFiles(), seconds(info))
	h.Name, h.Linkname = name, strings.ReplaceAll(k.link, `\`, "/")
	return t.header(h)
}

func (t *windowsWriter) file(k *target, name string) error {
	f, info, err := t.c.openSource(k)
	if err != nil {
		return err
	}
	defer f.Close()
	h := windowsHeader(tar.TypeReg, winArchive, t.sd.ofFiles(), seconds(info))
	h.Name, h.Size = name, info.Size()
	if err := t.header(h); err != nil {
		return err
	}
	sum := digest.SHA256.Digester()
	n, err := io.Copy(io.MultiWriter(t.tw, sum.Hash()), cas.Reader(t.ctx, io.LimitReader(f, h.Size)))
	if err != nil {
		return fmt.Errorf("source %q: %w", k.src, err)
	}
	if n != h.Size || sum.Digest() != k.item.Digest {
		return changed(k.src, errors.New("its content differs"))
	}
	return nil
}

// ---- security descriptors, as Microsoft's [MS-DTYP] 2.4 has them

// A sid names whom something belongs to or who may do something.
type sid []byte

func newSID(authority byte, sub ...uint32) sid {
	b := []byte{1, byte(len(sub)), 0, 0, 0, 0, 0, authority}
	for _, s := range sub {
		b = binary.LittleEndian.AppendUint32(b, s)
	}
	return b
}

// An ace lets somebody do something.
type ace struct {
	flags  byte
	rights uint32
	who    sid
}

const (
	inherit = 0x3      // what is made in a directory, files and directories, takes it over
	full    = 0x1f01ff // FILE_ALL_ACCESS
	read    = 0x1200a9 // FILE_GENERIC_READ and FILE_GENERIC_EXECUTE
	addDirs = 0x4      // FILE_APPEND_DATA, which is FILE_ADD_SUBDIRECTORY
	addFile = 0x2      // FILE_WRITE_DATA, which is FILE_ADD_FILE

	inheritDirs = 0x2
)

// security makes the descriptors of what a user copies.
type security struct {
	system, administrators, users, owner sid
}

// containerUser is the user whom images of Nano Server run as. Others are administrators, or known in their container only.
const containerUser = "ContainerUser"

func windowsSecurity(user string) security {
	s := security{system: newSID(5, 18), administrators: newSID(5, 32, 544), users: newSID(5, 32, 545)}
	s.owner = s.administrators
	if strings.EqualFold(user, containerUser) {
		s.owner = newSID(5, 93, 2, 2)
	}
	return s
}

func (s security) ofFiles() []byte { return s.descriptor(s.owner, 0) }

// ofDirs is what directories have, as C:\ itself gives it to those that are made in it.
func (s security) ofDirs(owned bool) []byte {
	owner := s.administrators
	if owned {
		owner = s.owner
	}
	return s.descriptor(owner, inherit, ace{inheritDirs, addDirs, s.users}, ace{inheritDirs, addFile, s.users})
}

func (s security) descriptor(owner sid, flags byte, more ...ace) []byte {
	acl := []ace{{flags, full, s.system}, {flags, full, s.administrators}}
	if !bytes.Equal(owner, s.administrators) {
		acl = append(acl, ace{flags, full, owner})
	}
	acl = append(append(acl, ace{flags, read, s.users}), more...)
	var entries []byte
	for _, a := range acl {
		entries = append(entries, 0, a.flags) // ACCESS_ALLOWED_ACE_TYPE
		entries = binary.LittleEndian.AppendUint16(entries, uint16(8+len(a.who)))
		entries = binary.LittleEndian.AppendUint32(entries, a.rights)
		entries = append(entries, a.who...)
	}
	const header = 20
	ownerAt := header
	groupAt := ownerAt + len(owner)
	listAt := groupAt + len(s.system)
	b := []byte{1, 0, 0x04, 0x80} // SE_SELF_RELATIVE, SE_DACL_PRESENT
	for _, at := range []int{ownerAt, groupAt, 0, listAt} {
		b = binary.LittleEndian.AppendUint32(b, uint32(at))
	}
	b = append(append(b, owner...), s.system...)
	b = append(b, 2, 0) // ACL_REVISION
	b = binary.LittleEndian.AppendUint16(b, uint16(8+len(entries)))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(acl)))
	return append(append(b, 0, 0), entries...)
}
