package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocurrent/obx/conformance"
)

// A smallDisk is a file system of 64 MiB with a store on it.
type smallDisk struct {
	*testing.T
	base string // an image, elsewhere
	mnt  string
}

func newSmallDisk(t *testing.T, base string) *smallDisk {
	dir := t.TempDir()
	d := &smallDisk{t, base, filepath.Join(dir, "mnt")}
	image := filepath.Join(dir, "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Mkdir(d.mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	d.tool("mkfs.ext4", "-q", "-F", "-m", "0", image)
	d.tool("mount", "-o", "loop", image, d.mnt)
	t.Cleanup(func() { d.tool("umount", "-l", d.mnt) })
	return d
}

func (d *smallDisk) tool(name string, args ...string) {
	d.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// obx runs a command on the store, and returns what it prints.
func (d *smallDisk) obx(args ...string) (string, error) {
	cmd := exec.Command("obx", args...)
	cmd.Env = append(os.Environ(), "OBX_STORE="+filepath.Join(d.mnt, "store"), "XDG_CONFIG_HOME="+d.mnt)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// build runs the commands as steps upon an image.
func (d *smallDisk) build(base string, flags []string, commands ...string) (string, error) {
	d.Helper()
	spec := "((from base) (shell /bin/sh -c)"
	for _, c := range commands {
		spec += fmt.Sprintf("\n (run (shell %q))", c)
	}
	file := filepath.Join(d.TempDir(), "spec")
	if err := os.WriteFile(file, []byte(spec+")"), 0o644); err != nil {
		d.Fatal(err)
	}
	return d.obx(append([]string{"run", "--base", "base=" + base, file}, flags...)...)
}

func (d *smallDisk) must(out string, err error) {
	d.Helper()
	if err != nil {
		d.Fatalf("%v\n%s", err, out)
	}
}

// A disk that is full in the middle of anything fails that, says so, and leaves a store in which nothing is broken; after a prune, the same works.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	for _, name := range []string{"mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	layout := filepath.Join(dir, "busybox")
	if err := conformance.WriteBusyboxLayout(layout); err != nil {
		t.Fatal(err)
	}
	small, big := "oci:"+layout+":latest", filepath.Join(dir, "big")
	spec := filepath.Join(dir, "spec")
	if err := os.WriteFile(spec, []byte(`((from base) (shell /bin/sh -c) (run (shell "head -c 20000000 /dev/urandom >/big")))`), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("obx", "run", "--store", filepath.Join(dir, "store"), "--base", "base="+small, "-o", "type=oci,dest="+big+"/", spec)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const (
		junk = "head -c 30000000 /dev/urandom >/junk" // what a prune takes away
		full = "is full: `obx cache prune`"
	)
	tests := []struct {
		name string
		do   func(d *smallDisk) (string, error)
		want string // "": it may work, too
	}{
		{"unpack", func(d *smallDisk) (string, error) { return d.build("oci:"+big, nil, "true") }, full},
		{"run", func(d *smallDisk) (string, error) { return d.build(small, nil, "head -c 30000000 /dev/zero >/x") }, full},
		{"many names", func(d *smallDisk) (string, error) {
			return d.build(small, nil, "for i in $(seq 3000); do ln -s /"+strings.Repeat("long", 30)+" /$i; done; rm -rf /bin/[a-c]*; head -c 30000000 /dev/zero >/x || rm -f /x")
		}, ""},
		{"pack", func(d *smallDisk) (string, error) {
			return d.build(small, []string{"-o", "type=oci,dest=" + filepath.Join(d.TempDir(), "out")}, "head -c 16000000 /dev/urandom >/x")
		}, full},
		{"log", func(d *smallDisk) (string, error) {
			return d.build(small, []string{"--progress", "quiet", "--log-limit", "100MB"}, "head -c 14000000 /dev/zero | tr '\\0' x | fold -w 100")
		}, full},
		{"output", func(d *smallDisk) (string, error) {
			return d.build(small, []string{"-o", "type=tar,dest=" + filepath.Join(d.mnt, "out.tar")}, "head -c 16000000 /dev/urandom >/x")
		}, "no space left on device"},
		{"directory", func(d *smallDisk) (string, error) {
			return d.build(small, []string{"-o", "type=local,dest=" + filepath.Join(d.mnt, "out")}, "head -c 16000000 /dev/urandom >/x")
		}, "no space left on device"},
		{"export", func(d *smallDisk) (string, error) {
			if out, err := d.build(small, nil, "head -c 9000000 /dev/urandom >/x"); err != nil {
				return out, err
			}
			file := filepath.Join(d.TempDir(), "spec")
			if err := os.WriteFile(file, []byte("((from base) (shell /bin/sh -c)\n (run (shell \"head -c 9000000 /dev/urandom >/x\")))"), 0o644); err != nil {
				d.Fatal(err)
			}
			return d.obx("cache", "export", "--base", "base="+small, "--to", "oci:"+filepath.Join(d.mnt, "cache"), file)
		}, "no space left on device"},
	}
	for _, blocks := range []int{0, 1, 2, 3, 5, 10, 25} {
		tests = append(tests, struct {
			name string
			do   func(d *smallDisk) (string, error)
			want string
		}{fmt.Sprintf("freeze and record with %d blocks", blocks), func(d *smallDisk) (string, error) {
			return d.build(small, nil, fmt.Sprintf("(head -c %d /dev/zero >/room; sync; dd if=/dev/zero of=/a bs=64k; dd if=/dev/zero of=/b bs=1k; sync; dd if=/dev/zero of=/c bs=1k; rm /room; sync) 2>/dev/null", blocks<<12))
		}, ""})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newSmallDisk(t, small)
			d.must(d.build(small, nil, junk))
			out, err := tt.do(d)
			if tt.want != "" && (err == nil || !strings.Contains(out, tt.want)) {
				t.Errorf("full: %v\n%s", err, out)
			}
			t.Logf("%v: %s", err, lastLines(out, 2))
			d.must(d.obx("cache", "verify"))
			d.must(d.obx("cache", "df"))
			d.must(d.obx("cache", "prune", "--all"))
			d.must(d.obx("cache", "verify"))
			if !strings.HasPrefix(tt.name, "freeze") {
				d.must(tt.do(d))
			} else {
				d.must(d.build(small, nil, "echo hello >/x"))
			}
			d.must(d.obx("cache", "verify"))
			if left, _ := os.ReadDir(filepath.Join(d.mnt, "store", "tmp")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
