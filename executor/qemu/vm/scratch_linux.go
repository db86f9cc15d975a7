package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// CopySparse copies the file with a name to an empty one, without its holes, and shares the blocks where the file system can.
func CopySparse(to *os.File, name string) error {
	from, err := os.Open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // holes up to the end
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, data), io.NewSectionReader(from, data, end-data)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// copyForQEMU makes a copy that QEMU's user may read.
func copyForQEMU(to, from string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	return errors.Join(CopySparse(out, from), out.Chmod(0o644), out.Close())
}

// scratchSize is what a step can write, if the host has as much.
const scratchSize = "256G"

// makeScratch makes an empty file system in a sparse file.
func makeScratch(ctx context.Context, name string) error {
	program, err := lookSbin("mke2fs")
	if err != nil {
		return fmt.Errorf("%w: try `apt-get install e2fsprogs`", err)
	}
	cmd := exec.CommandContext(ctx, program, "-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-I", "256", "-i", "65536",
		"-O", "^has_journal,^resize_inode,^metadata_csum,^huge_file,sparse_super2,uninit_bg", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0",
		name, scratchSize)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make a file system: mke2fs: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// lookSbin finds a program of the system's administrator, whatever PATH is.
func lookSbin(name string) (string, error) {
	p, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		p, err = exec.LookPath(filepath.Join(dir, name))
	}
	return p, err
}

// newScratch makes a writable disk that has no name, a copy of another.
func (k *Maker) newScratch(from string) (_ *os.File, err error) {
	to, err := os.CreateTemp(k.tmp, "scratch-")
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.Remove(to.Name()), to.Chmod(0o666)) // for QEMU, which is somebody else
	if err == nil {
		err = CopySparse(to, from)
	}
	if err != nil {
		to.Close()
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	return to, nil
}
