package cas

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// epoch names this boot, and a mount in this boot: that of dir, unless mount says which. Both are "" when the boot cannot be told.
func epoch(dir, mount string) (boot, epoch string) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(bytes.TrimSpace(id)) == 0 {
		return "", ""
	}
	here, err := mountOf(dir)
	if err != nil {
		return "", ""
	}
	if device, _, _ := strings.Cut(here, " "); strings.HasPrefix(mount, device+" ") {
		here = mount
	}
	h := func(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s)))[:32] }
	return h(string(id)), h(string(id) + " " + here)
}

// mountOf names the mount that a directory is on, by its device and its own number. The kernel never uses a unique mount id twice: a copy of the
// file system is another even when it is mounted in the same place from the same device number. Linux before 6.8 has only ids that are used again.
func mountOf(dir string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return "", err
	}
	if st.Mask&(unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE) == 0 {
		st.Mnt_id = 0
	}
	return fmt.Sprintf("%d:%d %d", st.Dev_major, st.Dev_minor, st.Mnt_id), nil
}

// MountOf names the mount that a store in dir is on, or will be on, for OpenOn; "" where that cannot be told.
func MountOf(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	for {
		mount, err := mountOf(dir)
		switch {
		case err == nil:
			return mount
		case !errors.Is(err, fs.ErrNotExist) || dir == "/":
			return ""
		}
		dir = filepath.Dir(dir)
	}
}

// flush makes durable what was written to the store.
func (s *Store) flush([]*os.File) error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// dirtyBytes is about how many bytes flush would have to write: those that wait in the page cache, of all file systems. It is 0
// where that cannot be told.
func dirtyBytes() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(lines.Text(), "Dirty: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

// placeWarnings looks where a store is.
func placeWarnings(dir string) []string {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return nil
	}
	const advice = " Use --store or $OBX_STORE to put it on a local ext4, xfs or btrfs."
	switch uint32(st.Type) {
	case unix.OVERLAYFS_SUPER_MAGIC:
		return []string{"The store " + dir + " is on overlayfs, on which no other overlay can write: steps will fail." + advice}
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.V9FS_MAGIC,
		unix.CEPH_SUPER_MAGIC:
		return []string{"The store " + dir + " is on a network file system: it is slow, has no overlays, and its locks may " +
			"not end with their holder." + advice}
	}
	return nil
}
