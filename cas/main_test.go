package cas

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// helperVar has the test binary run one of helpers instead of its tests: as another process on the same store.
const helperVar = "CAS_TEST_HELPER"

func TestMain(m *testing.M) {
	name := os.Getenv(helperVar)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := helpers()[name](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// helperCmd is a process that runs a helper.
func helperCmd(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if helpers()[name] == nil {
		t.Fatalf("no helper %q", name)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperVar+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

// startHelper starts a helper and waits for its first line.
func startHelper(t *testing.T, name string, args ...string) (*exec.Cmd, string) {
	t.Helper()
	cmd := helperCmd(t, name, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var line bytes.Buffer
	for b := make([]byte, 1); ; {
		if _, err := out.Read(b); err != nil {
			t.Fatalf("%s ended early: %v", name, err)
		}
		if b[0] == '\n' {
			return cmd, line.String()
		}
		line.Write(b)
	}
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "store"))
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// asEpoch has s write and read as in another boot.
func asEpoch(s *Store, epoch string) *Store {
	s.epoch = epoch
	return s
}

// newLayer makes a layer directory in TempDir, with one file.
func newLayer(s *Store, content string) (string, error) {
	dir := s.temp("layer")
	if err := os.MkdirAll(filepath.Join(dir, layerRoot), 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, layerRoot, "file"), []byte(content), 0o644)
}

func commitLayer(t testing.TB, s *Store, name, content string) string {
	t.Helper()
	dir, err := newLayer(s, content)
	if err != nil {
		t.Fatal(err)
	}
	name, err = s.CommitLayer(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func putResult(t testing.TB, s *Store, domain string, r Result) {
	t.Helper()
	if err := s.PutResult(domain, &r); err != nil {
		t.Fatal(err)
	}
}

func putBlob(t testing.TB, s *Store, content string) digest.Digest {
	t.Helper()
	d, err := s.PutBlob([]byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func hasResult(s *Store, domain, key string) bool {
	_, err := s.Result(domain, key)
	return err == nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// lastUsed sets when a result was last used.
func lastUsed(t testing.TB, s *Store, domain, key string, ago time.Duration) {
	t.Helper()
	if err := setTime(s.resultPath(domain, key), time.Now().Add(-ago)); err != nil {
		t.Fatal(err)
	}
}

func prune(t testing.TB, s *Store, o PruneOptions) PruneReport {
	t.Helper()
	r, err := s.Prune(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// problems is what Verify finds.
func problems(t testing.TB, s *Store) []Problem {
	t.Helper()
	var ps []Problem
	for p, err := range s.Verify(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	return ps
}
