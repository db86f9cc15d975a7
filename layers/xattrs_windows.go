package layers

import (
	"fmt"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Xattrs gives a file's attributes and security descriptor, by the names that they have in layers.
func (d *Dir) Xattrs(name string) (map[string]string, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sd, err := windows.GetSecurityInfo(windows.Handle(f.Fd()), windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.GROUP_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return nil, fmt.Errorf("read the security descriptor of %s: %w", name, err)
	}
	x := map[string]string{securityXattr: string(unsafe.Slice((*byte)(unsafe.Pointer(sd)), sd.Length()))}
	if data, ok := info.Sys().(*syscall.Win32FileAttributeData); ok {
		x[attributesXattr] = strconv.FormatUint(uint64(data.FileAttributes), 10)
	}
	return x, nil
}
