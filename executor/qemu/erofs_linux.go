package qemu

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

// A machine reads layer directories as an EROFS image that nobody has written: its metadata is made in memory, and what
// would be blocks of data are the files of the store, read when the machine asks. Making one costs a look at each
// inode, and no byte of disk.
//
// EROFS without compression is simple: inodes of 64 bytes, named by their offset in units of 32 bytes (the nid),
// extended attributes behind them, then small content; directories are blocks of entries sorted by name. It keeps
// all that a layer has: nanoseconds, hard links, devices and trusted.overlay.opaque.
//
// One image has many layers, each a directory 0, 1, ... of its root.

const (
	erofsBlock     = 4096
	erofsSlot      = 32
	erofsInodeSize = 64
	erofsMagic     = 0xE0F5E1E2
	erofsSuper     = 1024 // where the superblock is
)

// Layouts of an inode's content.
const (
	erofsPlain  = 0 // whole blocks elsewhere
	erofsInline = 2 // the last part is behind the inode
)

// A layerMeta is the metadata of one layer, relative to where it will lie. It is computed once, whatever images it is in.
type layerMeta struct {
	dir    string
	meta   []byte // whole blocks
	nids   []int  // offsets in meta of nids, as entries of directories have them
	blocks []int  // offsets in meta of block numbers that count from the beginning of meta
	data   []int  // offsets in meta of block numbers that count from the beginning of the data
	files  []fileData
	size   int64 // of the data, in blocks
	inodes int64

	changing bool // others write to it: what was cut off meanwhile reads as zeros
}

// fileData is the content of a file.
type fileData struct {
	block int64 // first, from the beginning of the layer's data
	size  int64
	at    *foreign.Level // in the layer's directory
}

// metaOf reads the metadata of a layer directory.
func metaOf(dir string) (*layerMeta, error) {
	fail := func(err error) (*layerMeta, error) { return nil, fmt.Errorf("read layer %s: %w", dir, err) }
	c, err := foreign.NewCursor(dir, 0)
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	b := metaBuilder{layerMeta: &layerMeta{dir: dir}, links: map[fileKey]*erofsNode{}}
	root, err := b.readDir(c)
	if err == nil {
		b.place(root)
		err = b.write(root)
	}
	if err != nil {
		return fail(err)
	}
	if rest := len(b.meta) % erofsBlock; rest > 0 {
		b.meta = append(b.meta, make([]byte, erofsBlock-rest)...)
	}
	return b.layerMeta, nil
}

type fileKey struct{ dev, ino uint64 }

// An erofsNode is one inode.
type erofsNode struct {
	at     *foreign.Level // in the layer
	stat   unix.Stat_t
	xattrs []byte
	link   string
	kids   []erofsEntry
	nlink  uint32
	offset int // in meta; of a root always 0
	placed bool
	done   bool
}

type erofsEntry struct {
	name string
	node *erofsNode
}

type metaBuilder struct {
	*layerMeta
	links map[fileKey]*erofsNode
	end   int // of what is placed
}

// readDir reads the directory where a cursor is, with all below it.
func (b *metaBuilder) readDir(c *foreign.Cursor) (*erofsNode, error) {
	n := &erofsNode{at: c.Level(), nlink: 2}
	if err := unix.Fstat(c.FD(), &n.stat); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: n.at.Short(), Err: err}
	}
	var err error
	if n.xattrs, err = erofsXattrs(rootfs.ProcFD(c.FD())+"/.", n.at); err != nil {
		return nil, err
	}
	entries, err := c.ReadDir()
	if err != nil {
		return nil, err
	}
	n.kids = append(make([]erofsEntry, 0, len(entries)+2), erofsEntry{".", n}, erofsEntry{"..", nil})
	for _, e := range entries {
		if err := layers.CheckDepth(n.at, e.Name()); err != nil {
			return nil, err
		}
		kid, err := b.readEntry(c, e.Name())
		if err != nil {
			return nil, err
		}
		n.kids = append(n.kids, erofsEntry{e.Name(), kid})
		if kid.stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			n.nlink++
			kid.kids[slices.IndexFunc(kid.kids, func(e erofsEntry) bool { return e.name == ".." })].node = n
		}
	}
	n.sort()
	return n, nil
}

func (b *metaBuilder) readEntry(c *foreign.Cursor, name string) (*erofsNode, error) {
	n := &erofsNode{at: c.Level().Child(name), nlink: 1}
	fail := func(op string, err error) (*erofsNode, error) {
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
	if n.xattrs, err = erofsXattrs(path, n.at); err != nil {
		return nil, err
	}
	if kind == unix.S_IFLNK {
		if n.link, err = os.Readlink(path); err != nil {
			return fail("readlink", err)
		}
	}
	return n, nil
}

func (n *erofsNode) sort() {
	slices.SortFunc(n.kids, func(a, b erofsEntry) int { return cmp.Compare(a.name, b.name) })
	for i := range n.kids {
		if n.kids[i].node == nil { // of a root: itself, until an image has it
			n.kids[i].node = n
		}
	}
}

// Indexes of the names that begin extended attributes.
var erofsPrefixes = []struct {
	prefix string
	index  byte
}{
	{"user.", 1}, {"system.posix_acl_access", 2}, {"system.posix_acl_default", 3}, {"trusted.", 4}, {"security.", 6},
}

// erofsXattrs reads the extended attributes of a file in their form on disk; nil if there are none. at is for messages.
func erofsXattrs(name string, at *foreign.Level) ([]byte, error) {
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
		i := slices.IndexFunc(erofsPrefixes, func(p struct {
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
		rest := strings.TrimPrefix(key, erofsPrefixes[i].prefix)
		if all == nil {
			all = make([]byte, 12) // the header: no shared attributes
		}
		all = append(all, byte(len(rest)), erofsPrefixes[i].index)
		all = binary.LittleEndian.AppendUint16(all, uint16(size))
		all = append(append(all, rest...), value[:size]...)
		for len(all)%4 != 0 {
			all = append(all, 0)
		}
	}
	return all, nil
}

// dirSize is how many bytes of a directory's content there are: each block has the entries, then their names.
func (n *erofsNode) dirSize() int {
	size, used := 0, 0
	for _, k := range n.kids {
		need := 12 + len(k.name)
		if used+need > erofsBlock {
			size, used = size+erofsBlock, 0
		}
		used += need
	}
	return size + used
}

// tail is the size of the content that goes behind the inode; 0 if it goes into blocks.
func (n *erofsNode) tail() int {
	size := 0
	switch n.stat.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		size = len(n.link)
	case unix.S_IFDIR:
		size = n.dirSize()
	}
	if erofsInodeSize+len(n.xattrs)+size > erofsBlock {
		return 0
	}
	return size
}

// place gives a node and all below it their offsets.
func (b *metaBuilder) place(n *erofsNode) {
	if n.placed {
		return
	}
	n.placed = true
	b.inodes++
	size := erofsInodeSize + len(n.xattrs) + n.tail()
	if n.tail() > 0 && b.end/erofsBlock != (b.end+size-1)/erofsBlock {
		b.end = roundUp(b.end, erofsBlock) // what is behind an inode must not cross a block's border
	}
	n.offset = b.end
	b.end = roundUp(b.end+size, erofsSlot)
	for _, k := range n.kids {
		if k.name != "." && k.name != ".." {
			b.place(k.node)
		}
	}
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// write writes placed nodes. Directories and links too large for their place go behind all inodes.
func (b *metaBuilder) write(root *erofsNode) error {
	b.meta = make([]byte, roundUp(b.end, erofsBlock))
	return b.writeNode(root)
}

func (b *metaBuilder) writeNode(n *erofsNode) error {
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
	layout := uint16(erofsPlain)
	if n.tail() > 0 {
		layout = erofsInline
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
	le.PutUint32(i[20:], uint32(n.offset/erofsSlot+1))
	le.PutUint32(i[24:], n.stat.Uid)
	le.PutUint32(i[28:], n.stat.Gid)
	le.PutUint64(i[32:], uint64(n.stat.Mtim.Sec))
	le.PutUint32(i[40:], uint32(n.stat.Mtim.Nsec))
	le.PutUint32(i[44:], n.nlink)
	copy(i[erofsInodeSize:], n.xattrs)
	switch {
	case n.stat.Mode&unix.S_IFMT == unix.S_IFREG && size > 0:
		le.PutUint32(i[16:], uint32(b.size))
		b.data = append(b.data, n.offset+16)
		b.files = append(b.files, fileData{b.size, size, n.at})
		if b.size += (size + erofsBlock - 1) / erofsBlock; b.size > 1<<32-1 {
			return errors.New("it is larger than 16 TiB")
		}
	case layout == erofsInline:
		at := n.offset + erofsInodeSize + len(n.xattrs)
		copy(b.meta[at:], content)
		for _, e := range entries {
			b.nids = append(b.nids, at+e)
		}
	case len(content) > 0:
		at := len(b.meta)
		b.meta = append(b.meta, make([]byte, roundUp(len(content), erofsBlock))...)
		copy(b.meta[at:], content)
		le.PutUint32(b.meta[n.offset+16:], uint32(at/erofsBlock))
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
func (n *erofsNode) dirContent() (content []byte, nids []int) {
	le := binary.LittleEndian
	for rest := n.kids; len(rest) > 0; {
		for len(content)%erofsBlock != 0 {
			content = append(content, 0)
		}
		used, count := 0, 0
		for count < len(rest) && used+12+len(rest[count].name) <= erofsBlock {
			used += 12 + len(rest[count].name)
			count++
		}
		name := 12 * count
		for _, k := range rest[:count] {
			nids = append(nids, len(content))
			content = le.AppendUint64(content, uint64(k.node.offset/erofsSlot))
			content = le.AppendUint16(content, uint16(name))
			content = append(content, erofsType(k.node.stat.Mode), 0)
			name += len(k.name)
		}
		for _, k := range rest[:count] {
			content = append(content, k.name...)
		}
		rest = rest[count:]
	}
	return content, nids
}

func erofsType(mode uint32) byte {
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

// An erofsImage is a whole image.
type erofsImage struct {
	meta   []byte // its beginning
	layers []erofsPart
	size   int64
}

// An erofsPart is where the data of a layer is.
type erofsPart struct {
	*layerMeta
	start int64 // of its data, in bytes
}

// newImage makes an image whose root has the layers as directories 0, 1, ...
func newImage(list []*layerMeta) (*erofsImage, error) {
	le := binary.LittleEndian
	// The root is built as a layer with nothing but the layers' own roots.
	root := &erofsNode{at: &foreign.Level{}, nlink: 2 + uint32(len(list))}
	root.stat.Mode = unix.S_IFDIR | 0o755
	root.kids = []erofsEntry{{".", root}, {"..", root}}
	b := metaBuilder{layerMeta: &layerMeta{}}
	tops := make([]*erofsNode, len(list))
	for i := range list {
		tops[i] = &erofsNode{placed: true, done: true}
		tops[i].stat.Mode = unix.S_IFDIR
		root.kids = append(root.kids, erofsEntry{fmt.Sprint(i), tops[i]})
	}
	root.sort()
	b.place(root)
	// Where all lies must be known before the root is written. Its own size does not depend on it.
	dir := roundUp(root.dirSize(), erofsBlock)
	head := erofsBlock + roundUp(b.end, erofsBlock)
	if root.tail() == 0 {
		head += dir
	}
	img := &erofsImage{}
	at := head
	for i, l := range list {
		tops[i].offset = at - erofsBlock // meta begins behind the superblock's block
		at += len(l.meta)
	}
	if err := b.write(root); err != nil {
		return nil, err
	}
	if len(b.meta) != head-erofsBlock {
		return nil, fmt.Errorf("an image's root takes %d bytes instead of %d", len(b.meta), head-erofsBlock)
	}
	for _, off := range b.blocks {
		le.PutUint32(b.meta[off:], le.Uint32(b.meta[off:])+1)
	}
	img.meta = append(make([]byte, erofsBlock, at), b.meta...)
	data := int64(at)
	inodes := b.inodes
	for _, l := range list {
		base := len(img.meta)
		img.meta = append(img.meta, l.meta...)
		own := img.meta[base:]
		for _, off := range l.nids {
			le.PutUint64(own[off:], le.Uint64(own[off:])+uint64((base-erofsBlock)/erofsSlot))
		}
		for _, off := range l.blocks {
			le.PutUint32(own[off:], le.Uint32(own[off:])+uint32(base/erofsBlock))
		}
		for _, off := range l.data {
			le.PutUint32(own[off:], le.Uint32(own[off:])+uint32(data/erofsBlock))
		}
		img.layers = append(img.layers, erofsPart{l, data})
		data += l.size * erofsBlock
		inodes += l.inodes
	}
	if data/erofsBlock > 1<<32-1 {
		return nil, errors.New("the layers are larger than 16 TiB")
	}
	img.size = data
	super := img.meta[erofsSuper:]
	le.PutUint32(super[0:], erofsMagic)
	super[12] = 12 // bits of a block's size
	le.PutUint16(super[14:], uint16(root.offset/erofsSlot))
	le.PutUint64(super[16:], uint64(inodes))
	le.PutUint32(super[36:], uint32(data/erofsBlock))
	le.PutUint32(super[40:], 1) // block of meta
	return img, nil
}

// readAt reads from the image. What lies behind the end of a file is zeros. open opens a file of a layer.
func (img *erofsImage) readAt(p []byte, off int64, open func(dir string, at *foreign.Level) (*os.File, error)) error {
	clear(p)
	if off < int64(len(img.meta)) {
		n := copy(p, img.meta[off:])
		p, off = p[n:], off+int64(n)
	}
	for len(p) > 0 && off < img.size {
		i, found := slices.BinarySearchFunc(img.layers, off, func(l erofsPart, off int64) int { return cmp.Compare(l.start, off) })
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
func (l *erofsPart) readData(p []byte, off int64, open func(string, *foreign.Level) (*os.File, error)) (int, error) {
	block := off / erofsBlock
	i, found := slices.BinarySearchFunc(l.files, block, func(f fileData, block int64) int { return cmp.Compare(f.block, block) })
	if !found {
		i--
	}
	f := l.files[i]
	off -= f.block * erofsBlock
	end := (f.size + erofsBlock - 1) / erofsBlock * erofsBlock
	n := int(min(int64(len(p)), end-off))
	if off >= f.size {
		return n, nil
	}
	file, err := open(l.dir, f.at)
	if err != nil {
		return 0, err
	}
	want := p[:min(int64(n), f.size-off)]
	if m, err := file.ReadAt(want, off); m < len(want) && !(l.changing && errors.Is(err, io.EOF)) {
		return 0, fmt.Errorf("read %s: %w", file.Name(), err)
	}
	return n, nil
}
