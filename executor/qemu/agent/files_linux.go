package main

import (
	"archive/tar"
	"strings"

	"golang.org/x/sys/unix"
)

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
