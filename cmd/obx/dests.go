package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ocurrent/obx/executor/build"
)

// checkOutputs finds, before anything is built, the outputs that could not be written, or not be used, after it.
func checkOutputs(outs []build.OutputSpec) error {
	for _, o := range outs {
		if o.Type == "docker" && len(o.Names) == 0 {
			return usage("for example -o type=docker,dest="+o.Dest+",name=app:dev", "--output type=docker,dest=%s: name is missing: docker load would make an image without a name", o.Dest)
		}
		if o.Dest == "" || o.Dest == "-" {
			continue
		}
		check := checkFileDest
		if o.Type == "local" || o.Dir {
			check = checkDirDest
		}
		if hint, err := check(o.Dest); err != nil {
			return usage(hint, "--output type=%s,dest=%s: %w", o.Type, o.Dest, err)
		}
	}
	return nil
}

// checkFileDest is for an output that appears by a rename, or is written to what cannot be replaced, as a device.
func checkFileDest(dest string) (hint string, err error) {
	switch info, err := os.Stat(dest); {
	case err == nil && info.IsDir():
		return "dest=" + filepath.Join(dest, "NAME") + " is a file in it", errors.New("it is a directory")
	case err == nil && !info.Mode().IsRegular():
		return "", nil
	}
	return checkWritable(filepath.Dir(dest))
}

// checkDirDest is for an output that is a directory, and is made with its parents where there is none.
func checkDirDest(dest string) (hint string, err error) {
	dir := filepath.Clean(dest)
	info, err := os.Stat(dir)
	for err != nil && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		info, err = os.Stat(dir)
	}
	if err == nil && !info.IsDir() {
		return "", errors.New(dir + " is not a directory")
	}
	return checkWritable(dir)
}

// checkWritable tries to make a file: on a file system that is read-only, and for a user who is not root, modes do not tell.
func checkWritable(dir string) (hint string, err error) {
	switch info, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return "mkdir -p " + shellQuote(dir) + " makes it", errors.New("there is no directory " + dir)
	case err == nil && !info.IsDir():
		return "", errors.New(dir + " is not a directory")
	}
	f, err := os.CreateTemp(dir, ".obx-*")
	if err != nil {
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			err = pe.Err
		}
		return "", fmt.Errorf("cannot write to directory %s: %w", dir, err)
	}
	return "", errors.Join(f.Close(), os.Remove(f.Name()))
}
