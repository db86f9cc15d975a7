package qcow2

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskFiles looks for disks in layers as hostile images may have them. Each layer is made of "NAME BACKING" disks, of links "NAME -> TARGET",
// and of other files.
func TestDiskFiles(t *testing.T) {
	outside := t.TempDir()
	newDisk(t, filepath.Join(outside, "host.qcow2"), "")
	for name, c := range map[string]struct {
		layers [][]string
		files  string // the last parts of what is found, with the number of the layer
		rest   string
		err    string
	}{
		"none":                  {layers: [][]string{{"etc/passwd"}, {"disk/001.qcow2 000.qcow2"}}},
		"base":                  {layers: [][]string{{"disk/any.qcow2"}}, files: "0/any.qcow2"},
		"chain":                 {layers: [][]string{{"disk/any.qcow2"}, {"disk/001.qcow2 000.qcow2"}, {"x"}, {"disk/002.qcow2 001.qcow2"}, {"y"}}, files: "0/any.qcow2 1/001.qcow2 3/002.qcow2", rest: "4"},
		"squashed":              {layers: [][]string{{"disk/000.qcow2"}, {"disk/001.qcow2 000.qcow2"}, {"disk/002.qcow2 000.qcow2"}}, files: "0/000.qcow2 2/002.qcow2"},
		"base with a number":    {layers: [][]string{{"disk/0007.qcow2"}, {"disk/001.qcow2 000.qcow2"}}, files: "0/0007.qcow2 1/001.qcow2"},
		"copied file":           {layers: [][]string{{"disk/000.qcow2"}, {"disk/mine.qcow2"}}, files: "0/000.qcow2", rest: "1"},
		"two in the base":       {layers: [][]string{{"disk/a.qcow2", "disk/b.qcow2"}}, err: "2 disks"},
		"two above":             {layers: [][]string{{"disk/000.qcow2"}, {"disk/001.qcow2 000.qcow2", "disk/002.qcow2 001.qcow2"}}, err: "2 disks"},
		"same name":             {layers: [][]string{{"disk/000.qcow2"}, {"disk/000.qcow2"}}, err: "000.qcow2"},
		"circle":                {layers: [][]string{{"disk/000.qcow2"}, {"disk/001.qcow2 002.qcow2"}, {"disk/002.qcow2 001.qcow2"}}, err: "in no layer"},
		"base is missing":       {layers: [][]string{{"disk/000.qcow2"}, {"disk/002.qcow2 001.qcow2"}}, err: "001.qcow2 is in no layer"},
		"directory is a link":   {layers: [][]string{{"disk -> " + outside}, {"disk/001.qcow2 000.qcow2"}}},
		"file is a link":        {layers: [][]string{{"disk/000.qcow2 -> " + outside + "/host.qcow2"}}},
		"overlay is a link":     {layers: [][]string{{"disk/000.qcow2"}, {"disk/001.qcow2 -> " + outside + "/host.qcow2"}}, files: "0/000.qcow2", rest: "1"},
		"file is a FIFO":        {layers: [][]string{{"disk/000.qcow2 fifo"}}},
		"overlay is a FIFO":     {layers: [][]string{{"disk/000.qcow2"}, {"disk/001.qcow2 fifo"}}, files: "0/000.qcow2", rest: "1"},
		"directory is a file":   {layers: [][]string{{"disk"}}},
		"overlay upon the host": {layers: [][]string{{"disk/000.qcow2"}, {"disk/001.qcow2 " + outside + "/host.qcow2"}}, err: "not one of obx's"},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			var dirs []string
			for i, layer := range c.layers {
				dir := filepath.Join(top, string(rune('0'+i)))
				dirs = append(dirs, dir)
				for _, file := range layer {
					makeFile(t, dir, file)
				}
			}
			files, rest, err := Find(dirs)
			short := func(list []string) string {
				for i, f := range list {
					list[i] = strings.ReplaceAll(strings.TrimPrefix(f, top+"/"), "/disk/", "/")
				}
				return strings.Join(list, " ")
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Fatalf("got the error %v, want %q", err, c.err)
			}
			if got := short(files); got != c.files {
				t.Errorf("found %q, want %q", got, c.files)
			}
			if got := short(rest); got != c.rest {
				t.Errorf("the rest is %q, want %q", got, c.rest)
			}
		})
	}
}

func makeFile(t *testing.T, dir, file string) {
	t.Helper()
	name, kind, _ := strings.Cut(file, " ")
	name = filepath.Join(dir, name)
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	target, link := strings.CutPrefix(kind, "-> ")
	switch {
	case err != nil:
	case link:
		err = os.Symlink(target, name)
	case kind == "fifo":
		err = unix.Mkfifo(name, 0o644)
	case filepath.Ext(name) != ".qcow2":
		err = os.WriteFile(name, nil, 0o644)
	default:
		newDisk(t, name, kind)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// newDisk makes an empty disk.
func newDisk(t *testing.T, name, backing string) {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2"}
	if backing != "" {
		args = append(args, "-u", "-F", "qcow2", "-b", backing)
	}
	if out, err := exec.Command("qemu-img", append(args, name, "1M")...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
}
