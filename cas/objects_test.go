package cas

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestBlobs(t *testing.T) {
	s := newStore(t)
	big := bytes.Repeat([]byte("0123456789"), smallBlob/5)
	for _, content := range [][]byte{nil, []byte("small"), big} {
		want := digest.FromBytes(content)
		if _, ok := s.HasBlob(want); ok {
			t.Fatal("it is there already")
		}
		if _, err := s.Blob(want); !errors.Is(err, ErrNotFound) {
			t.Fatalf("Blob: %v", err)
		}
		for range 2 { // idempotent
			d, err := s.PutBlob(content)
			if err != nil || d != want {
				t.Fatalf("PutBlob: %s, %v", d, err)
			}
		}
		for range 2 {
			w, err := s.NewBlob()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
			if d, n, err := w.Commit(want); err != nil || d != want || n != int64(len(content)) {
				t.Fatalf("Commit: %s, %d, %v", d, n, err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if n, ok := s.HasBlob(want); !ok || n != int64(len(content)) {
			t.Errorf("HasBlob: %d, %t", n, ok)
		}
		f, err := s.Blob(want)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil || !bytes.Equal(b, content) {
			t.Errorf("read %d bytes, %v", len(b), err)
		}
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	for _, d := range []digest.Digest{"", "sha256:x", "sha256:../../x", digest.Digest("sha512:" + strings.Repeat("0", 128))} {
		if _, err := s.Blob(d); err == nil {
			t.Errorf("Blob(%q) did not fail", d)
		}
		if _, ok := s.HasBlob(d); ok {
			t.Errorf("HasBlob(%q)", d)
		}
	}
}

func TestBlobWriterRefuses(t *testing.T) {
	s := newStore(t)
	w, err := s.NewBlob()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Commit(digest.FromString("y")); err == nil || !strings.Contains(err.Error(), "expected sha256:") {
		t.Errorf("Commit of other bytes: %v", err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("Write after Commit")
	}
	if _, _, err := w.Commit(""); err == nil {
		t.Error("Commit after Commit")
	}
	if w, err = s.NewBlob(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// durableAtOnce is where nothing tells boots apart: commits are synced, and marked.
const durableAtOnce = runtime.GOOS != "linux"

// A blob is not synced, so a power cut may leave anything in its place.
func TestSpoiledBlob(t *testing.T) {
	if durableAtOnce {
		t.Skip("what is committed is durable at once here")
	}
	for name, content := range map[string]string{"small": "content", "large": strings.Repeat("content", smallBlob/3)} {
		t.Run(name, func(t *testing.T) {
			first := newStore(t)
			d := putBlob(t, first, content)
			path, _ := first.blobPath(d)
			if err := os.WriteFile(path, make([]byte, len(content)), 0o644); err != nil {
				t.Fatal(err)
			}
			s := openStore(t, first.Dir())
			if _, ok := s.HasBlob(d); ok {
				t.Error("HasBlob")
			}
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, ok := s.HasBlob(d); ok {
				t.Error("a sync has made it good")
			}
			putBlob(t, s, content)
			if b, err := os.ReadFile(path); string(b) != content {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(path); err != nil || !isMarked(info) {
				t.Errorf("not marked: %v", err)
			}
			if _, ok := openStore(t, first.Dir()).HasBlob(d); !ok {
				t.Error("another process does not see it")
			}
		})
	}
}

func TestLayers(t *testing.T) {
	s := newStore(t)
	name := commitLayer(t, s, "", "one")
	other := commitLayer(t, s, "", "two")
	if name == other || !s.HasLayer(name) || !s.HasLayer(other) {
		t.Errorf("%s, %s", name, other)
	}
	if b, err := os.ReadFile(filepath.Join(s.LayerPath(name), "file")); string(b) != "one" {
		t.Errorf("%q, %v", b, err)
	}
	const shared = "d-0123"
	commitLayer(t, s, shared, "first")
	commitLayer(t, s, shared, "second")
	if b, err := os.ReadFile(filepath.Join(s.LayerPath(shared), "file")); string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	for _, bad := range []string{"..", "a/b", "A", ".x"} {
		dir, err := newLayer(s, "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.CommitLayer(dir, bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
		if s.HasLayer(bad) {
			t.Errorf("HasLayer(%q)", bad)
		}
	}
	if _, err := s.CommitLayer(t.TempDir(), ""); err == nil {
		t.Error("a directory from elsewhere is taken")
	}
	empty := s.temp("empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CommitLayer(empty, ""); err == nil {
		t.Error("a directory without fs is taken")
	}
}

func TestResults(t *testing.T) {
	s := newStore(t)
	if _, err := s.Result("default", "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing: %v", err)
	}
	for _, key := range []string{"k", "../../x", "UPPER", strings.Repeat("long", 100), strings.Repeat("0123456789abcdef", 4)} {
		want := Result{Key: key, Alias: "a", Parents: []string{"p"}, Data: json.RawMessage(`{"x":"<&>"}`), Created: time.Unix(1, 2).UTC()}
		putResult(t, s, "default", want)
		got, err := s.Result("default", key)
		if err != nil {
			t.Fatal(err)
		}
		if got.Key != key || got.Alias != "a" || got.Parents[0] != "p" || string(got.Data) != string(want.Data) || !got.Created.Equal(want.Created) {
			t.Errorf("%+v", got)
		}
		if _, err := s.Result("other", key); !errors.Is(err, ErrNotFound) {
			t.Errorf("another domain: %v", err)
		}
	}
	putResult(t, s, "default", Result{Key: "k", Data: json.RawMessage(`"new"`)})
	if r, err := s.Result("default", "k"); err != nil || string(r.Data) != `"new"` || r.Created.IsZero() {
		t.Errorf("replaced: %+v, %v", r, err)
	}
	n := 0
	for r, err := range s.Results() {
		if err != nil || r.Domain != "default" || r.Durable != durableAtOnce || time.Since(r.LastUsed) > time.Minute {
			t.Errorf("%+v, %v", r, err)
		}
		n++
	}
	if n != 5 {
		t.Errorf("%d results", n)
	}
	for range 2 {
		if err := s.RemoveResult("default", "k"); err != nil {
			t.Error(err)
		}
	}
	if hasResult(s, "default", "k") {
		t.Error("it is still there")
	}
	for _, bad := range []struct {
		domain string
		r      Result
	}{
		{"", Result{Key: "k"}},
		{"../x", Result{Key: "k"}},
		{"default", Result{}},
		{"default", Result{Key: "k", Layers: []string{"../x"}}},
		{"default", Result{Key: "k", Data: json.RawMessage("{")}},
	} {
		if err := s.PutResult(bad.domain, &bad.r); err == nil {
			t.Errorf("%q, %+v is taken", bad.domain, bad.r)
		}
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestUnreadableResults(t *testing.T) {
	for _, content := range []string{"", "{", "\x00\x00\x00", `{"key":"other"}`, "null", `{"key":"k","layers":7}`} {
		s := newStore(t)
		putResult(t, s, "default", Result{Key: "k"})
		path := s.resultPath("default", "k")
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Result("default", "k"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", content, err)
		}
		if ps := problems(t, s); len(ps) != 1 || ps[0].Path != path {
			t.Errorf("%q: Verify finds %v", content, ps)
		}
		putResult(t, s, "default", Result{Key: "k"})
		if !hasResult(s, "default", "k") {
			t.Errorf("%q: cannot be replaced", content)
		}
	}
}

func TestTouch(t *testing.T) {
	s := newStore(t)
	putResult(t, s, "default", Result{Key: "k"})
	used := func() time.Duration {
		info, err := os.Stat(s.resultPath("default", "k"))
		if err != nil {
			t.Fatal(err)
		}
		return time.Since(info.ModTime())
	}
	lastUsed(t, s, "default", "k", 50*time.Second)
	s.Touch("default", "k")
	if used() < 45*time.Second {
		t.Error("touched twice in a minute")
	}
	lastUsed(t, s, "default", "k", 2*time.Hour)
	s.Touch("default", "k")
	if used() > time.Minute {
		t.Error("not touched")
	}
	s.Touch("default", "missing")
}

// A store after a power cut: what was not synced does not exist.
func TestEpochs(t *testing.T) {
	before := asEpoch(newStore(t), "before")
	commitLayer(t, before, "d-synced", "good")
	putResult(t, before, "default", Result{Key: "synced", Layers: []string{"d-synced"}})
	if err := before.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	commitLayer(t, before, "d-lost", "spoiled")
	putResult(t, before, "default", Result{Key: "lost", Layers: []string{"d-lost"}, Parents: []string{"synced"}})
	putResult(t, before, "default", Result{Key: "child", Alias: "lost"})
	for _, k := range []string{"synced", "lost", "child"} {
		if !hasResult(before, "default", k) {
			t.Fatalf("%s is missing in its own epoch", k)
		}
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}

	after := openStore(t, before.Dir())
	if !hasResult(after, "default", "synced") || !after.HasLayer("d-synced") {
		t.Error("what was synced is lost")
	}
	if hasResult(after, "default", "lost") || hasResult(after, "default", "child") || after.HasLayer("d-lost") {
		t.Error("what was not synced is there")
	}
	// A sync does not turn it into something durable.
	if err := after.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hasResult(after, "default", "lost") || after.HasLayer("d-lost") {
		t.Error("a sync made it good")
	}
	if ps := problems(t, after); len(ps) > 0 {
		t.Errorf("Verify finds %v", ps)
	}
	n := 0
	for range after.Results() {
		n++
	}
	if n != 1 {
		t.Errorf("%d results are listed", n)
	}
	// It is replaced by what is made now.
	commitLayer(t, after, "d-lost", "good")
	if b, _ := os.ReadFile(filepath.Join(after.LayerPath("d-lost"), "file")); string(b) != "good" || !after.HasLayer("d-lost") {
		t.Errorf("layer %q", b)
	}
	putResult(t, after, "default", Result{Key: "lost", Layers: []string{"d-lost"}})
	if !hasResult(after, "default", "lost") {
		t.Error("the result is not replaced")
	}
	// What is still lost is garbage.
	again := openStore(t, before.Dir())
	if r := prune(t, again, PruneOptions{}); r.Results != 1 || r.Layers != 0 {
		t.Errorf("prune: %+v", r)
	}
	if exists(again.resultPath("default", "child")) {
		t.Error("prune left it")
	}
}

// Where epochs cannot be told, everything is durable at once.
func TestNoEpoch(t *testing.T) {
	s := asEpoch(newStore(t), "")
	l := commitLayer(t, s, "", "x")
	d := putBlob(t, s, "small")
	putResult(t, s, "default", Result{Key: "k", Layers: []string{l}})
	other := asEpoch(openStore(t, s.Dir()), "")
	path, _ := s.blobPath(d)
	for _, p := range []string{path, s.path(layersDir, l, epochFile), s.resultPath("default", "k")} {
		if info, err := os.Stat(p); err != nil || !isMarked(info) {
			t.Errorf("%s is not marked: %v", p, err)
		}
	}
	if !hasResult(other, "default", "k") || !other.HasLayer(l) {
		t.Error("it is not there")
	}
}

// A durable result refers to nothing that is not durable, whoever has made it and died since.
func TestMarksReachWhatOthersMade(t *testing.T) {
	if durableAtOnce {
		t.Skip("what is committed is durable at once here")
	}
	s := newStore(t)
	other := openStore(t, s.Dir())
	layer := commitLayer(t, other, "d-other", "x")
	blob := putBlob(t, other, "x")
	putResult(t, other, "base", Result{Key: "grand", Layers: []string{layer}})
	putResult(t, other, "base", Result{Key: "parent", Parents: []string{"grand"}})
	// Its journal is lost: all that counts is that of s.
	other.mu.Lock()
	if err := os.Remove(other.journal.Name()); err != nil {
		t.Fatal(err)
	}
	other.mu.Unlock()
	putResult(t, s, "pr-1", Result{Key: "child", Parents: []string{"parent"}, Blobs: []digest.Digest{blob}})
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	blobPath, _ := s.blobPath(blob)
	for _, p := range []string{
		s.resultPath("pr-1", "child"), s.resultPath("base", "parent"), s.resultPath("base", "grand"),
		s.path(layersDir, layer, epochFile), blobPath,
	} {
		if info, err := os.Stat(p); err != nil || !isMarked(info) {
			t.Errorf("%s is not marked: %v", p, err)
		}
	}
}

// Sync also marks what other processes made, the dead and the living.
func TestSyncOfOthers(t *testing.T) {
	if durableAtOnce {
		t.Skip("what is committed is durable at once here")
	}
	s := newStore(t)
	dead := openStore(t, s.Dir())
	putResult(t, dead, "default", Result{Key: "dead"})
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	alive := openStore(t, s.Dir())
	putResult(t, alive, "default", Result{Key: "alive"})
	if s.hasUnsynced(time.Hour) || !s.hasUnsynced(0) {
		t.Error("hasUnsynced")
	}
	if alive.hasUnsynced(time.Hour) || !alive.hasUnsynced(0) {
		t.Error("hasUnsynced of its own")
	}
	alive.journalSince = time.Now().Add(-2 * time.Hour)
	if !alive.hasUnsynced(time.Hour) {
		t.Error("hasUnsynced of its own, old")
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"dead", "alive"} {
		if info, err := os.Stat(s.resultPath("default", k)); err != nil || !isMarked(info) {
			t.Errorf("%s: %v", k, err)
		}
	}
	if err := alive.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.path(unsyncedDir)); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestSyncInTheBackground(t *testing.T) {
	if durableAtOnce {
		t.Skip("what is committed is durable at once here")
	}
	s := newStore(t)
	putResult(t, s, "default", Result{Key: "k"})
	if err := s.sync(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(s.resultPath("default", "k")); err != nil || !isMarked(info) {
		t.Errorf("not marked: %v", err)
	}
	// A close while it waits marks nothing, and loses nothing.
	putResult(t, s, "default", Result{Key: "l"})
	time.AfterFunc(20*time.Millisecond, s.stop)
	if err := s.sync(s.ctx, time.Hour); err == nil {
		t.Error("no error")
	}
	other := openStore(t, s.Dir())
	if err := other.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(s.resultPath("default", "l")); err != nil || !isMarked(info) {
		t.Errorf("not marked: %v", err)
	}
}

// Two mounts of one file system, as in two containers, have two epochs, but lose nothing to each other.
func TestKinEpochs(t *testing.T) {
	first := asEpoch(newStore(t), "first")
	dir := first.Dir()
	commitLayer(t, first, "d-shared", "first")
	putResult(t, first, "default", Result{Key: "k", Layers: []string{"d-shared"}})

	second := asEpoch(openStore(t, dir), "second")
	if err := second.Hold("default", "k"); err != nil {
		t.Fatal(err)
	}
	if !hasResult(second, "default", "k") {
		t.Error("what a living process of another mount has made is not seen")
	}
	commitLayer(t, second, "d-shared", "second")
	if b, _ := os.ReadFile(filepath.Join(first.LayerPath("d-shared"), "file")); string(b) != "first" {
		t.Errorf("the layer was replaced while it is in use: %q", b)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// What the second knows outlives the first, for others, too.
	third := asEpoch(openStore(t, dir), "third")
	if r := prune(t, third, PruneOptions{All: true}); r.Results != 0 || r.Layers != 0 {
		t.Errorf("prune: %+v", r)
	}
	if !hasResult(third, "default", "k") || !third.HasLayer("d-shared") || !hasResult(second, "default", "k") {
		t.Error("it is lost")
	}
	for _, s := range []*Store{second, third} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Then nobody is left to tell.
	fourth := asEpoch(openStore(t, dir), "fourth")
	if hasResult(fourth, "default", "k") || fourth.HasLayer("d-shared") {
		t.Error("it is believed without proof")
	}
	if fourth.hasUnsynced(0) {
		t.Error("a journal of a strange epoch is to be worked off")
	}
	// But in the first mount it is still good, and can still be made durable.
	again := asEpoch(openStore(t, dir), "first")
	if !hasResult(again, "default", "k") || !again.hasUnsynced(0) {
		t.Error("it is lost to its own epoch")
	}
	if err := fourth.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := again.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !hasResult(fourth, "default", "k") || !fourth.HasLayer("d-shared") {
		t.Error("it is not durable")
	}
}
