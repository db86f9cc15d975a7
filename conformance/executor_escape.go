package conformance

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// testEscapes runs a program that tries all ways out of a sandbox that are known.
func testEscapes(t *testing.T, b *rig) {
	name := fmt.Sprintf("obx-escape-%d-%s", os.Getpid(), filepath.Base(t.TempDir()))
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	layer := b.escape(t)
	for _, uid := range []int{0, 1000} {
		for network, args := range map[executor.Network]string{executor.NetworkNone: " all " + name, executor.NetworkHost: " all"} {
			p := script("chmod 1777 /tmp 2>/dev/null; exec /escape" + args)
			p.UID, p.GID, p.Network = uid, uid, network
			if uid != 0 {
				p.Argv = []string{"/bin/sh", "-c", "exec /escape" + args}
			}
			r := b.open(t, b.base, layer, loadTar(t, b.st, tar.Header{Name: "tmp", Typeflag: tar.TypeDir, Mode: 0o1777}))
			if out, err := try(t, r, p); err != nil || out != "held\n" {
				t.Errorf("user %d, network %v: %v\n%s", uid, network, err, out)
			}
		}
	}
}

// escape is a layer with the program that tries, /escape.
func (b *rig) escape(t *testing.T) layers.Layer {
	t.Helper()
	program := buildFor(t, b.e.Platform().Architecture, "executor/internal/sandbox/escape")
	return loadTar(t, b.st, tar.Header{Name: "escape", Linkname: string(program), Mode: 0o755})
}

// testTraced: the first process of a step asks its parent, which is outside, to trace it. That stops it, or what it has started goes on when it has
// ended, or it never ends.
func testTraced(t *testing.T, b *rig) {
	if b.m.Machine {
		t.Skip("an emulated machine is too slow for these times, and package overlay runs in it")
	}
	escape := b.escape(t)
	for how, want := range map[string]executor.Reason{"stop": executor.Signaled, "thread": executor.TimedOut} {
		t.Run(how, func(t *testing.T) {
			cache := b.cache("/c", "beats-"+how, "shared")
			p := with(script("exec /escape trace "+how+" /c/beats"), cache)
			if p.Limits.Timeout = time.Minute; want == executor.TimedOut {
				p.Limits.Timeout = 5 * time.Second
			}
			began := time.Now()
			out, err := try(t, b.open(t, b.base, escape), p)
			var exit *executor.ExitError
			if !errors.As(err, &exit) || exit.Reason != want || out != "" {
				t.Errorf("got %v, want that it ends by %s\n%s", err, want, out)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it ended after %v", took)
			}
			wantOutput(t, b.open(t, b.base), with(script("a=$(wc -c < /c/beats); sleep 0.3; [ $(wc -c < /c/beats) = $a ] && echo dead"), cache), "dead\n")
		})
	}
}

// testGivenAway: a step lets another have its files, and ends. What it has left is what it had left then.
func testGivenAway(t *testing.T, b *rig) {
	if b.m.Machine {
		t.Skip("two steps are two machines")
	}
	escape := b.escape(t)
	for name, what := range map[string]string{"root": "/", "cache": "/p", "file": "/ /kept", "file of a cache": "/p /p/kept"} {
		t.Run(name, func(t *testing.T) {
			cache, private := b.cache("/c", "socket-"+name, "shared"), b.cache("/p", "private-"+name, "")
			other := make(chan string, 1)
			go func() {
				var out bytes.Buffer
				r, err := b.e.Open(t.Context(), []layers.Layer{b.base, escape})
				if err == nil {
					err = errors.Join(r.Run(t.Context(), with(script("exec /escape take /c/socket /c/ended"), cache), &out), r.Close())
				}
				other <- fmt.Sprint(out.String(), err)
			}()
			r := b.open(t, b.base, escape)
			out, err := try(t, r, with(script("echo before > /kept; echo before > /p/kept; exec /escape give /c/socket "+what), cache, private))
			var kept layers.Layer
			if strings.HasPrefix(name, "file") { // it cannot be kept from being written to: the step has failed
				if err == nil || !strings.Contains(err.Error(), "open for writing") {
					t.Errorf("got %v\n%s", err, out)
				}
			} else if err != nil {
				t.Errorf("%v\n%s", err, out)
			} else {
				kept = Freeze(t, r)
			}
			run(t, b.open(t, b.base), with(script("touch /c/ended"), cache))
			if out := <-other; out != "held\n<nil>" {
				t.Errorf("the other step: %s", out)
			}
			wantOutput(t, b.open(t, b.base), with(script("cd /p; [ ! -e kept ] || { ls; stat -c %a kept; cat kept; }"), private), map[string]string{
				"root": "kept\n644\nbefore\n", "cache": "kept\n644\nbefore\n", "file": "kept\n644\nbefore\n",
			}[name])
			if name == "root" {
				wantContents(t, b.st, kept, "kept")
				wantOutput(t, b.open(t, b.base, kept), script("stat -c %a /kept; cat /kept"), "644\nbefore\n")
			}
		})
	}
}

// testSwaps: a step changes directories of a cache into links and back, all the time, while another begins that shares it and has something mounted there.
// It runs, or it fails for that; nothing is mounted elsewhere, and nothing of the host is touched.
func testSwaps(t *testing.T, b *rig) {
	if b.m.Machine {
		t.Skip("a machine has a snapshot of a cache")
	}
	outside := t.TempDir()
	victims := map[string]fs.FileMode{"directory": fs.ModeDir | 0o700, "directory/inner": fs.ModeDir | 0o711, "directory/token": 0o600, "file": 0o600}
	for _, name := range slices.Sorted(maps.Keys(victims)) {
		at := filepath.Join(outside, name)
		var err error
		if victims[name].IsDir() {
			err = os.Mkdir(at, victims[name].Perm())
		} else {
			err = os.WriteFile(at, []byte("the host's"), victims[name].Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	before := statAll(t, outside)
	cache := b.cache("/data", "swaps", "shared")
	targets := []string{
		outside + "/directory", "/etc", outside + "/file", "../../../../../../etc", "/proc/1/root" + outside + "/directory", "/dev",
	}
	done := make(chan error, 1)
	escape := b.escape(t)
	attacker := b.open(t, b.base, escape)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		done <- attacker.Run(ctx, with(script("exec /escape swap /data "+strings.Join(targets, " ")), cache), io.Discard)
	}()
	const look = `cut -d' ' -f5 /proc/self/mountinfo | grep -vE '^(/|/(proc|dev|sys|data)(/.*)?|/etc/(hosts|resolv.conf))$' && exit 7
ls /etc | grep -vE '^(hosts|passwd|group|resolv.conf)$'; echo looked`
	ran, failed := 0, 0
	for range 60 {
		r := b.open(t, b.base)
		p := with(script(look), cache, secret("/data/d/token", "t"), b.cache("/data/d/inner", "swaps-inner", "shared"))
		p.UID, p.GID = 1000, 1000
		out, err := try(t, r, p)
		switch {
		case err == nil && out == "looked\n":
			ran++
		case err != nil && out == "": // of what it has been in the way of
			failed++
		default:
			t.Errorf("a step that shares the cache: %v\n%s", err, out)
		}
		if l := Freeze(t, r); !l.IsZero() {
			t.Errorf("the layer has %q", contents(t, b.st, l))
		}
	}
	t.Logf("%d steps ran, %d failed", ran, failed)
	if ran == 0 || failed == 0 {
		t.Errorf("%d steps ran, %d failed: want some of both, else nothing was tried", ran, failed)
	}
	run(t, b.open(t, b.base), with(script("touch /data/end"), cache))
	if err := <-done; err != nil {
		t.Errorf("who swaps: %v", err)
	}
	if after := statAll(t, outside); after != before {
		t.Errorf("outside of the steps there is\n%s\nthere was\n%s", after, before)
	}
}

// statAll tells of all files below a directory what a step could change.
func statAll(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(name)
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		fmt.Fprintln(&all, name, info.Mode(), info.Size(), info.ModTime(), h.Uid, h.Gid)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// testImageLinks: an image has a link wherever something is mounted.
func testImageLinks(t *testing.T, b *rig) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "file"), []byte("the host's"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := statAll(t, outside)
	mounts := []executor.Mount{secret("/run/secrets/token", "t"), b.cache("/var/cache/c", "image-links", ""), secret("/var/cache/c/deep/token", "t")}
	const look = `cat /run/secrets/token /var/cache/c/deep/token; grep -c builder /etc/hosts; touch /var/cache/c/f /dev/shm/f; echo x > /dev/null
[ -c /dev/null ] && [ -e /dev/pts/ptmx ] && [ -d /sys/class ] && [ -e /proc/self/status ] && echo whole`
	base := bareBusybox(t, b.st, time.Unix(0, 0))
	for _, links := range [][]string{
		{"dev/pts", "dev/shm", "dev/mqueue", "dev/null", "dev/console", "dev/ptmx", "sys/fs", "proc/sys", "proc/self", "proc/1", "etc", "run", "var", "tmp", "root"},
		{"sys/fs/cgroup", "etc/hosts", "etc/resolv.conf", "run/secrets", "var/cache"},
		{"run/secrets/token", "var/cache/c"},
	} {
		for _, target := range []string{
			outside, outside + "/file", "/proc/self/root" + outside, "/proc/1/cwd", "/proc/self/fd/4", "../../../../../../../.." + outside, "/", "/dev/shm", "itself",
		} {
			var image []tar.Header
			for _, at := range links {
				image = append(image, tar.Header{Name: at, Typeflag: tar.TypeSymlink, Linkname: strings.ReplaceAll(target, "itself", "/"+at), Mode: 0o777})
			}
			p := with(script(look), mounts...)
			p.Network = executor.NetworkHost
			out, err := try(t, b.open(t, base, loadTar(t, b.st, image...)), p)
			var bad *executor.StartError
			switch {
			case errors.As(err, &bad) && out == "":
			case err != nil || !strings.Contains(out, "tt1\nwhole\n"):
				t.Errorf("%q lead to %s: %v\n%s", links, target, err, out)
			}
		}
	}
	if after := statAll(t, outside); after != before {
		t.Errorf("outside of the steps there is\n%s\nthere was\n%s", after, before)
	}
}

// testOwnProgram executes what makes the container, by the links of /proc that lead to a process's program. That is nobody's to run or to change.
func testOwnProgram(t *testing.T, b *rig) {
	before := hostPrograms(t)
	for name, p := range map[string]executor.Process{
		"as command":              {Argv: []string{"/proc/self/exe", "--version"}},
		"of the first process":    {Argv: []string{"/proc/1/exe", "--version"}},
		"as a relative command":   {Argv: []string{"../proc/self/exe"}, Dir: "/bin"},
		"through a link":          {Argv: []string{"/links/exe"}},
		"in PATH":                 {Argv: []string{"exe"}, Env: []string{"PATH=/links"}},
		"as interpreter":          {Argv: []string{"/links/script"}},
		"as interpreter, a link":  {Argv: []string{"/links/script2"}},
		"as a descriptor":         {Argv: []string{"/proc/self/fd/4"}},
		"as a descriptor, script": {Argv: []string{"/links/script3"}},
	} {
		t.Run(name, func(t *testing.T) {
			if p.Dir == "" {
				p.Dir = "/"
			}
			r := b.open(t, b.base, loadTar(t, b.st,
				tar.Header{Name: "links", Typeflag: tar.TypeDir},
				tar.Header{Name: "links/exe", Typeflag: tar.TypeSymlink, Linkname: "/proc/self/exe"},
				tar.Header{Name: "links/script", Linkname: "#!/proc/self/exe\n", Mode: 0o755},
				tar.Header{Name: "links/script2", Linkname: "#!/links/exe\n", Mode: 0o755},
				tar.Header{Name: "links/script3", Linkname: "#!/proc/self/fd/4\n", Mode: 0o755},
			))
			out, err := try(t, r, p)
			if err == nil {
				t.Errorf("it runs, and prints %q", out)
			}
			if strings.Contains(out, "obx") {
				t.Errorf("it prints %q", out)
			}
			if out := run(t, r, script("echo fine")); out != "fine\n" {
				t.Errorf("the next step prints %q", out)
			}
		})
	}
	for name, was := range hostPrograms(t) {
		if before[name] != was {
			t.Errorf("%s has changed: %s, was %s", name, was, before[name])
		}
	}
}

// hostPrograms are those that make containers, as they are now.
func hostPrograms(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	names := []string{self}
	if runc, err := exec.LookPath("runc"); err == nil {
		names = append(names, runc)
	}
	for _, name := range names {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = fmt.Sprint(st.Size(), st.ModTime(), st.Mode())
	}
	return all
}

// testBombs runs what would take all of the machine, below limits.
func testBombs(t *testing.T, b *rig) {
	p := script("f() { f | f & }; f; sleep 300")
	p.Limits.PIDs, p.Limits.Timeout = 64, 3e9
	_, err := try(t, b.open(t, b.base), p)
	var exit *executor.ExitError
	if !errors.As(err, &exit) {
		t.Errorf("a fork bomb: %v", err)
	}
	p = script("x=a; while :; do x=$x$x; done")
	p.Limits.Memory = 64 << 20
	_, err = try(t, b.open(t, b.base), p)
	if !errors.As(err, &exit) {
		t.Errorf("a memory bomb: %v", err)
	}
	p = script("dd if=/dev/zero of=/dev/shm/f bs=1M count=60")
	p.Limits.Memory = 32 << 20
	_, err = try(t, b.open(t, b.base), p)
	if !errors.As(err, &exit) {
		t.Errorf("files in memory: %v", err)
	}
	if out := run(t, b.open(t, b.base), script("echo fine")); out != "fine\n" {
		t.Errorf("the next step prints %q", out)
	}
}

func buildProgram(file, arch, command string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "github.com/ocurrent/obx/"+command)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s for %s: %w\n%s", command, arch, err, out)
	}
	return nil
}

// buildFor builds a command of this module for Linux on an architecture.
func buildFor(t testing.TB, arch, command string) []byte {
	t.Helper()
	file := filepath.Join(os.Getenv(builtVariable), filepath.Base(command))
	if os.Getenv(builtVariable) == "" {
		file = filepath.Join(t.TempDir(), "program")
		if err := buildProgram(file, arch, command); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
