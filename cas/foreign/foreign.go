// Package foreign handles files and directories that somebody else has made or may change meanwhile: a step, an image, another user. Nothing
// in it follows a link out of what it was given, waits for the other end of a pipe, or depends on how deep a tree is:
//
//	OpenFile, OpenIn, ReadFile   a regular file, or an error at once; ListIn is for directories
//	Cursor                       a walk through directories by descriptors, few of which are open at a time
//	OpenBeneath                  a file by a relative path of any length that leads through no link
//	RemoveAll, RemoveAt          all that is below a name, of any depth
//
// It does not know what the files are for.
package foreign

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// ErrNotRegular says that something is a directory, a device, a pipe or a socket where a file should be.
var ErrNotRegular = errors.New("it is not a regular file")

// OpenFile opens a regular file for reading. It never waits, as opening a pipe does, and touches no device.
func OpenFile(name string) (*os.File, error) {
	return openRegular(name, os.Stat, os.OpenFile)
}

// OpenIn is OpenFile for a name in a directory. Links that lead out of the directory are errors.
func OpenIn(root *os.Root, name string) (*os.File, error) {
	return openRegular(name, root.Stat, root.OpenFile)
}

func openRegular(name string, stat func(string) (fs.FileInfo, error), open func(string, int, fs.FileMode) (*os.File, error)) (*os.File, error) {
	// To open a device may do something. Whoever puts one there at this moment could have opened it himself.
	info, err := stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	f, err := open(name, os.O_RDONLY|dontWait, 0)
	if err != nil {
		return nil, err
	}
	info, err = f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ListIn lists the names in a directory of a directory, "." being that itself, in no order: at most n of them, or all if n is negative.
func ListIn(root *os.Root, dir string, n int) ([]string, error) {
	info, err := root.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: errNotDir}
	}
	f, err := root.OpenFile(dir, os.O_RDONLY|dontWait, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(n)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

var errNotDir = errors.New("it is not a directory")
