package main

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/layers"
)

func files() (tree, error) {
	t, err := layers.DirTree("/")
	if err != nil {
		return nil, err
	}
	if _, err := t.Lstat("."); errors.Is(err, unix.ENOSYS) {
		t.Close()
		return oldTree()
	}
	return t, nil
}

// A rootTree is a tree on kernels that lack openat2.
type rootTree struct {
	*os.Root
	fs.ReadLinkFS
}

func oldTree() (tree, error) {
	root, err := os.OpenRoot("/")
	if err != nil {
		return nil, err
	}
	return rootTree{root, root.FS().(fs.ReadLinkFS)}, nil
}

func (t rootTree) Open(name string) (fs.File, error)          { return t.ReadLinkFS.Open(name) }
func (t rootTree) Lstat(name string) (fs.FileInfo, error)     { return t.ReadLinkFS.Lstat(name) }
func (t rootTree) ReadLink(name string) (string, error)       { return t.ReadLinkFS.ReadLink(name) }
func (t rootTree) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(t.ReadLinkFS, name) }
func (t rootTree) Xattrs(string) (map[string]string, error)   { return nil, nil }

// passingTypes are file systems of the kernel, and those in memory: what they have is gone with the machine.
var passingTypes = map[uint32]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.TMPFS_MAGIC: true, unix.RAMFS_MAGIC: true, unix.DEVPTS_SUPER_MAGIC: true,
	unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true,
	unix.BPF_FS_MAGIC: true, unix.HUGETLBFS_MAGIC: true, unix.EFIVARFS_MAGIC: true, unix.AUTOFS_SUPER_MAGIC: true, unix.PSTOREFS_MAGIC: true,
}

// passing reports whether a directory is not on a disk.
func passing(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && passingTypes[uint32(st.Type)]
}

func setXattrs(at string, h *tar.Header) error {
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if err := unix.Lsetxattr(at, name, []byte(v), 0); err != nil {
				return err
			}
		}
	}
	return nil
}
