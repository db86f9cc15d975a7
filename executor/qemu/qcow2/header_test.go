package qcow2

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocurrent/obx/layers"
)

func makeDisk(t testing.TB, args ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.qcow2")
	args = append([]string{"create", "-q", "-f", "qcow2"}, args...)
	if out, err := exec.Command("qemu-img", append(args, name, "1G")...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return name
}

// TestReadHeader reads what qemu-img makes.
func TestReadHeader(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string // in the error
		back string
	}{
		{nil, "", ""},
		{[]string{"-o", "compat=0.10"}, "", ""},
		{[]string{"-o", "compression_type=zstd"}, "", ""},
		{[]string{"-o", "extended_l2=on,cluster_size=128k"}, "", ""},
		{[]string{"-u", "-b", "007.qcow2", "-F", "qcow2"}, "", "007.qcow2"},
		{[]string{"-u", "-b", "007.qcow2", "-F", "raw"}, "format", ""},
		{[]string{"-u", "-b", "/etc/shadow", "-F", "qcow2"}, "/etc/shadow", ""},
		{[]string{"-u", "-b", "../007.qcow2", "-F", "qcow2"}, "not one of obx's", ""},
		{[]string{"-u", "-b", "json:{\"driver\":\"nbd\",\"host\":\"x\"}", "-F", "qcow2"}, "not one of obx's", ""},
		{[]string{"-o", "data_file=" + filepath.Join(t.TempDir(), "data")}, "another file", ""},
	} {
		f, err := os.Open(makeDisk(t, test.args...))
		if err != nil {
			t.Fatal(err)
		}
		h, err := ReadHeader(f)
		f.Close()
		switch {
		case test.want == "" && (err != nil || h.Size != 1<<30 || h.Backing != test.back):
			t.Errorf("%q: %+v, %v", test.args, h, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%q: got %v, want %q", test.args, err, test.want)
		}
	}
}

// TestReadPatchedHeader reads headers that qemu-img does not make.
func TestReadPatchedHeader(t *testing.T) {
	good, err := os.ReadFile(makeDisk(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		at   int
		with []byte
		want string
	}{
		{"encrypted", 32, []byte{0, 0, 0, 1}, "encrypted"},
		{"luks", 32, []byte{0, 0, 0, 2}, "encrypted"},
		{"unknown feature", 72, []byte{0x80}, "unknown features"},
		{"next feature", 79, []byte{1 << 5}, "unknown features"},
		{"corrupt", 79, []byte{2}, "corrupt"},
		{"in use", 79, []byte{1}, "in use"},
		{"version", 4, []byte{0, 0, 0, 4}, "version 4"},
		{"clusters", 20, []byte{0, 0, 0, 30}, "clusters"},
		{"size", 24, []byte{0x7f}, "larger"},
		{"header's size", 100, []byte{0xff, 0xff, 0xff, 0xf8}, "its header"},
		{"name far away", 8, []byte{1}, "not one of obx's"},
		{"magic", 0, []byte{'x'}, "not a qcow2"},
	} {
		b := bytes.Clone(good)
		copy(b[test.at:], test.with)
		if _, err := ReadHeader(bytes.NewReader(b)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}

// farExtension is a header with an extension as long as this package reads, and a data file behind it.
func farExtension(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(makeDisk(t, "-o", "cluster_size=2M"))
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	at := be.Uint32(b[100:])
	be.PutUint32(b[at:], 0x12345678)
	be.PutUint32(b[at+4:], maxHeader-8-at)
	be.PutUint32(b[maxHeader:], qcowExtDataFile)
	be.PutUint32(b[maxHeader+4:], 4)
	copy(b[maxHeader+8:], "/etc")
	return b[:maxHeader+100]
}

func TestFarExtension(t *testing.T) {
	if _, err := ReadHeader(bytes.NewReader(farExtension(t))); err == nil || !strings.Contains(err.Error(), "do not end") {
		t.Errorf("got %v", err)
	}
}

func FuzzReadHeader(f *testing.F) {
	for _, args := range [][]string{nil, {"-u", "-b", "007.qcow2", "-F", "qcow2"}, {"-o", "compat=0.10"}} {
		b, err := os.ReadFile(makeDisk(f, args...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:1024])
	}
	f.Add(farExtension(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadHeader(bytes.NewReader(b))
		if err != nil {
			return
		}
		be := binary.BigEndian
		version, clusterBits := be.Uint32(b[4:]), be.Uint32(b[20:])
		if string(b[:4]) != "QFI\xfb" || version != 2 && version != 3 || clusterBits < 9 || clusterBits > 21 || be.Uint32(b[32:]) != 0 {
			t.Fatalf("%x is accepted", b[:72])
		}
		at := int64(72)
		if version == 3 {
			at = int64(be.Uint32(b[100:]))
		}
		for at+8 <= min(int64(len(b)), 1<<clusterBits) && be.Uint32(b[at:]) != qcowExtEnd {
			if kind := be.Uint32(b[at:]); kind == qcowExtCrypto || kind == qcowExtDataFile {
				t.Errorf("an extension %#x at %d is accepted", kind, at)
			}
			at += 8 + (int64(be.Uint32(b[at+4:]))+7)/8*8
		}
		if h.Size < 0 || h.Size > maxDiskSize || h.Backing != "" && !layers.IsDiskName(h.Backing) {
			t.Errorf("%+v is accepted", h)
		}
		if len(b) >= 104 && binary.BigEndian.Uint32(b[4:]) == 3 && binary.BigEndian.Uint64(b[72:])&^(qcowCompression|qcowExtendedL2) != 0 {
			t.Errorf("features %x are accepted", b[72:80])
		}
	})
}
