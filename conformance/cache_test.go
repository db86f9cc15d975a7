package conformance

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocurrent/obx/registry"
)

func TestCacheMemory(t *testing.T) {
	Cache(t, func(*testing.T) registry.Repo { return new(registry.Memory) })
}

func TestCacheDirectory(t *testing.T) {
	Cache(t, func(t *testing.T) registry.Repo {
		r := openRepo(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
		t.Cleanup(func() {
			if err := r.(io.Closer).Close(); err != nil {
				t.Error(err)
			}
		})
		return r
	})
}

func TestCacheDebian(t *testing.T) { cacheOn(t, NewDebian(t)) }

func TestCacheDistribution(t *testing.T) { cacheOn(t, NewDistribution(t)) }

// cacheOn runs the suite on a registry.
func cacheOn(t *testing.T, reg *Registry) {
	Cache(t, func(t *testing.T) registry.Repo { return openRepo(t, reg.Addr+"/"+repoName(t)) })
}

// repoName makes a test's name one of a repository.
func repoName(t testing.TB) string {
	return strings.ToLower(strings.NewReplacer("_", "-", ",", "").Replace(t.Name()))
}
