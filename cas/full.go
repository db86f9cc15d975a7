package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A FullError says that the disk that a store is on has no room.
type FullError struct {
	Store string
	Err   error // may be nil
}

const fullText = "the disk of the store %s is full: `obx cache prune` removes what belongs to no result, and with --older-than 1d, --keep-bytes SIZE or --all more"

func (e *FullError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf(fullText, e.Store)
	}
	return fmt.Sprintf("%v: "+fullText, e.Err, e.Store)
}

func (e *FullError) Unwrap() error { return e.Err }

// isFull reports whether err is for want of space.
func isFull(err error) bool { return errors.Is(err, errNoSpace) || errors.Is(err, errQuota) }

// Full makes an error that is for want of space in the store a FullError. Others stay as they are, as that of an output on another disk.
func (s *Store) Full(err error) error {
	if !isFull(err) || errors.As(err, new(*FullError)) {
		return err
	}
	var (
		one  *fs.PathError
		link *os.LinkError
		path string
	)
	switch {
	case errors.As(err, &one):
		path = one.Path
	case errors.As(err, &link):
		path = link.New
	}
	if filepath.IsAbs(path) && path != s.dir && !strings.HasPrefix(path, s.dir+string(filepath.Separator)) {
		return err
	}
	if _, low, _ := s.room(); path == "" && !low { // it is of another disk
		return err
	}
	return &FullError{s.dir, err}
}

// lowRoom is what a store wants to be free, in bytes: below it, nothing stays in the trash.
const lowRoom = 1 << 30

// room is what is free on the disk of the store, and whether that is next to nothing: then what fails there may have failed for it.
func (s *Store) room() (free uint64, low, full bool) {
	d, err := diskSpace(s.dir)
	if err != nil {
		return 0, false, false
	}
	inodesLow := d.inodes > 0 && d.freeInodes < d.inodes/20
	return d.free, d.free < lowRoom || d.free < d.size/20 || inodesLow, d.free < min(d.size/100, 1<<20) || d.inodes > 0 && d.freeInodes == 0
}

// A space is what is on a disk: in bytes, and in inodes, of which some file systems have no number.
type space struct{ size, free, inodes, freeInodes uint64 }

// IsFull reports a disk that has next to no room, for which a command in a sandbox may have failed.
func (s *Store) IsFull() bool {
	_, _, full := s.room()
	return full
}

// MakeRoom empties the trash where there is little room on the disk, and else leaves that to the background.
func (s *Store) MakeRoom(ctx context.Context) {
	if _, low, _ := s.room(); low {
		s.EmptyTrash(ctx)
	}
}

// WithRoom does what writes into the store, once more where there was no room for it and the trash had some.
func (s *Store) WithRoom(ctx context.Context, do func() error) error {
	s.MakeRoom(ctx)
	err := do()
	if !isFull(err) || ctx.Err() != nil {
		return err
	}
	if entries, lerr := os.ReadDir(s.path(trashDir)); lerr != nil || len(entries) == 0 {
		return err
	}
	s.EmptyTrash(ctx)
	return do()
}
