package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func newTestMounter(t *testing.T, old bool) *Mounter {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	m := &Mounter{empty: filepath.Join(dir, "empty"), void: filepath.Join(dir, "void")}
	m.old.Store(old)
	for _, d := range []string{m.empty, m.void} {
		if err := MakeEmpty(d); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// TestMounts mounts in both ways, also from directories whose names are longer than one option may be.
func TestMounts(t *testing.T) {
	deep := strings.Repeat("long", 50) + "/" + strings.Repeat("long", 50) + ":,\\ "
	for _, old := range []bool{false, true} {
		for _, test := range []struct {
			layers int
			dir    string
		}{{0, ""}, {1, ""}, {3, deep}, {499, ""}} {
			t.Run(fmt.Sprintf("old=%v,layers=%d,deep=%v", old, test.layers, test.dir != ""), func(t *testing.T) {
				t.Parallel()
				testMount(t, newTestMounter(t, old), test.layers, test.dir)
			})
		}
	}
}

func testMount(t *testing.T, mt *Mounter, n int, below string) {
	dir := filepath.Join(t.TempDir(), below)
	var m OverlayMount
	for i := range n {
		d := filepath.Join(dir, fmt.Sprint(i))
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"top", fmt.Sprint("f", i)} {
			if err := os.WriteFile(filepath.Join(d, name), []byte(fmt.Sprint(i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		m.Lower = append(m.Lower, d)
	}
	m.Upper, m.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{m.Upper, m.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f, err := mt.Mount(m)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root := ProcFD(int(f.Fd()))
	if n > 0 {
		for name, want := range map[string]string{"top": fmt.Sprint(n - 1), "f0": "0"} {
			if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v; want %q", name, got, err, want)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(root, "new"), []byte("new"), 0o644); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(m.Upper, "new")); err != nil || string(got) != "new" {
		t.Errorf("the upper directory: %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(m.Work, "work", "incompat", "volatile")); err != nil {
		t.Errorf("the mount is not volatile: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), t.TempDir()) {
		t.Errorf("the mount can be seen: %v", err)
	}

	if n == 0 {
		return
	}
	ro, err := mt.Mount(OverlayMount{Lower: m.Lower})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	root = ProcFD(int(ro.Fd()))
	if got, err := os.ReadFile(filepath.Join(root, "f0")); err != nil || string(got) != "0" {
		t.Errorf("read-only: %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o644); err == nil {
		t.Error("a mount without an upper directory can be written to")
	}
}

func TestMountErrors(t *testing.T) {
	mt := newTestMounter(t, false)
	_, err := mt.Mount(OverlayMount{Lower: []string{"/nosuch/layer", mt.empty}})
	if err == nil || !strings.Contains(err.Error(), "/nosuch/layer") || mt.old.Load() {
		t.Errorf("a missing layer: %v, old way %v", err, mt.old.Load())
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	for name, target := range map[string]string{
		"abs": "/d/sub", "rel": "d/sub", "up": "../../../../d", "loop": "loop", "ping": "pong", "pong": "ping",
		"dangling": "d/none/x", "d/back": "..", "file-link": "d/f", "out": dir, "magic": "/proc/self/root", "chain": "rel/../back/abs",
	} {
		if err := os.MkdirAll(filepath.Join(dir, "d/sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "d/f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := openRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(r.FD)
	for _, test := range []struct {
		name, found string
		missing     string
		err         error
	}{
		{name: "/", found: ""},
		{name: "", found: ""},
		{name: "/..", found: ""},
		{name: "/d//./sub/", found: "d/sub"},
		{name: "/abs", found: "d/sub"},
		{name: "rel/..", found: "d"},
		{name: "/up/sub", found: "d/sub"},
		{name: "/d/back/d/back", found: ""},
		{name: "/chain", found: "d/sub"},
		{name: "/file-link", found: "d/f"},
		{name: "/none/x/y", found: "", missing: "none/x/y"},
		{name: "/abs/x", found: "d/sub", missing: "x"},
		{name: "/dangling", found: "d", missing: "none/x"},
		{name: "/dangling/y", found: "d", missing: "none/x/y"},
		{name: "/magic/etc", found: "", missing: "proc/self/root/etc"},
		{name: "/out/x", found: "", missing: strings.TrimPrefix(dir, "/") + "/x"},
		{name: "/none/../d", err: unix.ENOENT},
		{name: "/d/f/x", err: unix.ENOTDIR},
		{name: "/file-link/x", err: unix.ENOTDIR},
		{name: "/loop", err: unix.ELOOP},
		{name: "/ping/x", err: unix.ELOOP},
	} {
		at, err := r.resolve(test.name)
		if err != test.err {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
		}
		if err == nil && (at.found != test.found || strings.Join(at.missing, "/") != test.missing) {
			t.Errorf("%s: %q and missing %q, want %q and %q", test.name, at.found, at.missing, test.found, test.missing)
		}
	}
}

// FuzzReadELF reads what an image may hold in place of a program.
func FuzzReadELF(f *testing.F) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	defer self.Close()
	head := make([]byte, 1024)
	if _, err := self.ReadAt(head, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(head)
	f.Add([]byte("\x7fELF"))
	f.Add(append([]byte("\x7fELF\x01\x02\x01"), make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		interpreter, err := readELF(strings.NewReader(string(data)), data[:min(len(data), 256)])
		if err != nil && interpreter != "" {
			t.Errorf("%q and %v", interpreter, err)
		}
	})
}
