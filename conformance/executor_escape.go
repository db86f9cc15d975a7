package conformance

import (
	"archive/tar"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocurrent/obx/executor"
)

// testEscapes runs a program that tries all ways out of a sandbox that are known.
func testEscapes(t *testing.T, b *rig) {
	name := fmt.Sprintf("obx-escape-%d-%s", os.Getpid(), filepath.Base(t.TempDir()))
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	program := buildFor(t, b.e.Platform().Architecture, "executor/internal/sandbox/escape")
	layer := loadTar(t, b.st, tar.Header{Name: "escape", Linkname: string(program), Mode: 0o755})
	for _, uid := range []int{0, 1000} {
		for network, args := range map[executor.Network]string{executor.NetworkNone: " " + name, executor.NetworkHost: ""} {
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
	if out := run(t, b.open(t, b.base), script("echo fine")); out != "fine\n" {
		t.Errorf("the next step prints %q", out)
	}
}

// buildFor builds a command of this module for Linux on an architecture.
func buildFor(t testing.TB, arch, command string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "github.com/ocurrent/obx/"+command)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s for %s: %v\n%s", command, arch, err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
