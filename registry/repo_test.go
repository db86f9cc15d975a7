package registry_test

import (
	"io"
	"path/filepath"
	"testing"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry"
)

func openRepo(t testing.TB, ref string, o registry.RepoOptions) registry.Repo {
	t.Helper()
	r, err := registry.OpenRepo(ref, o)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := r.(io.Closer); ok {
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return r
}

func TestRepoMemory(t *testing.T) {
	conformance.Repo(t, func(*testing.T) registry.Repo { return new(registry.Memory) })
}

func TestRepoDirectory(t *testing.T) {
	conformance.Repo(t, func(t *testing.T) registry.Repo {
		return openRepo(t, "oci:"+filepath.Join(t.TempDir(), "new/layout"), registry.RepoOptions{})
	})
}

func TestRepoTar(t *testing.T) {
	conformance.Repo(t, func(t *testing.T) registry.Repo {
		return openRepo(t, filepath.Join(t.TempDir(), "new/layout.tar"), registry.RepoOptions{})
	})
}

func TestRepoDebian(t *testing.T) {
	addr := conformance.NewDebian(t).Addr
	conformance.Repo(t, func(t *testing.T) registry.Repo { return openRepo(t, addr+"/"+repoName(t), registry.RepoOptions{}) })
}

func TestRepoDistribution(t *testing.T) {
	addr := conformance.StartDistribution(t)
	conformance.Repo(t, func(t *testing.T) registry.Repo { return openRepo(t, addr+"/"+repoName(t), registry.RepoOptions{}) })
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
