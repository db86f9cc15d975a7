package layers

import (
	"encoding/base64"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/windows"
)

// TestWindowsCopyKeepsDirectories copies into directories of a real file system: those that are there stay as they are.
func TestWindowsCopyKeepsDirectories(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.Mkdir(there, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := windows.UTF16PtrFromString(there)
	if err == nil {
		err = windows.SetFileAttributes(p, windows.FILE_ATTRIBUTE_DIRECTORY|windows.FILE_ATTRIBUTE_HIDDEN)
	}
	if err != nil {
		t.Fatal(err)
	}
	parent, err := DirTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	from := windowsSource()
	all, _, _, err := makeWindowsCopy(t, Copy{From: from, Parent: parent, Dst: "C:/there/new/", Items: winItems(t, from, "f")})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, h := range all {
		name := map[string]string{"Files/": ".", "Files/there/": "there"}[h.Name]
		if name == "" {
			continue
		}
		seen++
		x, err := parent.Xattrs(name)
		if err != nil {
			t.Fatal(err)
		}
		sd, err := base64.StdEncoding.DecodeString(h.PAXRecords[winSecurity])
		// Revision 1, self-relative.
		if err != nil || string(sd) != x[securityXattr] || len(sd) < 20 || sd[0] != 1 || binary.LittleEndian.Uint16(sd[2:])&0x8000 == 0 {
			t.Errorf("%s has the security descriptor %x, the directory %x; %v", h.Name, sd, x[securityXattr], err)
		}
		if got := h.PAXRecords[winAttributes]; got != x[attributesXattr] || name == "there" && got != "18" {
			t.Errorf("%s has the attributes %s, the directory %s", h.Name, got, x[attributesXattr])
		}
	}
	if seen != 2 {
		t.Errorf("%d directories", seen)
	}
}
