package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const program = "../examples/library/main.go"

// The page shows the program as it is.
func TestLibraryPage(t *testing.T) {
	if !strings.Contains(page(t, "library").Markdown(), "```go\n"+read(t, program)+"```\n") {
		t.Errorf("docs/library.md does not show what is in %s", program)
	}
}

// The program builds, shares what it builds, and takes it from there.
func TestLibraryProgram(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if runtime.GOOS != "linux" || os.Geteuid() != 0 || err != nil {
		t.Skipf("its steps need root, on Linux, and busybox (%v)", err)
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "library")
	if out, err := exec.Command("go", "build", "-o", bin, program).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"src/busybox": data,
		"spec": []byte(`((from scratch) (copy (src busybox) (dst /bin/)) (shell /bin/busybox sh -c)
			(run (secrets (token (target /token))) (shell "busybox wc -c /token > /length")))`),
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, run := range []struct{ store, want string }{{"one", "0 steps known, 2 run"}, {"two", "2 steps known, 0 run"}} {
		cmd := exec.Command(bin, "-store", run.store, "-cache", "oci:cache", "-output", "result.tar", "spec", "src")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), run.want) {
			t.Fatalf("not %q: %v\n%s", run.want, err, out)
		}
	}
	out, err := exec.Command("tar", "xOf", filepath.Join(dir, "result.tar"), "length").CombinedOutput()
	if err != nil || string(out) != "38 /token\n" {
		t.Errorf("the step has seen another secret: %v, %s", err, out)
	}
}
