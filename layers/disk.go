package layers

import (
	"fmt"
	"strings"
)

// DiskDir is where layers of a disk image have the files of its disk, as KubeVirt's containerDisk has it.
const DiskDir = "disk"

const diskSuffix = ".qcow2"

// DiskName is how the nth file of a disk's chain is called; 0 is the base.
func DiskName(n int) string { return fmt.Sprintf("%03d%s", n, diskSuffix) }

// IsDiskName reports whether DiskName may have given a name.
func IsDiskName(name string) bool {
	n, ok := strings.CutSuffix(name, diskSuffix)
	return ok && 3 <= len(n) && len(n) <= 6 && strings.Trim(n, "0123456789") == ""
}
