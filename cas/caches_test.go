package cas

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

func openCache(t *testing.T, s *Store, name, sharing string) *CacheMount {
	t.Helper()
	c, err := s.OpenCache(t.Context(), "default", name, sharing)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closeCache(t *testing.T, c *CacheMount) {
	t.Helper()
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// upper makes what a step leaves in a cache mount.
func upper(t *testing.T, s *Store, files ...string) string {
	t.Helper()
	dir := s.temp("upper")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func commitCache(t *testing.T, c *CacheMount, files ...string) {
	t.Helper()
	if err := c.Commit(upper(t, c.store, files...), flattenForTest); err != nil {
		t.Fatal(err)
	}
}

func use(t *testing.T, s *Store, name string, files ...string) {
	t.Helper()
	c := openCache(t, s, name, "")
	commitCache(t, c, files...)
	closeCache(t, c)
}

// contents lists the files that a new use of a cache sees.
func contents(t *testing.T, s *Store, name string) string {
	t.Helper()
	c := openCache(t, s, name, "private")
	defer closeCache(t, c)
	var names []string
	for _, d := range c.Lower {
		entries, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

func TestCacheGenerations(t *testing.T) {
	s := newStore(t)
	const name = "../Opam cache"
	if got := contents(t, s, name); got != "" {
		t.Fatalf("a new cache has %s", got)
	}
	use(t, s, name, "a")
	use(t, s, name, "b")
	if got := contents(t, s, name); got != "a b" {
		t.Errorf("two uses left %q", got)
	}
	if got := contents(t, s, "other"); got != "" {
		t.Errorf("another cache has %q", got)
	}
	if c, err := s.OpenCache(t.Context(), "other", name, ""); err != nil || len(c.Lower) > 0 {
		t.Errorf("another domain's: %v, %v", c.Lower, err)
	}
	// Of two at the same time, the first to end wins.
	first, second := openCache(t, s, name, ""), openCache(t, s, name, "")
	commitCache(t, second, "second")
	commitCache(t, first, "first")
	if got := contents(t, s, name); got != "a b second" {
		t.Errorf("two at once left %q", got)
	}
	for _, d := range first.Lower {
		if !exists(d) {
			t.Error("a directory is gone while it is in use")
		}
	}
	closeCache(t, first)
	closeCache(t, second)
	// Nothing changed: no generation.
	c := openCache(t, s, name, "")
	commitCache(t, c)
	closeCache(t, c)
	if n := len(openCache(t, s, name, "").Lower); n != 3 {
		t.Errorf("%d directories", n)
	}
	if runtime.GOOS == "windows" { // where files have neither
		return
	}
	// But a changed owner or mode of the root counts.
	c = openCache(t, s, name, "")
	u := upper(t, s)
	if err := os.Chmod(u, 0o1777); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(u, flattenForTest); err != nil {
		t.Fatal(err)
	}
	closeCache(t, c)
	if n := len(openCache(t, s, name, "").Lower); n != 4 {
		t.Errorf("%d directories", n)
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestCachesAreFlattened(t *testing.T) {
	s := newStore(t)
	old := openCache(t, s, "c", "")
	var want []string
	for i := range 3 * maxCacheDirs {
		use(t, s, "c", "f"+strconv.Itoa(i))
		want = append(want, "f"+strconv.Itoa(i))
		c := openCache(t, s, "c", "")
		if n := len(c.Lower); n > maxCacheDirs {
			t.Fatalf("%d directories", n)
		}
		closeCache(t, c)
	}
	closeCache(t, old)
	seen := map[string]bool{}
	for _, f := range strings.Fields(contents(t, s, "c")) {
		seen[f] = true
	}
	for _, f := range want {
		if !seen[f] {
			t.Errorf("%s is lost", f)
		}
	}
	dirs, _ := filepath.Glob(s.path(cachesDir, "default", "c", cacheDirPrefix+"*"))
	if len(dirs) > maxCacheDirs {
		t.Errorf("%d directories are kept", len(dirs))
	}
	// A flattening that fails costs what this step has changed, no more.
	for len(openCache(t, s, "c", "").Lower) < maxCacheDirs {
		use(t, s, "c", "more")
	}
	before := contents(t, s, "c")
	c := openCache(t, s, "c", "")
	bad := errors.New("bad")
	if err := c.Commit(upper(t, s, "x"), func(dst string, _ []string) error {
		return errors.Join(os.Mkdir(dst, 0o755), bad)
	}); !errors.Is(err, bad) {
		t.Errorf("Commit: %v", err)
	}
	if got := contents(t, s, "c"); got != before {
		t.Errorf("it left %q", got)
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestSharedCaches(t *testing.T) {
	s := newStore(t)
	use(t, s, "c", "private")
	a, b := openCache(t, s, "c", "shared"), openCache(t, s, "c", "shared")
	if a.Shared == "" || a.Shared != b.Shared || len(a.Lower) > 0 {
		t.Errorf("%+v, %+v", a, b)
	}
	if entries, err := os.ReadDir(a.Shared); err != nil || len(entries) > 0 {
		t.Errorf("it has the private files: %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(a.Shared, "shared"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := a.Commit(upper(t, s), nil); err == nil {
		t.Error("Commit of a shared one")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.OpenCache(ctx, "default", "c", "locked"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked while it is shared: %v", err)
	}
	closeCache(t, a)
	time.AfterFunc(30*time.Millisecond, func() { _ = b.Close() })
	c := openCache(t, s, "c", "locked")
	if !exists(filepath.Join(c.Shared, "shared")) {
		t.Error("locked is not the directory of shared")
	}
	for _, sharing := range []string{"locked", "shared"} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		if _, err := s.OpenCache(ctx, "default", "c", sharing); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s while it is locked: %v", sharing, err)
		}
	}
	closeCache(t, c)
	if got := contents(t, s, "c"); got != "private" {
		t.Errorf("the private one has %q", got)
	}
	if _, err := s.OpenCache(t.Context(), "default", "c", "public"); err == nil {
		t.Error("sharing public is taken")
	}
	if _, err := s.OpenCache(t.Context(), "..", "c", ""); err == nil {
		t.Error("a bad domain is taken")
	}
}

// A power cut takes the last generation, not the cache.
func TestCacheEpochs(t *testing.T) {
	before := asEpoch(newStore(t), "before")
	use(t, before, "c", "synced")
	if err := before.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	use(t, before, "c", "lost")
	use(t, before, "c", "lost-too")
	if got := contents(t, before, "c"); got != "synced lost lost-too" {
		t.Fatalf("%q", got)
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, before.Dir())
	if got := contents(t, s, "c"); got != "synced" {
		t.Errorf("after the power cut: %q", got)
	}
	use(t, s, "c", "new")
	if got := contents(t, s, "c"); got != "synced new" {
		t.Errorf("and then: %q", got)
	}
	if ps := problems(t, s); len(ps) > 0 {
		t.Errorf("Verify finds %v", ps)
	}
	if dirs, _ := filepath.Glob(s.path(cachesDir, "default", "c", cacheDirPrefix+"*")); len(dirs) != 2 {
		t.Errorf("kept %v", dirs)
	}
}

func TestPruneCaches(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"old", "new", "used", "shared", "locked"} {
		use(t, s, name, "x")
	}
	for _, name := range []string{"old", "used"} {
		if err := os.Chtimes(s.path(cachesDir, "default", name, cacheLock), time.Time{}, time.Now().Add(-48*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	inUse := openCache(t, s, "used", "")
	if r := prune(t, s, PruneOptions{OlderThan: time.Hour}); r.Caches != 1 {
		t.Errorf("older: %+v", r)
	}
	shared, locked := openCache(t, s, "shared", "shared"), openCache(t, s, "locked", "locked")
	if r := prune(t, s, PruneOptions{All: true, DryRun: true}); r.Caches != 1 || !exists(s.path(cachesDir, "default", "new")) {
		t.Errorf("dry: %+v", r)
	}
	if r := prune(t, s, PruneOptions{All: true}); r.Caches != 1 || r.Bytes == 0 {
		t.Errorf("all: %+v", r)
	}
	for _, c := range []*CacheMount{inUse, shared, locked} {
		if !exists(c.dir) {
			t.Errorf("%s went while in use", c.dir)
		}
		closeCache(t, c)
	}
	if got := contents(t, s, "new"); got != "" {
		t.Errorf("an evicted cache has %q", got)
	}
	if r := prune(t, s, PruneOptions{All: true}); r.Caches != 4 {
		t.Errorf("then: %+v", r)
	}
	use(t, s, "new", "y")
	if got := contents(t, s, "new"); got != "y" {
		t.Errorf("%q", got)
	}
}

// TestCachesWithoutEpochs has a store on a system that cannot tell boots apart: every one but Linux.
func TestCachesWithoutEpochs(t *testing.T) {
	s := openStore(t, t.TempDir())
	s.epoch = ""
	for i, want := range []string{"a", "a b"} {
		use(t, s, "c", string(rune('a'+i)))
		if got := contents(t, s, "c"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
