package conformance

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// StartRegistry starts a real registry, empty and without access control, on a loopback port, and stops it with the test. It is Debian's
// docker-registry, or the registry of distribution 3 where that alone is installed.
func StartRegistry(t testing.TB) (addr string) {
	t.Helper()
	for _, program := range []string{"docker-registry", "registry"} {
		if path, err := exec.LookPath(program); err == nil {
			return StartRegistryProgram(t, path)
		}
	}
	t.Fatal("there is no registry to test against: apt-get install docker-registry")
	return ""
}

// StartRegistryProgram is StartRegistry for a given program of the distribution project, of version 2 or 3.
func StartRegistryProgram(t testing.TB, program string) (addr string) {
	t.Helper()
	dir := t.TempDir()
	// Another process may take a free port before the registry does.
	for range 3 {
		addr = freeAddr(t)
		if startRegistry(t, program, dir, addr) {
			return addr
		}
	}
	log, _ := os.ReadFile(filepath.Join(dir, "log"))
	t.Fatalf("%s does not start: %s", program, log)
	return ""
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

func startRegistry(t testing.TB, program, dir, addr string) bool {
	t.Helper()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
  maintenance: {uploadpurging: {enabled: false}}
http: {addr: %q}
`, filepath.Join(dir, "data"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// The shell outlives a test process that is killed, sees the end of its input, and ends the registry.
	cmd := exec.Command("sh", "-c", `"$@" & read -r _; kill $!; wait`, "sh", program, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.Stdout, cmd.Stderr = log, log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		in.Close()
		_ = cmd.Wait() // its status is that of the kill
	}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := client.Get("http://" + addr + "/v2/")
		if err != nil {
			if b, _ := os.ReadFile(log.Name()); len(b) > 0 {
				break // it logs errors only
			}
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Cleanup(stop)
			return true
		}
	}
	stop()
	return false
}
