package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/qemu/words"
	"github.com/ocurrent/obx/layers"
)

// Find finds the disk in a chain of layer directories (paths, base first). The lowest one tells whether there is one: what an
// ordinary image has in disk/ are files like any. files is empty if there is none; rest are the layers that are not on the disk yet.
func Find(dirs []string) (files, rest []string, err error) {
	known := map[string]*Header{}
	paths := map[string]string{}
	top := ""
	for i, d := range dirs {
		file, h, err := diskIn(d, i == 0)
		if err != nil {
			return nil, nil, err
		}
		if h == nil {
			if i == 0 {
				return nil, nil, nil
			}
			rest = append(rest, d)
			continue
		}
		name := filepath.Base(file)
		if i == 0 {
			name = layers.DiskName(0) // containerDisks name theirs as they like
		}
		if known[name] != nil {
			return nil, nil, fmt.Errorf("a layer has a disk with the name %s", name)
		}
		known[name], paths[name], top, rest = h, file, name, nil
	}
	for name := top; name != ""; {
		h := known[name]
		if h == nil {
			return nil, nil, fmt.Errorf("the disk %s is in no layer", name)
		}
		delete(known, name) // so that no chain is a circle
		files = append([]string{paths[name]}, files...)
		name = h.Backing
	}
	return files, rest, nil
}

// diskIn finds the file of a disk in a layer directory and reads its header, which is nil if there is none. A layer may have anything
// in the file's place: no link is followed, and nothing but a regular file is opened.
func diskIn(dir string, base bool) (string, *Header, error) {
	d, err := os.OpenFile(filepath.Join(dir, layers.DiskDir), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return "", nil, err
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return !e.Type().IsRegular() || path.Ext(e.Name()) != ".qcow2" || !base && !layers.IsDiskName(e.Name())
	})
	switch {
	case len(entries) == 0:
		return "", nil, nil
	case len(entries) > 1:
		return "", nil, fmt.Errorf("a layer has %d disks", len(entries))
	}
	name := entries[0].Name()
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	h, err := ReadHeader(f)
	if err != nil {
		return "", nil, fmt.Errorf("disk image %s: %w", name, err)
	}
	return filepath.Join(dir, layers.DiskDir, name), &h, nil
}

// Has reports whether a layer directory that is not the lowest has a file of a disk. The error is that it cannot be told, or what is wrong with the file.
func Has(dir string) (bool, error) {
	_, h, err := diskIn(dir, false)
	return h != nil, err
}

// Create makes a file for what is written from now on to the disk whose topmost file is below: an empty one of the same size, DIR/disk/NNN.qcow2 with
// the number n. It takes that below has the number n-1.
func Create(ctx context.Context, dir, below string, n int) (file string, err error) {
	f, err := os.Open(below)
	if err != nil {
		return "", err
	}
	h, err := ReadHeader(f)
	f.Close()
	if err != nil {
		return "", err
	}
	file = filepath.Join(dir, layers.DiskDir, layers.DiskName(n))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	return file, qemuImg(ctx, "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", layers.DiskName(n-1), file, strconv.FormatInt(h.Size, 10))
}

func qemuImg(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("disk images need qemu-img: %w: try `apt-get install qemu-utils`", err)
	}
	if err != nil {
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, words.Last(string(out), 2))
	}
	return nil
}

// Squash makes file, the next of a chain, one that has all changes since the base: who has it open goes on with the old one. The chain's files, base
// first, stay. tmp is a directory on the same file system.
func Squash(ctx context.Context, tmp string, chain []string, file string) error {
	dir, err := os.MkdirTemp(tmp, "squash-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// qemu-img follows names: in a directory of links, they are what they are in the image.
	for i, f := range chain {
		name := filepath.Base(f)
		if i == 0 {
			name = layers.DiskName(0)
		}
		if err := os.Symlink(f, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	top := filepath.Join(dir, filepath.Base(file))
	if err := copyFile(top, file); err != nil {
		return err
	}
	// Not convert: with a backing file it copies what the topmost file has, and no more.
	cmd := exec.CommandContext(ctx, "qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", layers.DiskName(0), filepath.Base(file))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img rebase: %w: %s", err, words.Last(string(out), 2))
	}
	if err := os.Chmod(top, 0o644); err != nil {
		return err
	}
	return os.Rename(top, file)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
