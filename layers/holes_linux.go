package layers

import (
	"io"
	"io/fs"
	"iter"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An extent is a part of a file that has data. What lies between extents is holes.
type extent struct{ at, end int64 }

// extents finds the data of a file, which no hole is read for. It moves the file's offset.
func extents(fd int, size int64) iter.Seq2[extent, error] {
	return func(yield func(extent, error) bool) {
		for at := int64(0); at < size; {
			data, err := unix.Seek(fd, at, unix.SEEK_DATA)
			switch {
			case err == unix.ENXIO: // a hole up to the end
				return
			case err == unix.EINVAL && at == 0: // a file system that knows no holes
				yield(extent{0, size}, nil)
				return
			case err != nil:
				yield(extent{}, err)
				return
			}
			if data >= size { // it has become longer
				return
			}
			end, err := unix.Seek(fd, data, unix.SEEK_HOLE)
			if err != nil {
				if err == unix.ENXIO {
					err = errShrunk
				}
				yield(extent{}, err)
				return
			}
			at = min(end, size)
			if !yield(extent{data, at}, nil) {
				return
			}
		}
	}
}

// holesOf counts the bytes of a file's holes. It may move the file's offset.
func holesOf(fd int, st *unix.Stat_t) (int64, error) {
	if st.Blocks*512 >= st.Size {
		return 0, nil
	}
	holes := st.Size
	for e, err := range extents(fd, st.Size) {
		if err != nil {
			return 0, err
		}
		holes -= e.end - e.at
	}
	return holes, nil
}

// checkHoles refuses a file whose content nobody could read to its end in time, and leaves its offset at the beginning.
func checkHoles(fd int, name string, st *unix.Stat_t) error {
	if st.Size-st.Blocks*512 <= maxHoles {
		return nil
	}
	holes, err := holesOf(fd, st)
	if err == nil && holes > maxHoles {
		err = tooSparse(holes)
	}
	if err == nil {
		_, err = unix.Seek(fd, 0, unix.SEEK_SET)
	}
	if err != nil {
		return &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return nil
}

// holesIn is holesOf for a file of a Tree, and leaves its offset at the beginning.
func holesIn(f fs.File, fi fs.FileInfo) (int64, error) {
	file, ok := f.(*os.File)
	st, ok2 := fi.Sys().(*syscall.Stat_t)
	if !ok || !ok2 || st.Blocks*512 >= st.Size {
		return 0, nil
	}
	holes, err := holesOf(int(file.Fd()), (*unix.Stat_t)(unsafe.Pointer(st)))
	if err != nil {
		return 0, err
	}
	_, err = file.Seek(0, io.SeekStart)
	return holes, err
}
