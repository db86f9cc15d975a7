package repo_test

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

func TestRepoMemory(t *testing.T) {
	t.Parallel()
	conformance.Repo(t, func(*testing.T) repo.Repo { return new(repo.Memory) })
}

func TestRepoDirectory(t *testing.T) {
	t.Parallel()
	conformance.Repo(t, func(t *testing.T) repo.Repo {
		return repotest.Open(t, "oci:"+filepath.Join(t.TempDir(), "new/layout"))
	})
}

func TestRepoTar(t *testing.T) {
	t.Parallel()
	conformance.Repo(t, func(t *testing.T) repo.Repo {
		return repotest.Open(t, filepath.Join(t.TempDir(), "new/layout.tar"))
	})
}

func TestRepoDebian(t *testing.T) {
	t.Parallel()
	addr := conformance.NewDebian(t).Addr
	conformance.Repo(t, func(t *testing.T) repo.Repo { return repotest.Open(t, addr+"/"+repoName(t)) })
}

func TestRepoDistribution(t *testing.T) {
	t.Parallel()
	addr := conformance.StartDistribution(t)
	conformance.Repo(t, func(t *testing.T) repo.Repo { return repotest.Open(t, addr+"/"+repoName(t)) })
}

func TestOpenRepo(t *testing.T) {
	dir := t.TempDir()
	repotest.WriteFile(t, filepath.Join(dir, "home/letter"), []byte("Dear"))
	repotest.WriteFile(t, filepath.Join(dir, "text.tar"), []byte(strings.Repeat("no archive", 100)))
	repotest.WriteFile(t, filepath.Join(dir, "file"), []byte("no archive, either"))
	if err := os.Mkdir(filepath.Join(dir, "12:30"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	tests := []struct{ ref, name, err string }{
		{"registry.example/cache", "registry.example/cache", ""},
		{"registry.example:5000/a/b-c", "registry.example:5000/a/b-c", ""},
		{"localhost/x", "localhost/x", ""},
		{"127.0.0.1:5000/x/y", "127.0.0.1:5000/x/y", ""},
		{"user/cache", "docker.io/user/cache", ""},
		{"oci:dir", "oci:" + dir + "/dir", ""},
		{"oci:/a/b", "oci:/a/b", ""},
		{"oci:new.tar", "oci:" + dir + "/new.tar", ""},
		{"new.tar", "oci:" + dir + "/new.tar", ""},
		{"./a/new.tar", "oci:" + dir + "/a/new.tar", ""},
		{"", "", "empty"},
		{"oci:", "", "the directory is missing"},
		{"cache", "", "a directory is written oci:cache"},
		{"./cache", "", "a directory is written oci:./cache"},
		{"/var/cache", "", "a directory is written oci:/var/cache"},
		{"../cache", "", "a directory is written oci:../cache"},
		{"registry.example/cache:tag", "", "write registry.example/cache"},
		{"registry.example/cache@sha256:" + strings.Repeat("0", 64), "", "write registry.example/cache"},
		{"https://registry.example/cache", "", "a name has no scheme: write \"registry.example/cache\""},
		{"registry.example/Cache", "", "lowercase"},
		{"me:passw0rd@registry.example/cache", "", `"registry.example/cache": a name has no login before it`},
		{"https://me:pass/w0rd@x@registry.example/cache", "", `"registry.example/cache": a name has no login before it`},
		{"me:passw0rd@registry.example/cache@sha256:" + strings.Repeat("0", 64), "", "a name has no login before it"},
		{"me:passw0rd@registry.example", "", "a name has no login before it"},
		{"oci:dir:latest", "", "it names a tag: results have tags of their own, write oci:dir"},
		{"oci:/a/b:x", "", "write oci:/a/b"},
		{"oci:a.tar:x", "", "write oci:a.tar"},
		{"oci:12:30", "oci:" + dir + "/12:30", ""},
		{"oci:a@b", "oci:" + dir + "/a@b", ""},
		{"oci:home", "", "is no OCI layout, nor is it empty"},
		{"text.tar", "", "read the archive"},
		{"oci:file", "", "read the archive"},
	}
	for _, tt := range tests {
		if runtime.GOOS == "windows" && strings.HasPrefix(strings.TrimPrefix(tt.ref, "oci:"), "/") {
			continue // it has no drive
		}
		r, err := new(repo.Client).Open(tt.ref)
		if c, ok := r.(io.Closer); ok {
			defer c.Close()
		}
		switch {
		case tt.err == "" && err != nil:
			t.Errorf("%q: %v", tt.ref, err)
		case tt.err == "":
			if got := filepath.ToSlash(r.Name()); got != filepath.ToSlash(tt.name) {
				t.Errorf("%q is named %q, want %q", tt.ref, r.Name(), tt.name)
			}
		case err == nil || !strings.Contains(err.Error(), tt.err):
			t.Errorf("%q: got error %v, want %q", tt.ref, err, tt.err)
		case strings.Contains(err.Error(), "w0rd"):
			t.Errorf("%q: it tells the password: %v", tt.ref, err)
		}
	}
}

// repoName makes a test's name one of a repository.
func repoName(t testing.TB) string {
	var b []byte
	for _, c := range []byte(t.Name()) {
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '/':
		default:
			c = '-'
		}
		b = append(b, c)
	}
	return string(b)
}
