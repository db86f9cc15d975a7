package layerdisk

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/layers"
)

// EROFS without compression is simple: inodes of 64 bytes, named by their offset in units of 32 bytes (the nid),
// extended attributes behind them, then small content; directories are blocks of entries sorted by name. It keeps
// all that a layer has: nanoseconds, hard links, devices and trusted.overlay.opaque.
//
// One image has many layers, each a directory 0, 1, ... of its root.

const (
	blockSize  = 4096
	slotSize   = 32
	inodeSize  = 64
	superMagic = 0xE0F5E1E2
	superAt    = 1024 // where the superblock is
)

// Layouts of an inode's content.
const (
	layoutPlain  = 0 // whole blocks elsewhere
	layoutInline = 2 // the last part is behind the inode
)

// A Layer is the metadata of one layer directory, relative to where it will lie. It is read once, whatever images it is in.
type Layer struct {
	// Changing says that others write to the directory: what they have cut off since it was read is zeros. Else that is an error.
	Changing bool

	dir    string
	meta   []byte // whole blocks
	nids   []int  // offsets in meta of nids, as entries of directories have them
	blocks []int  // offsets in meta of block numbers that count from the beginning of meta
	data   []int  // offsets in meta of block numbers that count from the beginning of the data
	files  []fileData
	size   int64 // of the data, in blocks
	inodes int64
}

// fileData is the content of a file.
type fileData struct {
	block int64 // first, from the beginning of the layer's data
	size  int64
	at    *foreign.Level // in the layer's directory
}

// ReadLayer reads the metadata of a directory in overlay form: it looks at each inode, follows no link and opens no file. The files must stay what they
// are for as long as a Disk has the layer.
func ReadLayer(dir string) (*Layer, error) {
	fail := func(err error) (*Layer, error) { return nil, fmt.Errorf("read layer %s: %w", dir, err) }
	c, err := foreign.NewCursor(dir, 0)
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	b := builder{Layer: &Layer{dir: dir}, links: map[fileKey]*node{}}
	root, err := b.readDir(c)
	if err == nil {
		b.place(root)
		err = b.write(root)
	}
	if err != nil {
		return fail(err)
	}
	if rest := len(b.meta) % blockSize; rest > 0 {
		b.meta = append(b.meta, make([]byte, blockSize-rest)...)
	}
	return b.Layer, nil
}

type fileKey struct{ dev, ino uint64 }

// A node is one inode.
type node struct {
	at     *foreign.Level // in the layer
	stat   unix.Stat_t
	xattrs []byte
	link   string
	kids   []entry
	nlink  uint32
	offset int // in meta; of a root always 0
	placed bool
	done   bool
}

type entry struct {
	name string
	node *node
}

// A builder makes a Layer: it reads nodes, gives them their places, and writes them there.
type builder struct {
	*Layer
	links map[fileKey]*node
	end   int // of what is placed
}

// readDir reads the directory where a cursor is, with all below it.
func (b *builder) readDir(c *foreign.Cursor) (*node, error) {
	n := &node{at: c.Level(), nlink: 2}
	if err := unix.Fstat(c.FD(), &n.stat); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: n.at.Short(), Err: err}
	}
	var err error
	if n.xattrs, err = xattrsOf(rootfs.ProcFD(c.FD())+"/.", n.at); err != nil {
		return nil, err
	}
	entries, err := c.ReadDir()
	if err != nil {
		return nil, err
	}
	n.kids = append(make([]entry, 0, len(entries)+2), entry{".", n}, entry{"..", nil})
	for _, e := range entries {
		if err := layers.CheckDepth(n.at, e.Name()); err != nil {
			return nil, err
		}
		kid, err := b.readEntry(c, e.Name())
		if err != nil {
			return nil, err
		}
		n.kids = append(n.kids, entry{e.Name(), kid})
		if kid.stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			n.nlink++
			kid.kids[slices.IndexFunc(kid.kids, func(e entry) bool { return e.name == ".." })].node = n
		}
	}
	n.sort()
	return n, nil
}

func (b *builder) readEntry(c *foreign.Cursor, name string) (*node, error) {
	n := &node{at: c.Level().Child(name), nlink: 1}
	fail := func(op string, err error) (*node, error) {
		return nil, &fs.PathError{Op: op, Path: n.at.Short(), Err: err}
	}
	if err := unix.Fstatat(c.FD(), name, &n.stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("lstat", err)
	}
	kind := n.stat.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		if err := c.Enter(name); err != nil {
			return nil, err
		}
		dir, err := b.readDir(c)
		if err != nil {
			return nil, err
		}
		return dir, c.Leave()
	}
	if n.stat.Nlink > 1 {
		key := fileKey{n.stat.Dev, n.stat.Ino}
		if old := b.links[key]; old != nil {
			old.nlink++
			return old, nil
		}
		b.links[key] = n
	}
	path := rootfs.ProcFD(c.FD()) + "/" + name
	var err error
	if n.xattrs, err = xattrsOf(path, n.at); err != nil {
		return nil, err
	}
	if kind == unix.S_IFLNK {
		if n.link, err = os.Readlink(path); err != nil {
			return fail("readlink", err)
		}
	}
	return n, nil
}

func (n *node) sort() {
	slices.SortFunc(n.kids, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	for i := range n.kids {
		if n.kids[i].node == nil { // of a root: itself, until an image has it
			n.kids[i].node = n
		}
	}
}

// Indexes of the names that begin extended attributes.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{
	{"user.", 1}, {"system.posix_acl_access", 2}, {"system.posix_acl_default", 3}, {"trusted.", 4}, {"security.", 6},
}

// xattrsOf reads the extended attributes of a file in their form on disk; nil if there are none. at is for messages.
func xattrsOf(name string, at *foreign.Level) ([]byte, error) {
	var list [16 << 10]byte
	n, err := unix.Llistxattr(name, list[:])
	if err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: at.Short(), Err: err}
	}
	var all []byte
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		i := slices.IndexFunc(xattrPrefixes, func(p struct {
			prefix string
			index  byte
		}) bool {
			return strings.HasPrefix(key, p.prefix)
		})
		if key == "" || i < 0 {
			continue
		}
		value := make([]byte, 64<<10)
		size, err := unix.Lgetxattr(name, key, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr", Path: at.Short(), Err: err}
		}
		rest := strings.TrimPrefix(key, xattrPrefixes[i].prefix)
		if all == nil {
			all = make([]byte, 12) // the header: no shared attributes
		}
		all = append(all, byte(len(rest)), xattrPrefixes[i].index)
		all = binary.LittleEndian.AppendUint16(all, uint16(size))
		all = append(append(all, rest...), value[:size]...)
		for len(all)%4 != 0 {
			all = append(all, 0)
		}
	}
	return all, nil
}

// dirSize is how many bytes of a directory's content there are: each block has the entries, then their names.
func (n *node) dirSize() int {
	size, used := 0, 0
	for _, k := range n.kids {
		need := 12 + len(k.name)
		if used+need > blockSize {
			size, used = size+blockSize, 0
		}
		used += need
	}
	return size + used
}

// tail is the size of the content that goes behind the inode; 0 if it goes into blocks.
func (n *node) tail() int {
	size := 0
	switch n.stat.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		size = len(n.link)
	case unix.S_IFDIR:
		size = n.dirSize()
	}
	if inodeSize+len(n.xattrs)+size > blockSize {
		return 0
	}
	return size
}

// place gives a node and all below it their offsets.
func (b *builder) place(n *node) {
	if n.placed {
		return
	}
	n.placed = true
	b.inodes++
	size := inodeSize + len(n.xattrs) + n.tail()
	if n.tail() > 0 && b.end/blockSize != (b.end+size-1)/blockSize {
		b.end = roundUp(b.end, blockSize) // what is behind an inode must not cross a block's border
	}
	n.offset = b.end
	b.end = roundUp(b.end+size, slotSize)
	for _, k := range n.kids {
		if k.name != "." && k.name != ".." {
			b.place(k.node)
		}
	}
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// write writes placed nodes. Directories and links too large for their place go behind all inodes.
func (b *builder) write(root *node) error {
	b.meta = make([]byte, roundUp(b.end, blockSize))
	return b.writeNode(root)
}

func (b *builder) writeNode(n *node) error {
	if n.done {
		return nil
	}
	n.done = true
	le := binary.LittleEndian
	var content []byte
	var entries []int // offsets of nids in content
	size := int64(0)
	rdev := uint32(0)
	switch n.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		size = n.stat.Size
	case unix.S_IFLNK:
		content = []byte(n.link)
	case unix.S_IFDIR:
		content, entries = n.dirContent()
	case unix.S_IFCHR, unix.S_IFBLK:
		major, minor := unix.Major(n.stat.Rdev), unix.Minor(n.stat.Rdev)
		rdev = minor&0xff | major<<8 | (minor&^0xff)<<12
	}
	if content != nil {
		size = int64(len(content))
	}
	layout := uint16(layoutPlain)
	if n.tail() > 0 {
		layout = layoutInline
	}
	i := b.meta[n.offset:]
	le.PutUint16(i[0:], 1|layout<<1)
	if len(n.xattrs) > 0 {
		count := (len(n.xattrs)-12)/4 + 1
		if count > 0xffff {
			return fmt.Errorf("%s: too many extended attributes", n.at.Short())
		}
		le.PutUint16(i[2:], uint16(count))
	}
	le.PutUint16(i[4:], uint16(n.stat.Mode))
	le.PutUint64(i[8:], uint64(size))
	le.PutUint32(i[16:], rdev)
	le.PutUint32(i[20:], uint32(n.offset/slotSize+1))
	le.PutUint32(i[24:], n.stat.Uid)
	le.PutUint32(i[28:], n.stat.Gid)
	le.PutUint64(i[32:], uint64(n.stat.Mtim.Sec))
	le.PutUint32(i[40:], uint32(n.stat.Mtim.Nsec))
	le.PutUint32(i[44:], n.nlink)
	copy(i[inodeSize:], n.xattrs)
	switch {
	case n.stat.Mode&unix.S_IFMT == unix.S_IFREG && size > 0:
		le.PutUint32(i[16:], uint32(b.size))
		b.data = append(b.data, n.offset+16)
		b.files = append(b.files, fileData{b.size, size, n.at})
		if b.size += (size + blockSize - 1) / blockSize; b.size > 1<<32-1 {
			return errors.New("it is larger than 16 TiB")
		}
	case layout == layoutInline:
		at := n.offset + inodeSize + len(n.xattrs)
		copy(b.meta[at:], content)
		for _, e := range entries {
			b.nids = append(b.nids, at+e)
		}
	case len(content) > 0:
		at := len(b.meta)
		b.meta = append(b.meta, make([]byte, roundUp(len(content), blockSize))...)
		copy(b.meta[at:], content)
		le.PutUint32(b.meta[n.offset+16:], uint32(at/blockSize))
		b.blocks = append(b.blocks, n.offset+16)
		for _, e := range entries {
			b.nids = append(b.nids, at+e)
		}
	}
	for _, k := range n.kids {
		if k.name != "." && k.name != ".." {
			if err := b.writeNode(k.node); err != nil {
				return err
			}
		}
	}
	return nil
}

// dirContent is a directory as its blocks have it, with the offsets of its nids.
func (n *node) dirContent() (content []byte, nids []int) {
	le := binary.LittleEndian
	for rest := n.kids; len(rest) > 0; {
		for len(content)%blockSize != 0 {
			content = append(content, 0)
		}
		used, count := 0, 0
		for count < len(rest) && used+12+len(rest[count].name) <= blockSize {
			used += 12 + len(rest[count].name)
			count++
		}
		name := 12 * count
		for _, k := range rest[:count] {
			nids = append(nids, len(content))
			content = le.AppendUint64(content, uint64(k.node.offset/slotSize))
			content = le.AppendUint16(content, uint16(name))
			content = append(content, typeOf(k.node.stat.Mode), 0)
			name += len(k.name)
		}
		for _, k := range rest[:count] {
			content = append(content, k.name...)
		}
		rest = rest[count:]
	}
	return content, nids
}

func typeOf(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

// An image is a whole image.
type image struct {
	meta   []byte // its beginning
	layers []part
	size   int64
}

// A part is where the data of a layer is.
type part struct {
	*Layer
	start int64 // of its data, in bytes
}

// newImage makes an image whose root has the layers as directories 0, 1, ...
func newImage(list []*Layer) (*image, error) {
	le := binary.LittleEndian
	// The root is built as a layer with nothing but the layers' own roots.
	root := &node{at: &foreign.Level{}, nlink: 2 + uint32(len(list))}
	root.stat.Mode = unix.S_IFDIR | 0o755
	root.kids = []entry{{".", root}, {"..", root}}
	b := builder{Layer: &Layer{}}
	tops := make([]*node, len(list))
	for i := range list {
		tops[i] = &node{placed: true, done: true}
		tops[i].stat.Mode = unix.S_IFDIR
		root.kids = append(root.kids, entry{fmt.Sprint(i), tops[i]})
	}
	root.sort()
	b.place(root)
	// Where all lies must be known before the root is written. Its own size does not depend on it.
	dir := roundUp(root.dirSize(), blockSize)
	head := blockSize + roundUp(b.end, blockSize)
	if root.tail() == 0 {
		head += dir
	}
	img := &image{}
	at := head
	for i, l := range list {
		tops[i].offset = at - blockSize // meta begins behind the superblock's block
		at += len(l.meta)
	}
	if err := b.write(root); err != nil {
		return nil, err
	}
	if len(b.meta) != head-blockSize {
		return nil, fmt.Errorf("an image's root takes %d bytes instead of %d", len(b.meta), head-blockSize)
	}
	for _, off := range b.blocks {
		le.PutUint32(b.meta[off:], le.Uint32(b.meta[off:])+1)
	}
	img.meta = append(make([]byte, blockSize, at), b.meta...)
	data := int64(at)
	inodes := b.inodes
	for _, l := range list {
		base := len(img.meta)
		img.meta = append(img.meta, l.meta...)
		own := img.meta[base:]
		for _, off := range l.nids {
			le.PutUint64(own[off:], le.Uint64(own[off:])+uint64((base-blockSize)/slotSize))
		}
		for _, off := range l.blocks {
			le.PutUint32(own[off:], le.Uint32(own[off:])+uint32(base/blockSize))
		}
		for _, off := range l.data {
			le.PutUint32(own[off:], le.Uint32(own[off:])+uint32(data/blockSize))
		}
		img.layers = append(img.layers, part{l, data})
		data += l.size * blockSize
		inodes += l.inodes
	}
	if data/blockSize > 1<<32-1 {
		return nil, errors.New("the layers are larger than 16 TiB")
	}
	img.size = data
	super := img.meta[superAt:]
	le.PutUint32(super[0:], superMagic)
	super[12] = 12 // bits of a block's size
	le.PutUint16(super[14:], uint16(root.offset/slotSize))
	le.PutUint64(super[16:], uint64(inodes))
	le.PutUint32(super[36:], uint32(data/blockSize))
	le.PutUint32(super[40:], 1) // block of meta
	return img, nil
}

// readAt reads from the image. What lies behind the end of a file is zeros. open opens a file of a layer.
func (img *image) readAt(p []byte, off int64, open func(dir string, at *foreign.Level) (*os.File, error)) error {
	clear(p)
	if off < int64(len(img.meta)) {
		n := copy(p, img.meta[off:])
		p, off = p[n:], off+int64(n)
	}
	for len(p) > 0 && off < img.size {
		i, found := slices.BinarySearchFunc(img.layers, off, func(l part, off int64) int { return cmp.Compare(l.start, off) })
		if !found {
			i--
		}
		for i+1 < len(img.layers) && img.layers[i+1].start == img.layers[i].start { // one without data
			i++
		}
		n, err := img.layers[i].readData(p, off-img.layers[i].start, open)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readData reads from the blocks of one file.
func (l *part) readData(p []byte, off int64, open func(string, *foreign.Level) (*os.File, error)) (int, error) {
	block := off / blockSize
	i, found := slices.BinarySearchFunc(l.files, block, func(f fileData, block int64) int { return cmp.Compare(f.block, block) })
	if !found {
		i--
	}
	f := l.files[i]
	off -= f.block * blockSize
	end := (f.size + blockSize - 1) / blockSize * blockSize
	n := int(min(int64(len(p)), end-off))
	if off >= f.size {
		return n, nil
	}
	file, err := open(l.dir, f.at)
	if err != nil {
		return 0, err
	}
	want := p[:min(int64(n), f.size-off)]
	if m, err := file.ReadAt(want, off); m < len(want) && !(l.Changing && errors.Is(err, io.EOF)) {
		return 0, fmt.Errorf("read %s: %w", file.Name(), err)
	}
	return n, nil
}
