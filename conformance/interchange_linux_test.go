package conformance

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestInterchange begins a build with one executor, pushes it, and goes on in its middle with another on a machine that has nothing.
func TestInterchange(t *testing.T) {
	f := newFleet(t, NewDebian(t))
	overlay := []string{"--executor", "overlay"}
	buildContainerd(t, f.obx)
	overlayfs, btrfs := containerdFlags(t, "overlayfs"), containerdFlags(t, "btrfs")
	for name, test := range map[string][2][]string{
		"OverlayToContainerd": {overlay, overlayfs},
		"ContainerdToOverlay": {overlayfs, overlay},
		"OverlayToBtrfs":      {overlay, btrfs},
		"BtrfsToOverlay":      {btrfs, overlay},
	} {
		t.Run(name, func(t *testing.T) { interchange(f.with(t), test[0], test[1]) })
	}
}

// containerdFlags are the flags of obx that run steps through a containerd of the test's own.
func containerdFlags(t *testing.T, snapshotter string) []string {
	return []string{"--executor", "containerd", "--containerd", StartContainerd(t, snapshotter), "--snapshotter", snapshotter}
}

func interchange(f *fleet, begin, resume []string) {
	steps := []string{
		`(run (shell "mkdir -p /d/e /gone; echo 1 > /d/one; ln /d/one /d/link; ln -s one /d/sym; echo x > /gone/x; chmod 4755 /d/one"))`,
		`(run (cache (c (target /c))) (shell "echo $RANDOM > /c/x; mknod /d/null c 1 3; mkfifo /d/pipe; chown 5:6 /d/e; chmod 1777 /d/e; dd if=/dev/zero of=/d/sparse bs=1 seek=1000000 count=1"))`,
		`(copy (src file) (dst /d/copied))`,
		`(run (shell "rm -r /gone; mkdir /gone; echo y > /gone/y; rm /d/sym; cat /d/copied; stat -c %h /d/one"))`,
		`(user (uid 1000) (gid 1000)) (workdir /home/u) (run (shell "id -u; touch -d '2001-02-03 04:05:06' /tmp/times"))`,
		`(user (uid 0) (gid 0)) (run (shell "echo more >> /d/one; mv /d/e /f; touch /f"))`,
	}
	spec := func(n int) string {
		return fmt.Sprintf("((from %s/bases/busybox:latest) (shell /bin/sh -c)\n%s)", f.proxy.Addr, strings.Join(steps[:n], "\n"))
	}
	cache := []string{"--cache", f.repo(), "--plain-http", f.proxy.Addr}
	output := func() (string, []string) {
		name := filepath.Join(f.TempDir(), "out.tar")
		return name, []string{"--output", "type=tar,dest=" + name}
	}
	machine := func() *machine {
		m := f.machine()
		name := filepath.Join(m.dir, "file")
		if err := os.WriteFile(name, []byte("copied\n"), 0o644); err != nil {
			f.Fatal(err)
		}
		return m
	}
	const total, middle = 6, 3

	machine().silent(middle, 0, spec(middle), slices.Concat(begin, cache)...)
	resumed, out := output()
	second := machine().silent(total-middle, middle, spec(total), slices.Concat(resume, cache, out)...)

	// The first executor, on a machine that has nothing, finds all of it.
	pulled, out := output()
	third := machine().silent(0, total, spec(total), slices.Concat(begin, cache, out)...)
	if third.key != second.key || third.logs != second.logs {
		f.Errorf("key %s and logs %q become %s and %q", second.key, second.logs, third.key, third.logs)
	}
	compareFiles(f, readFiles(f, resumed, true), readFiles(f, pulled, true))

	// Alone it would have made the same, but for the time of day.
	alone, out := output()
	fourth := machine().silent(total, 0, spec(total), slices.Concat(begin, []string{"--plain-http", f.proxy.Addr}, out)...)
	if !slices.Equal(fourth.keys, second.keys) || fourth.logs != second.logs {
		f.Errorf("keys %q and logs %q, alone %q and %q", second.keys, second.logs, fourth.keys, fourth.logs)
	}
	compareFiles(f, readFiles(f, resumed, false), readFiles(f, alone, false))
}

// readFiles describes each file of a tar.
func readFiles(t testing.TB, name string, times bool) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %o %d:%d %q %d:%d %x", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, h.Devmajor, h.Devminor, sum.Sum(nil)[:8])
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				line += fmt.Sprintf(" %s=%q", k, h.PAXRecords[k])
			}
		}
		if times {
			line += " " + h.ModTime.UTC().Format(time.RFC3339Nano)
		}
		files[h.Name] = line
	}
}

func compareFiles(t testing.TB, want, got map[string]string) {
	t.Helper()
	if len(want) < 20 {
		t.Errorf("only %d files", len(want))
	}
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %q becomes %q", name, want[name], got[name])
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%s comes from nowhere", name)
		}
	}
}
