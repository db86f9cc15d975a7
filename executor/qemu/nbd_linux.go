package qemu

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// A layerDisk is a read-only disk that has images at offsets which are multiples of diskAlign, and zeros everywhere
// else. Images are added while a machine runs. It is served by the NBD protocol to one client, QEMU, over a socket that
// nobody else has.
type layerDisk struct {
	mu     sync.Mutex
	images []*placedImage
	next   int64

	files fileCache
}

type placedImage struct {
	*erofsImage
	at int64
}

const (
	diskAlign = 1 << 20
	diskSize  = 1 << 46
)

func newLayerDisk() *layerDisk { return &layerDisk{next: diskAlign} }

// add places an image and returns where it is.
func (d *layerDisk) add(img *erofsImage) (offset int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.next
	if at+img.size > diskSize-diskAlign {
		return 0, errors.New("the disk of layers is full")
	}
	d.next = (at + img.size + diskAlign - 1) / diskAlign * diskAlign
	d.images = append(d.images, &placedImage{img, at})
	return at, nil
}

// remove forgets an image that the machine does not use any more.
func (d *layerDisk) remove(offset int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, img := range d.images {
		if img.at == offset {
			d.images = append(d.images[:i], d.images[i+1:]...)
			return
		}
	}
}

func (d *layerDisk) readAt(p []byte, off int64) error {
	clear(p)
	d.mu.Lock()
	images := append([]*placedImage(nil), d.images...)
	d.mu.Unlock()
	for _, img := range images {
		from, to := max(off, img.at), min(off+int64(len(p)), img.at+img.size)
		if from >= to {
			continue
		}
		open := func(dir string, at *foreign.Level) (*os.File, error) { return d.files.open(openFile{img.at, dir, at}) }
		if err := img.readAt(p[from-off:to-off], from-img.at, open); err != nil {
			return err
		}
	}
	return nil
}

// A fileCache keeps the files that were read last open: a machine reads in small pieces.
type fileCache struct {
	files map[openFile]*os.File
	order []openFile
}

// An openFile is a file of an image. Another image may have another file of that name; no two ever have the same place.
type openFile struct {
	image int64
	dir   string         // of a layer
	at    *foreign.Level // in it
}

const maxOpenFiles = 64

// open is called by one goroutine.
func (c *fileCache) open(which openFile) (*os.File, error) {
	if f := c.files[which]; f != nil {
		return f, nil
	}
	fail := func(err error) (*os.File, error) {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(which.dir, which.at.Short()), Err: err}
	}
	dir, err := unix.Open(which.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	name := which.at.String()
	fd, err := foreign.OpenBeneath(dir, name, flags|unix.O_NOATIME)
	if err == unix.EPERM { // another's file
		fd, err = foreign.OpenBeneath(dir, name, flags)
	}
	if err != nil {
		return fail(err)
	}
	if c.files == nil {
		c.files = map[openFile]*os.File{}
	}
	if len(c.order) == maxOpenFiles {
		c.files[c.order[0]].Close()
		delete(c.files, c.order[0])
		c.order = c.order[1:]
	}
	f := os.NewFile(uintptr(fd), filepath.Join(which.dir, which.at.Short()))
	c.files[which], c.order = f, append(c.order, which)
	return f, nil
}

func (c *fileCache) close() {
	for _, f := range c.files {
		f.Close()
	}
}

// Numbers of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md).
const (
	nbdMagic        = 0x4e42444d41474943
	nbdOptMagic     = 0x49484156454F5054
	nbdReplyMagic   = 0x3e889045565a9
	nbdRequestMagic = 0x25609513
	nbdSimpleMagic  = 0x67446698

	nbdFixedNewstyle = 1
	nbdNoZeroes      = 2

	nbdOptAbort = 2
	nbdOptGo    = 7

	nbdRepAck      = 1
	nbdRepInfo     = 3
	nbdRepErrUnsup = 1<<31 | 1

	nbdFlags = 1 | 2 // has flags, read-only

	nbdCmdRead  = 0
	nbdCmdDisc  = 2
	nbdCmdFlush = 3

	nbdMaxRead   = 32 << 20
	nbdMaxOption = 64 << 10
)

// serve answers until the client goes. The first error of reading a layer is returned.
func (d *layerDisk) serve(conn net.Conn) error {
	defer d.files.close()
	defer conn.Close()
	in := bufio.NewReader(conn)
	if err := nbdHandshake(conn, in); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		return fmt.Errorf("serve layers: %w", err)
	}
	be := binary.BigEndian
	var failed error
	var buf []byte
	for {
		var req [28]byte
		if _, err := io.ReadFull(in, req[:]); err != nil {
			return failed
		}
		kind, off, size := be.Uint16(req[6:]), int64(be.Uint64(req[16:])), be.Uint32(req[24:])
		if be.Uint32(req[0:]) != nbdRequestMagic || size > nbdMaxRead {
			return errors.Join(failed, errors.New("serve layers: not a request"))
		}
		reply := make([]byte, 16)
		be.PutUint32(reply[0:], nbdSimpleMagic)
		copy(reply[8:], req[8:16])
		switch kind {
		case nbdCmdDisc:
			return failed
		case nbdCmdFlush:
		case nbdCmdRead:
			if int(size) > cap(buf) {
				buf = make([]byte, size)
			}
			if off < 0 || off > diskSize-int64(size) {
				be.PutUint32(reply[4:], uint32(unix.EINVAL))
				break
			}
			if err := d.readAt(buf[:size], off); err != nil {
				if failed == nil {
					failed = fmt.Errorf("serve layers: %w", err)
				}
				be.PutUint32(reply[4:], uint32(unix.EIO))
				break
			}
			v := net.Buffers{reply, buf[:size]}
			if _, err := v.WriteTo(conn); err != nil {
				return failed
			}
			continue
		default:
			be.PutUint32(reply[4:], uint32(unix.EINVAL))
		}
		if _, err := conn.Write(reply); err != nil {
			return failed
		}
	}
}

func nbdHandshake(conn io.Writer, in io.Reader) error {
	be := binary.BigEndian
	hello := be.AppendUint64(nil, nbdMagic)
	hello = be.AppendUint64(hello, nbdOptMagic)
	hello = be.AppendUint16(hello, nbdFixedNewstyle|nbdNoZeroes)
	if _, err := conn.Write(hello); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(in, flags[:]); err != nil {
		return err
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		option, size := be.Uint32(head[8:]), be.Uint32(head[12:])
		if be.Uint64(head[0:]) != nbdOptMagic || size > nbdMaxOption {
			return errors.New("not an option")
		}
		if _, err := io.CopyN(io.Discard, in, int64(size)); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) error {
			b := be.AppendUint64(nil, nbdReplyMagic)
			b = be.AppendUint32(b, option)
			b = be.AppendUint32(b, kind)
			b = be.AppendUint32(b, uint32(len(data)))
			_, err := conn.Write(append(b, data...))
			return err
		}
		switch option {
		case nbdOptGo:
			info := be.AppendUint16(nil, 0) // the export's size and flags
			info = be.AppendUint64(info, diskSize)
			info = be.AppendUint16(info, nbdFlags)
			if err := reply(nbdRepInfo, info); err != nil {
				return err
			}
			return reply(nbdRepAck, nil)
		case nbdOptAbort:
			return errors.Join(reply(nbdRepAck, nil), io.EOF)
		default:
			if err := reply(nbdRepErrUnsup, nil); err != nil {
				return err
			}
		}
	}
}
