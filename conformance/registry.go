package conformance

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// A Registry is a real registry in a process of its own, on a loopback port.
type Registry struct {
	Addr string

	program, dir string
	stop         func()
}

// StartRegistry starts a registry, empty and without access control, and stops it with the test. It is Debian's docker-registry, or the registry
// of distribution 3 where that alone is installed.
func StartRegistry(t testing.TB) (addr string) {
	t.Helper()
	skipRegistries(t)
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		return NewDistribution(t).Addr
	}
	return NewRegistry(t, program).Addr
}

// StartDistribution is StartRegistry for distribution 3.
func StartDistribution(t testing.TB) (addr string) {
	t.Helper()
	return NewDistribution(t).Addr
}

// skipRegistries skips a test on Windows: the registries that are installed are programs for Linux.
func skipRegistries(t testing.TB) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no registry runs on Windows")
	}
}

// NewDebian starts Debian's docker-registry, which is distribution 2.8.
func NewDebian(t testing.TB) *Registry {
	t.Helper()
	skipRegistries(t)
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Fatalf("%v: make deps, or apt-get install docker-registry", err)
	}
	return NewRegistry(t, program)
}

// NewDistribution starts distribution 3. No package has it: the program is $OBX_DISTRIBUTION, or where `make deps` puts it.
func NewDistribution(t testing.TB) *Registry {
	t.Helper()
	skipRegistries(t)
	program := Program(t, "OBX_DISTRIBUTION", "registry")
	return NewRegistry(t, program)
}

// Program is a program that no Debian package has: it is where a variable of the environment says, or where `make test-deps`
// puts it.
func Program(t testing.TB, variable, name string) string {
	t.Helper()
	program := os.Getenv(variable)
	if program == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		program = filepath.Join(cache, "obx-test", name)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%s is missing: %v: make test-deps", name, err)
	}
	return program
}

// NewRegistry starts a given program of the distribution project, of version 2 or 3.
func NewRegistry(t testing.TB, program string) *Registry {
	t.Helper()
	r := &Registry{program: program, dir: t.TempDir()}
	// Another process may take a free port before the registry does.
	for range 3 {
		r.Addr = freeAddr(t)
		if r.start(t) {
			t.Cleanup(func() { r.stop() })
			return r
		}
	}
	t.Fatalf("%s does not start: %s", program, r.log())
	return nil
}

// GarbageCollect removes manifests without a tag and blobs that no manifest refers to, as operators do at night. The registry keeps
// running, with nothing in memory of what it had.
func (r *Registry) GarbageCollect(t testing.TB) {
	t.Helper()
	cmd := exec.Command(r.program, "garbage-collect", "--delete-untagged", r.config())
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("garbage-collect: %v: %s", err, out)
	}
}

// SetReadOnly starts the registry anew, on the same address, so that it takes nothing, or takes all again.
func (r *Registry) SetReadOnly(t testing.TB, readOnly bool) {
	t.Helper()
	r.stop()
	r.writeConfig(t, readOnly)
	if !r.run(t) {
		t.Fatalf("%s does not start again: %s", r.program, r.log())
	}
}

// BlobPath is the file that holds the bytes of a blob or manifest, for tests that break or remove it. Its digest is sha256:HEX.
func (r *Registry) BlobPath(hex string) string {
	return filepath.Join(r.dir, "data/docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
}

func (r *Registry) config() string { return filepath.Join(r.dir, "config.yml") }

func (r *Registry) log() []byte {
	b, _ := os.ReadFile(filepath.Join(r.dir, "log"))
	return b
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *Registry) writeConfig(t testing.TB, readOnly bool) {
	t.Helper()
	text := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
  maintenance: {uploadpurging: {enabled: false}, readonly: {enabled: %t}}
http: {addr: %q}
`, filepath.Join(r.dir, "data"), readOnly, r.Addr)
	if err := os.WriteFile(r.config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *Registry) start(t testing.TB) bool {
	t.Helper()
	r.writeConfig(t, false)
	return r.run(t)
}

func (r *Registry) run(t testing.TB) bool {
	t.Helper()
	log, err := os.Create(filepath.Join(r.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// The shell outlives a test process that is killed, sees the end of its input, and ends the registry.
	cmd := exec.Command("sh", "-c", `"$@" & read -r _; kill $!; wait`, "sh", r.program, "serve", r.config())
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.Stdout, cmd.Stderr = log, log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.stop = func() {
		in.Close()
		_ = cmd.Wait() // its status is that of the kill
	}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := client.Get("http://" + r.Addr + "/v2/")
		if err != nil {
			if len(r.log()) > 0 {
				break // it logs errors only
			}
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return true
		}
	}
	r.stop()
	return false
}
