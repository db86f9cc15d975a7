package layers

import "testing"

func TestDiskNames(t *testing.T) {
	for _, n := range []int{0, 7, 123, 123456} {
		if name := DiskName(n); !IsDiskName(name) {
			t.Errorf("%s is none", name)
		}
	}
	for _, name := range []string{"", ".qcow2", "01.qcow2", "1234567.qcow2", "001.qcow2.x", "001", "mine.qcow2", "-01.qcow2", "0x1.qcow2", "001.QCOW2", "a/001.qcow2"} {
		if IsDiskName(name) {
			t.Errorf("%q is one", name)
		}
	}
}
