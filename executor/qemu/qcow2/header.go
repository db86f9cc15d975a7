package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ocurrent/obx/layers"
)

// A Header is what matters of the header of a qcow2 file.
type Header struct {
	Size    int64  // of the disk that a machine sees, in bytes; at most 64 TiB
	Backing string // the name of the file below it, as [layers.DiskName] gives it; "" if there is none
}

// Bits of a qcow2 header's incompatible features.
const (
	qcowDirty       = 1 << 0
	qcowCorrupt     = 1 << 1
	qcowDataFile    = 1 << 2
	qcowCompression = 1 << 3
	qcowExtendedL2  = 1 << 4
)

// Types of header extensions.
const (
	qcowExtEnd        = 0
	qcowExtBackingFmt = 0xE2792ACA
	qcowExtCrypto     = 0x0537be77
	qcowExtDataFile   = 0x44415441
)

const (
	maxDiskSize = 1 << 46
	maxHeader   = 1 << 16 // of a header with its extensions; they lie in the first cluster
)

// ReadHeader reads the header of a disk image that somebody else has made. It refuses whatever leads QEMU to another file or
// is not understood: data files, encryption, unknown features, and names of files below that are not of a
// chain. QEMU itself never follows the name.
func ReadHeader(r io.ReaderAt) (h Header, err error) {
	be := binary.BigEndian
	head := make([]byte, 112)
	n, err := r.ReadAt(head, 0)
	if n < 72 {
		return h, fmt.Errorf("not a qcow2 image: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	head = head[:n]
	if be.Uint32(head) != 0x514649fb { // "QFI\xfb"
		return h, errors.New("not a qcow2 image")
	}
	version := be.Uint32(head[4:])
	backingOffset, backingSize := be.Uint64(head[8:]), be.Uint32(head[16:])
	clusterBits, size := be.Uint32(head[20:]), be.Uint64(head[24:])
	if be.Uint32(head[32:]) != 0 {
		return h, errors.New("it is encrypted")
	}
	if clusterBits < 9 || clusterBits > 21 {
		return h, fmt.Errorf("its clusters have 2^%d bytes", clusterBits)
	}
	if size > maxDiskSize {
		return h, fmt.Errorf("the disk is larger than %d bytes", int64(maxDiskSize))
	}
	h.Size = int64(size)
	length := uint32(72)
	switch version {
	case 2:
	case 3:
		if len(head) < 104 {
			return h, io.ErrUnexpectedEOF
		}
		if err := checkFeatures(be.Uint64(head[72:])); err != nil {
			return h, err
		}
		if length = be.Uint32(head[100:]); length < 104 || length > maxHeader || length%8 != 0 {
			return h, fmt.Errorf("its header has %d bytes", length)
		}
	default:
		return h, fmt.Errorf("qcow2 version %d is unknown", version)
	}
	if err := checkExtensions(r, int64(length), int64(1)<<clusterBits); err != nil {
		return h, err
	}
	if backingOffset == 0 {
		return h, nil
	}
	if backingSize == 0 || backingSize > 32 || backingOffset > maxHeader {
		return h, errors.New("it needs a file below it that is not one of obx's" + convert)
	}
	name := make([]byte, backingSize)
	if _, err := r.ReadAt(name, int64(backingOffset)); err != nil {
		return h, fmt.Errorf("read the name of the file below: %w", err)
	}
	if !layers.IsDiskName(string(name)) {
		return h, fmt.Errorf("it needs %q below it, which is not one of obx's%s", name, convert)
	}
	h.Backing = string(name)
	return h, nil
}

func checkFeatures(bits uint64) error {
	switch {
	case bits&qcowDataFile != 0:
		return errors.New("its data is in another file")
	case bits&qcowCorrupt != 0:
		return errors.New("it is marked as corrupt")
	case bits&qcowDirty != 0:
		return errors.New("it is marked as in use: `qemu-img check -r all` repairs it")
	case bits&^(qcowCompression|qcowExtendedL2) != 0:
		return fmt.Errorf("it has unknown features (%#x)", bits)
	}
	return nil
}

// checkExtensions reads the header's extensions, which end before the first cluster does. It has to see their end: QEMU looks for it as long as the
// cluster goes.
func checkExtensions(r io.ReaderAt, at, end int64) error {
	be := binary.BigEndian
	end = min(end, maxHeader)
	for at+8 <= end {
		var head [8]byte
		if _, err := r.ReadAt(head[:], at); err != nil {
			if errors.Is(err, io.EOF) { // nothing follows the header
				return nil
			}
			return err
		}
		kind, size := be.Uint32(head[:]), int64(be.Uint32(head[4:]))
		if kind == qcowExtEnd {
			return nil
		}
		if size > end-at-8 {
			return errors.New("a header extension is too long")
		}
		switch kind {
		case qcowExtCrypto:
			return errors.New("it is encrypted")
		case qcowExtDataFile:
			return errors.New("its data is in another file")
		case qcowExtBackingFmt:
			format := make([]byte, min(size, 16))
			if _, err := r.ReadAt(format, at+8); err != nil {
				return err
			}
			if string(format) != "qcow2" {
				return fmt.Errorf("the file below it has the format %q", format)
			}
		}
		at += 8 + (size+7)/8*8
	}
	return errors.New("its header extensions do not end")
}

const convert = ": make one file of both with `qemu-img convert`"

// Check says why a file cannot be a base disk: one that stands alone.
func Check(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := ReadHeader(f)
	if err == nil && h.Backing != "" {
		err = errors.New("it needs another file below it" + convert)
	}
	if err != nil {
		return fmt.Errorf("disk image %s: %w", name, err)
	}
	return nil
}
