package layerdisk

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// A Disk is a read-only disk that has images at offsets which are multiples of 1 MiB, and zeros everywhere else. Images are added and removed
// while it is served. The zero Disk has none.
type Disk struct {
	mu     sync.Mutex
	images []*placedImage
	next   int64 // where the next image goes; 0: at diskAlign

	files fileCache
}

type placedImage struct {
	*image
	at int64
}

const (
	diskAlign = 1 << 20
	diskSize  = 1 << 46
)

// Add puts an image on the disk whose root has layers as the directories 0, 1, ... It is at offset, and has size bytes. The error is that the
// layers are larger than an image or the disk can be, 16 and 64 TiB.
func (d *Disk) Add(list []*Layer) (offset, size int64, err error) {
	img, err := newImage(list)
	if err != nil {
		return 0, 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := max(d.next, diskAlign)
	if at+img.size > diskSize-diskAlign {
		return 0, 0, errors.New("the disk of layers is full")
	}
	d.next = (at + img.size + diskAlign - 1) / diskAlign * diskAlign
	d.images = append(d.images, &placedImage{img, at})
	return at, img.size, nil
}

// Remove takes the image at an offset off the disk, which nobody uses any more.
func (d *Disk) Remove(offset int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, img := range d.images {
		if img.at == offset {
			d.images = append(d.images[:i], d.images[i+1:]...)
			return
		}
	}
}

func (d *Disk) readAt(p []byte, off int64) error {
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

// A fileCache keeps the files that were opened last open: they are read in small pieces.
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
