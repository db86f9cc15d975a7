package conformance

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocurrent/obx/registry/repo"
)

func TestCacheMemory(t *testing.T) {
	Cache(t, func(*testing.T) repo.Repo { return new(repo.Memory) })
}

func TestCacheDirectory(t *testing.T) {
	Cache(t, func(t *testing.T) repo.Repo { return openLayout(t, memoryDir(t)) })
}

func TestCacheTar(t *testing.T) {
	Cache(t, func(t *testing.T) repo.Repo { return openLayout(t, filepath.Join(memoryDir(t), "cache.tar")) })
}

func TestCacheDebian(t *testing.T) { cacheOn(t, NewDebian(t)) }

func TestCacheDistribution(t *testing.T) { cacheOn(t, NewDistribution(t)) }

func openLayout(t *testing.T, dir string) repo.Repo {
	t.Helper()
	r := openRepo(t, "oci:"+filepath.Join(dir, "layout"))
	t.Cleanup(func() {
		if err := r.(io.Closer).Close(); err != nil {
			t.Log(err) // of a full disk
		}
	})
	return r
}

// repoName makes a test's name one of a repository.
func repoName(t testing.TB) string {
	return strings.ToLower(strings.NewReplacer("_", "-", ",", "").Replace(t.Name()))
}

// cacheOn runs the suite on a registry, and then what only a registry can do.
func cacheOn(t *testing.T, reg *Registry) {
	Cache(t, func(t *testing.T) repo.Repo { return openRepo(t, reg.Addr+"/"+repoName(t)) })
	for name, test := range map[string]func(c *cacheTest, reg *Registry){
		"garbage": cacheGarbage, "lost files": cacheLostFiles, "rotten files": cacheRottenFiles, "read-only registry": cacheReadOnlyRegistry,
	} {
		t.Run(name, func(t *testing.T) { test(&cacheTest{T: t, repo: openRepo(t, reg.Addr+"/"+repoName(t))}, reg) })
	}
}

// An operator's garbage collection takes what has no tag.
func cacheGarbage(c *cacheTest, reg *Registry) {
	b := c.fill(c.repo, nil, "garbage")
	reg.GarbageCollect(c)
	c.hit("collected", c.repo, nil, "garbage")
	_, _, p := c.record(b.keys[len(b.keys)-1])
	if err := c.repo.Delete(c.Context(), "sha256:"+p.Subject[0].Digest.SHA256); err != nil {
		c.Fatal(err)
	}
	reg.GarbageCollect(c)
	c.mends("collected without its image", c.repo, nil, "garbage")
}

// A file of the registry is lost. (Repositories of a registry share files: each test has words of its own.)
func cacheLostFiles(c *cacheTest, reg *Registry) {
	b := c.fill(c.repo, nil, "lost")
	_, _, p := c.record(b.keys[len(b.keys)-1])
	last := p.Predicate.Layers[len(p.Predicate.Layers)-1][0]
	for what, d := range map[string]any{"layer": last, "config": p.Predicate.Config[0]} {
		if err := os.Remove(reg.BlobPath(digestOf(d).Encoded())); err != nil {
			c.Fatal(err)
		}
		c.mends("lost "+what, c.repo, nil, "lost")
	}
}

// A file of the registry has rotted. The registry takes no other bytes for a digest that it has: so only other bytes mend it.
func cacheRottenFiles(c *cacheTest, reg *Registry) {
	b := c.fill(c.repo, nil, "rotten")
	_, _, p := c.record(b.keys[len(b.keys)-1])
	file := reg.BlobPath(digestOf(p.Predicate.Layers[len(p.Predicate.Layers)-1][0]).Encoded())
	data, err := os.ReadFile(file)
	if err != nil {
		c.Fatal(err)
	}
	for name, way := range ways {
		if err := os.WriteFile(file, way(append([]byte(nil), data...)), 0o644); err != nil {
			c.Fatal(err)
		}
		again := c.site(c.repo, nil).build(cacheSpec("rotten"))
		c.right(name, again, "rotten")
		if len(again.warnings) == 0 {
			c.Errorf("%s: nobody warned", name)
		}
	}
}

func cacheReadOnlyRegistry(c *cacheTest, reg *Registry) {
	c.fill(c.repo, nil)
	reg.SetReadOnly(c, true)
	b := c.site(c.repo, nil).build(cacheSpec("two"))
	c.right("read-only", b, "two")
	if b.runs != 1 || len(b.warnings) != 1 {
		c.Errorf("%d steps ran, warnings: %q", b.runs, b.warnings)
	}
	reg.SetReadOnly(c, false)
	c.right("after that", c.site(c.repo, nil).build(cacheSpec("two")), "two")
	c.hit("mended", c.repo, nil, "two")
}

// The disk of a cache is full.
func TestCacheFullDisk(t *testing.T) {
	RequireRoot(t)
	small := func(c *cacheTest, dir string) {
		c.Helper()
		command(c, "mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", dir)
		c.Cleanup(func() { command(c, "umount", "-l", dir) })
	}
	full := func(c *cacheTest, room func()) {
		c.Helper()
		b := c.site(c.repo, nil).build(cacheSpec("two"))
		c.right("full", b, "two")
		if len(b.warnings) == 0 {
			c.Error("nobody warned")
		}
		room()
		c.right("with room again", c.site(c.repo, nil).build(cacheSpec("two")), "two")
		c.hit("after that", c.repo, nil, "two")
	}
	t.Run("layout", func(t *testing.T) {
		dir := memoryDir(t)
		c := &cacheTest{T: t}
		small(c, dir)
		c.repo = openLayout(t, dir)
		full(c, func() { command(t, "mount", "-o", "remount,size=100m", dir) })
	})
	t.Run("registry", func(t *testing.T) {
		reg := NewDebian(t)
		dir := filepath.Join(reg.dir, "data")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		c := &cacheTest{T: t, repo: openRepo(t, reg.Addr+"/full")}
		small(c, dir)
		full(c, func() {
			command(t, "mount", "-o", "remount,size=100m", dir)
			c.repo = openRepo(t, reg.Addr+"/full") // as the next run does: in this one, the registry is down
		})
	})
}
