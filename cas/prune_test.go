package cas

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// chain makes the results a0, a1, ... each on the one before, with a layer and a blob of its own, last used
// hours ago, and closes the store that holds them.
func chain(t *testing.T, dir, domain, name string, n int, ago time.Duration) (layers []string, blobs []digest.Digest) {
	t.Helper()
	s := openStore(t, dir)
	var parents []string
	for i := range n {
		key := fmt.Sprintf("%s%d", name, i)
		l := commitLayer(t, s, "", strings.Repeat(key, 10000))
		d := putBlob(t, s, domain+key)
		putResult(t, s, domain, Result{Key: key, Parents: parents, Layers: []string{l}, Blobs: []digest.Digest{d}})
		lastUsed(t, s, domain, key, ago)
		parents = []string{key}
		layers, blobs = append(layers, l), append(blobs, d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return layers, blobs
}

// keysOf lists the results of a domain.
func keysOf(t *testing.T, s *Store, domain string) string {
	t.Helper()
	var keys []string
	for r, err := range s.Results() {
		if err != nil {
			t.Fatal(err)
		}
		if r.Domain == domain {
			keys = append(keys, r.Result.Key)
		}
	}
	slices.Sort(keys)
	return strings.Join(keys, " ")
}

func TestPruneNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	chain(t, dir, "default", "a", 3, 1000*time.Hour)
	s := openStore(t, dir)
	if r := prune(t, s, PruneOptions{}); !reflect.DeepEqual(r, PruneReport{}) {
		t.Errorf("%+v", r)
	}
}

func TestPruneGarbage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	layers, blobs := chain(t, dir, "default", "a", 6, 0)
	spoilers := openStore(t, dir)
	commitLayer(t, spoilers, "", "unreferenced")
	putBlob(t, spoilers, "unreferenced")
	putResult(t, spoilers, "default", Result{Key: "alias", Alias: "a4"})
	putResult(t, spoilers, "default", Result{Key: "orphan", Parents: []string{"missing"}})
	if err := spoilers.Close(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	for _, junk := range []string{s.path(layersDir, "junk+1"), s.path(blobsDir, "sha256", "junk")} {
		if err := os.WriteFile(junk, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// a3 loses its layer, so that a4, a5 and the alias are of no use either.
	if err := s.Trash(s.path(layersDir, layers[3])); err != nil {
		t.Fatal(err)
	}
	dry := prune(t, s, PruneOptions{DryRun: true})
	if got := keysOf(t, s, "default"); got != "a0 a1 a2 a3 a4 a5 alias orphan" {
		t.Errorf("dry run left %s", got)
	}
	r := prune(t, s, PruneOptions{})
	if !reflect.DeepEqual(r, dry) {
		t.Errorf("dry run said %+v, not %+v", dry, r)
	}
	if r.Results != 5 || r.Layers != 4 || r.Blobs != 5 || r.Bytes < 40_000 {
		t.Errorf("%+v", r)
	}
	if got := keysOf(t, s, "default"); got != "a0 a1 a2" {
		t.Errorf("left %s", got)
	}
	if _, ok := s.HasBlob(blobs[2]); !ok || !s.HasLayer(layers[2]) {
		t.Error("too much went")
	}
	if ps := problems(t, s); len(ps) > 0 {
		t.Errorf("Verify finds %v", ps)
	}
}

// What others keep in the store is counted, and what of it can be made again goes by its time of last use.
func TestPruneDerived(t *testing.T) {
	s := newStore(t)
	for name, age := range map[string]time.Duration{"own/state/new": 0, "own/state/old": 48 * time.Hour, "own/disks/old": 2 * time.Hour, "own/more": 1000 * time.Hour} {
		dir := s.path(filepath.FromSlash(name))
		at := time.Now().Add(-age)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "file"), make([]byte, 10_000), 0o644), os.Chtimes(dir, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := s.Usage(t.Context(), "own"); err != nil || u.Kept < 40_000 {
		t.Errorf("%+v, %v", u, err)
	}
	for _, c := range []struct {
		o    PruneOptions
		want int
		left string
	}{
		{PruneOptions{}, 0, "disks/old state/new state/old"},
		{PruneOptions{All: true, DryRun: true}, 2, "disks/old state/new state/old"},
		{PruneOptions{OlderThan: 24 * time.Hour}, 1, "disks/old state/new"},
		{PruneOptions{All: true}, 1, "state/new"},
	} {
		c.o.Derived = []string{"own/state", "own/disks"}
		r := prune(t, s, c.o)
		if r.Derived != c.want || r.Bytes < int64(c.want)*10_000 {
			t.Errorf("%+v: %+v", c.o, r)
		}
		var left []string
		for _, kind := range []string{"disks", "state"} {
			for path := range filesBelow(s.path("own", kind), 1) {
				left = append(left, kind+"/"+filepath.Base(path))
			}
		}
		if got := strings.Join(left, " "); got != c.left {
			t.Errorf("%+v left %s, want %s", c.o, got, c.left)
		}
	}
	if !exists(s.path("own", "more", "file")) {
		t.Error("what is not derived is gone")
	}
	// It is no reason to take the directory for somebody else's, whatever else is gone.
	if err := os.Remove(s.path(hashesDir)); err != nil {
		t.Fatal(err)
	}
	again, err := Open(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestPruneByAge(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	chain(t, dir, "default", "a", 3, 48*time.Hour)
	chain(t, dir, "default", "b", 3, 48*time.Hour)
	s := openStore(t, dir)
	lastUsed(t, s, "default", "a1", 0) // and with it a0
	if r := prune(t, s, PruneOptions{OlderThan: 24 * time.Hour}); r.Results != 4 || r.Layers != 4 || r.Blobs != 4 {
		t.Errorf("%+v", r)
	}
	if got := keysOf(t, s, "default"); got != "a0 a1" {
		t.Errorf("left %s", got)
	}
}

func TestPruneBySize(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	chain(t, dir, "default", "a", 3, 3*time.Hour)
	chain(t, dir, "default", "b", 3, 2*time.Hour)
	chain(t, dir, "default", "c", 3, 1*time.Hour)
	s := openStore(t, dir)
	use(t, s, "older", "x")
	if err := os.Chtimes(s.path(cachesDir, "default", "older", cacheLock), time.Time{}, time.Now().Add(-150*time.Minute)); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	total := u.Blobs + u.Layers + u.Caches
	if u.Results != 9 || u.Blobs == 0 || u.Layers < 9*20_000 || u.Caches == 0 || u.Other == 0 {
		t.Errorf("%+v", u)
	}
	if r := prune(t, s, PruneOptions{KeepBytes: total}); !reflect.DeepEqual(r, PruneReport{}) {
		t.Errorf("it fits: %+v", r)
	}
	// The end of the chain that was used least recently, and no more.
	if r := prune(t, s, PruneOptions{KeepBytes: total - 1}); r.Results != 1 || r.Layers != 1 || r.Blobs != 1 {
		t.Errorf("one byte less: %+v", r)
	}
	if got := keysOf(t, s, "default"); got != "a0 a1 b0 b1 b2 c0 c1 c2" {
		t.Errorf("left %s", got)
	}
	if r := prune(t, s, PruneOptions{KeepBytes: total * 5 / 9}); r.Caches != 1 {
		t.Errorf("%+v", r)
	}
	if got := keysOf(t, s, "default"); got != "b0 b1 c0 c1 c2" && got != "b0 c0 c1 c2" {
		t.Errorf("left %s", got)
	}
	// One that is used itself keeps what it stands on.
	lastUsed(t, s, "default", "b0", 3*time.Hour)
	lastUsed(t, s, "default", "c0", 3*time.Hour)
	lastUsed(t, s, "default", "c1", 3*time.Hour)
	prune(t, s, PruneOptions{KeepBytes: total * 3 / 9})
	if got := keysOf(t, s, "default"); got != "c0 c1 c2" {
		t.Errorf("left %s", got)
	}
	prune(t, s, PruneOptions{KeepBytes: 1})
	if got := keysOf(t, s, "default"); got != "" {
		t.Errorf("left %s", got)
	}
	after, err := s.Usage(context.Background())
	if err != nil || after.Blobs+after.Layers > 0 {
		t.Errorf("%+v, %v", after, err)
	}
}

func TestPruneSparesWhatIsInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	layers, blobs := chain(t, dir, "default", "a", 4, time.Hour)
	chain(t, dir, "default", "b", 2, time.Hour)
	chain(t, dir, "other", "a", 2, time.Hour)
	user, s := openStore(t, dir), openStore(t, dir)
	putResult(t, s, "default", Result{Key: "alias", Alias: "a2"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if err := user.Hold("default", "alias", "missing"); err != nil {
		t.Fatal(err)
	}
	r := prune(t, s, PruneOptions{All: true})
	if got := keysOf(t, s, "default") + ", " + keysOf(t, s, "other"); got != "a0 a1 a2 alias, " {
		t.Errorf("left %s", got)
	}
	if r.Kept != 4 || r.Results != 5 {
		t.Errorf("%+v", r)
	}
	for i := range 3 {
		if _, ok := user.HasBlob(blobs[i]); !ok || !user.HasLayer(layers[i]) {
			t.Errorf("what a%d refers to is gone", i)
		}
	}
	// Something made or seen, but not yet referred to.
	layer, blob := commitLayer(t, user, "", "x"), putBlob(t, user, "x")
	w, err := user.NewBlob()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	prune(t, s, PruneOptions{All: true})
	written, _, err := w.Commit("")
	if err != nil {
		t.Fatal(err)
	}
	prune(t, s, PruneOptions{All: true})
	if _, ok := user.HasBlob(blob); !ok || !user.HasLayer(layer) {
		t.Error("what was made is gone")
	}
	if _, ok := user.HasBlob(written); !ok {
		t.Error("what was written is gone")
	}
	// A result of a held key that comes later.
	putResult(t, user, "default", Result{Key: "missing", Parents: []string{"a2"}, Layers: []string{layer}})
	prune(t, s, PruneOptions{All: true})
	if !hasResult(s, "default", "missing") {
		t.Error("a held key is gone")
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	if r := prune(t, s, PruneOptions{All: true}); r.Kept != 0 || r.Results != 5 {
		t.Errorf("after Close: %+v", r)
	}
	if got := keysOf(t, s, "default"); got != "" {
		t.Errorf("left %s", got)
	}
}

// A parent in another domain is needed as one of the own.
func TestPruneAcrossDomains(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	layers, _ := chain(t, dir, "default", "a", 2, 48*time.Hour)
	first := openStore(t, dir)
	putResult(t, first, "pr-7", Result{Key: "child", Parents: []string{"a1"}, Layers: layers[:1]})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	if r := prune(t, s, PruneOptions{OlderThan: time.Hour}); r.Results != 0 {
		t.Errorf("%+v", r)
	}
	if err := s.RemoveResult("default", "a1"); err != nil {
		t.Fatal(err)
	}
	if r := prune(t, s, PruneOptions{OlderThan: time.Hour}); r.Results != 2 || r.Layers != 2 {
		t.Errorf("%+v", r)
	}
}

func TestPruneIsCancelled(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Prune(ctx, PruneOptions{All: true}); err == nil {
		t.Error("no error")
	}
}

func TestPruneSweeps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	cmd, _ := startHelper(t, "lock", dir, "key")
	kill(t, cmd)
	s := openStore(t, dir)
	held, err := s.Lock(t.Context(), "default", "held")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.HashMemo("/src")
	if err != nil {
		t.Fatal(err)
	}
	m.remember("x", memoEntry{})
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	prune(t, s, PruneOptions{All: true})
	if exists(s.RunningLog("default", "key")) || !exists(held.LogPath()) || exists(m.path) {
		t.Error("locks and memos are not swept")
	}
	if left, _ := os.ReadDir(s.path(locksDir, "default")); len(left) != 2 {
		t.Errorf("left %v", left)
	}
}

func TestVerify(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	layers, blobs := chain(t, dir, "default", "a", 5, 0)
	s := openStore(t, dir)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	use(t, s, "c", "x")
	if ps := problems(t, s); len(ps) > 0 {
		t.Fatalf("a sound store: %v", ps)
	}
	bad, _ := s.blobPath(blobs[0])
	if err := os.WriteFile(bad, []byte("flipped"), 0o444); err != nil {
		t.Fatal(err)
	}
	missing, _ := s.blobPath(blobs[1])
	if err := os.Remove(missing); err != nil {
		t.Fatal(err)
	}
	if err := s.Trash(s.path(layersDir, layers[2])); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.LayerPath(layers[3])); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveResult("default", "a3"); err != nil {
		t.Fatal(err)
	}
	putResult(t, s, "default", Result{Key: "uses", Layers: layers[3:4]})
	dirs, _ := filepath.Glob(s.path(cachesDir, "default", "c", cacheDirPrefix+"*"))
	if err := s.Trash(dirs[0]); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems(t, s) {
		got = append(got, fmt.Sprintf("%s %s: %s", p.What, filepath.Base(p.Path), p.Detail))
	}
	slices.Sort(got)
	want := []string{
		"blob " + blobs[0].Encoded() + ": its bytes have the digest " + digest.FromString("flipped").String() + "; 1 results refer to it",
		"cache gen-1: it lists directories that are missing; an older generation, or an empty cache, is used",
		"result a1: the blob " + blobs[1].String() + " of key a1 is missing",
		"result a2: the layer directory " + layers[2] + " of key a2 is missing",
		"result a4: key a4 needs key a3, which is missing",
		"result uses: the layer directory " + layers[3] + " of key uses has no files",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	n := 0
	for range s.Verify(t.Context()) { // a caller that has seen enough
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d problems", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range s.Verify(ctx) {
		if err == nil {
			t.Error("a problem after it was cancelled")
		}
	}
}
