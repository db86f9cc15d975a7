package layers

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"io"
	"testing"

	"github.com/Microsoft/go-winio"
	"github.com/Microsoft/go-winio/backuptar"

	"github.com/ocurrent/obx/cas"
)

// TestWindowsSecurityOfSystem compares descriptors with what Windows itself makes of their meaning in SDDL.
func TestWindowsSecurityOfSystem(t *testing.T) {
	admin, user := windowsSecurity(""), windowsSecurity("containeruser")
	const dirs = "(A;OICI;0x1200a9;;;BU)(A;CI;LC;;;BU)(A;CI;DC;;;BU)"
	for _, test := range []struct {
		got  []byte
		sddl string
	}{
		{admin.ofFiles(), "O:BAG:SYD:(A;;FA;;;SY)(A;;FA;;;BA)(A;;0x1200a9;;;BU)"},
		{admin.ofDirs(true), "O:BAG:SYD:(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)" + dirs},
		{user.ofFiles(), "O:S-1-5-93-2-2G:SYD:(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;S-1-5-93-2-2)(A;;0x1200a9;;;BU)"},
		{user.ofDirs(false), "O:BAG:SYD:(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)" + dirs},
	} {
		// Through the system in both directions, since it may order the parts of a descriptor as it likes.
		want, err := winio.SddlToSecurityDescriptor(test.sddl)
		if err != nil {
			t.Fatal(err)
		}
		wantText, err := winio.SecurityDescriptorToSddl(want)
		if err != nil {
			t.Fatal(err)
		}
		gotText, err := winio.SecurityDescriptorToSddl(test.got)
		if err != nil || gotText != wantText {
			t.Errorf("got %s, %v, want %s", gotText, err, wantText)
		}
	}
}

// TestWindowsCopyByBackuptar reads a copy's layer as hcsshim does, which is by go-winio's backuptar: attributes, times, security descriptors,
// kinds of links, and the backup streams that are written to a disk.
func TestWindowsCopyByBackuptar(t *testing.T) {
	from := windowsSource()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	c := Copy{From: from, Parent: windowsParent(), Dst: "C:/new/", Items: winItems(t, from, "f", "d")}
	l, err := MakeWindowsCopy(t.Context(), st, c, Compression{Algorithm: "none"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := st.Blob(l.Blob.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := tar.NewReader(f)
	if _, err := r.Next(); err != nil { // Hives
		t.Fatal(err)
	}
	h, err := r.Next()
	for n := 0; ; n++ {
		if err == io.EOF {
			if n != 7 {
				t.Errorf("%d entries", n)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name, size, info, ferr := backuptar.FileInfoFromHeader(h)
		if ferr != nil {
			t.Fatalf("%s: %v", h.Name, ferr)
		}
		if name != h.Name || size != h.Size || info.FileAttributes&winDirectory != 0 != (h.Typeflag == tar.TypeDir || name == "Files/new/d/todir") {
			t.Errorf("%s: %s, %d, %+v", h.Name, name, size, info)
		}
		if h.ModTime.Unix() != 0 && info.LastWriteTime.Nanoseconds() != h.ModTime.UnixNano() {
			t.Errorf("%s: time %d, want %d", name, info.LastWriteTime.Nanoseconds(), h.ModTime.UnixNano())
		}
		sd, ferr := backuptar.SecurityDescriptorFromTarHeader(h)
		if ferr != nil || base64.StdEncoding.EncodeToString(sd) != h.PAXRecords[winSecurity] {
			t.Errorf("%s: security descriptor %x, %v", name, sd, ferr)
		}
		if h.Typeflag == tar.TypeSymlink {
			point, err := winio.DecodeReparsePoint(backuptar.EncodeReparsePointFromTarHeader(h))
			if err != nil || point.IsMountPoint || point.Target != map[string]string{"Files/new/d/todir": `..\d`, "Files/new/d/tofile": "g"}[name] {
				t.Errorf("%s: %+v, %v", name, point, err)
			}
		}
		var stream bytes.Buffer
		regular := h.Typeflag == tar.TypeReg
		h, err = backuptar.WriteBackupStreamFromTarFile(&stream, r, h) // and the next header, or io.EOF
		if err != nil && err != io.EOF {
			t.Fatalf("%s: %v", name, err)
		}
		if regular && !bytes.Contains(stream.Bytes(), from[name[len("Files/new/"):]].Data) {
			t.Errorf("%s: stream %q", name, stream.Bytes())
		}
	}
}
