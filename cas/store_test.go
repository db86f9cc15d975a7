package cas

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestOpenMakesAStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "store")
	s := openStore(t, dir)
	if s.Dir() != dir || filepath.Base(s.TempDir()) != s.RunID() {
		t.Errorf("dir %s, temp %s, run %s", s.Dir(), s.TempDir(), s.RunID())
	}
	if info, err := os.Stat(s.TempDir()); err != nil || !info.IsDir() {
		t.Errorf("temp: %v", err)
	}
	other := openStore(t, dir)
	if other.RunID() == s.RunID() || len(other.DeadRuns()) > 0 {
		t.Errorf("the second run is %s, dead %v", other.RunID(), other.DeadRuns())
	}
	commitLayer(t, s, "", "x")
	if err := os.WriteFile(s.temp("left"), []byte("left"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if exists(s.TempDir()) || exists(s.path(leasesDir, s.RunID())) {
		t.Error("Close left something")
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := s.PutResult("default", &Result{Key: "k"}); err == nil {
		t.Error("a closed store takes results")
	}
	if s.HasLayer("x") {
		t.Error("a closed store promises layers")
	}
}

func TestOpenTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				s, err := Open(dir)
				if err != nil {
					t.Error(err)
					return
				}
				if !exists(s.TempDir()) {
					t.Error("somebody took the directory away")
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestOpenRefuses(t *testing.T) {
	newer := newStore(t)
	if err := os.WriteFile(newer.path(versionFile), []byte("2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(foreign, "thesis.tex")
	for _, tt := range []struct{ name, dir, want string }{
		{"newer format", newer.Dir(), `its format is "2", this program knows only "1"`},
		{"somebody's directory", foreign, `not empty and not a store: it has "thesis.tex"`},
		{"a file", file, "thesis.tex"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Open(tt.dir)
			if err == nil {
				s.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v\nwant: %s", err, tt.want)
			}
		})
	}
	entries, _ := os.ReadDir(foreign)
	if len(entries) != 1 {
		t.Errorf("it made %v", entries)
	}
}

func TestTrash(t *testing.T) {
	s := newStore(t)
	dir, err := newLayer(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Trash(dir); err != nil || exists(dir) {
		t.Errorf("Trash: %v", err)
	}
	if err := s.Trash(dir); err != nil {
		t.Errorf("again: %v", err)
	}
	outside := t.TempDir()
	for _, p := range []string{outside, s.Dir(), s.Dir() + "/../x", "/"} {
		if err := s.Trash(p); err == nil {
			t.Errorf("Trash(%s) did not fail", p)
		}
	}
	if err := s.emptyTrash(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.path(trashDir)); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestBacklogIsDeletedInTheBackground(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	first := openStore(t, dir)
	for range trashBacklog {
		l, err := newLayer(first, "x")
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Trash(l); err != nil {
			t.Fatal(err)
		}
	}
	second := openStore(t, dir)
	// It is done with the lowest priority, for the processor and the disk: on a busy machine that is late.
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		left, err := os.ReadDir(second.path(trashDir))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d are left", len(left))
		}
	}
}

func TestLock(t *testing.T) {
	s := newStore(t)
	const key = "../../Etc/passwd\x00"
	l, err := s.Lock(t.Context(), "default", key)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := s.TryLock("default", key); other != nil || err != nil {
		t.Errorf("a second lock: %v, %v", other, err)
	}
	if other, err := s.TryLock("other", key); other == nil {
		t.Errorf("the same key of another domain: %v", err)
	}
	if l.LogPath() != s.RunningLog("default", key) || !strings.HasPrefix(l.LogPath(), s.path(locksDir, "default")+string(filepath.Separator)) {
		t.Errorf("log %s", l.LogPath())
	}
	if err := os.WriteFile(l.LogPath(), []byte("log"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if _, err := s.Lock(ctx, "default", key); !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
	l.Unlock()
	l.Unlock()
	l, err = s.TryLock("default", key)
	if l == nil || err != nil {
		t.Fatalf("after Unlock: %v, %v", l, err)
	}
	if b, err := os.ReadFile(l.LogPath()); err != nil || len(b) > 0 {
		t.Errorf("log %q, %v", b, err)
	}
	if _, err := s.Lock(t.Context(), "../x", key); err == nil {
		t.Error("a bad domain is taken")
	}
	// Close releases.
	other := openStore(t, s.Dir())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err := other.TryLock("default", key); l == nil || err != nil {
		t.Errorf("after Close: %v, %v", l, err)
	}
}

func TestLockExcludesGoroutines(t *testing.T) {
	s := newStore(t)
	var wg sync.WaitGroup
	n := 0
	for range 8 {
		wg.Go(func() {
			for range 5 {
				l, err := s.Lock(context.Background(), "default", "k")
				if err != nil {
					t.Error(err)
					return
				}
				n++
				l.Unlock()
			}
		})
	}
	wg.Wait()
	if n != 40 {
		t.Errorf("counted %d", n)
	}
}

func TestEscape(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, tt := range []struct{ in, want string }{
		{"", "%"},
		{"opam-archives", "opam-archives"},
		{"a.b_c-9", "a.b_c-9"},
		{".", "%2e"},
		{"..", "%2e%2e"},
		{"../../etc", "%2e.%2f..%2fetc"},
		{"UPPER", "%55%50%50%45%52"},
		{"a b", "a%20b"},
		{"c:\\x", "c%3a%5cx"},
		{"é", "%c3%a9"},
		{"nul", "%6eul"},
		{"com1.txt", "%63om1.txt"},
		{"com", "com"},
		{"lpt", "lpt"},
		{"end.", "end%2e"},
		{"100%", "100%25"},
	} {
		if got := escape(tt.in); got != tt.want {
			t.Errorf("escape(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
	if a, b := escape(long), escape(long+"y"); a == b || len(a) > maxName || len(b) > maxName {
		t.Errorf("long names: %q, %q", a, b)
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("a", "A")
	f.Add("con", "%63on")
	f.Add(strings.Repeat("x", 201), strings.Repeat("x", 202))
	f.Add("%-", "")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := escape(a), escape(b)
		if (x == y) != (a == b) {
			t.Fatalf("escape(%q) = %q, escape(%q) = %q", a, x, b, y)
		}
		if strings.ToLower(x) != x || filepath.Base(x) != x || !filepath.IsLocal(x) || len(x) > maxName {
			t.Fatalf("escape(%q) = %q", a, x)
		}
		path := filepath.Join(dir, x+lockSuffix)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(path)
	})
}

func TestValidName(t *testing.T) {
	for _, s := range []string{"default", "pr-7", "0", "a.b_c", "d-" + strings.Repeat("f", 64)} {
		if !validName(s) || escape(s) != s {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{"", ".", "..", ".x", "-x", "A", "a/b", "a\x00", "a b", "x.", "nul", "com1.x", "é", strings.Repeat("a", 129)} {
		if validName(s) {
			t.Errorf("%q is taken", s)
		}
	}
}

func BenchmarkOpenClose(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "store")
	s := openStore(b, dir)
	for i := range 100 {
		putResult(b, s, "default", Result{Key: fmt.Sprint(i)})
	}
	for b.Loop() {
		s, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// What a fully cached run of 20 steps does.
func BenchmarkCachedRun(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "store")
	s := openStore(b, dir)
	var keys []string
	for i := range 20 {
		r := Result{Key: fmt.Sprintf("%02d-%s", i, strings.Repeat("0", 60)), Layers: []string{commitLayer(b, s, "", "x")}}
		r.Blobs = append(r.Blobs, putBlob(b, s, "log "+r.Key))
		putResult(b, s, "default", r)
		keys = append(keys, r.Key)
	}
	if err := s.Sync(context.Background()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Hold("default", keys...); err != nil {
			b.Fatal(err)
		}
		for _, k := range keys {
			r, err := s.Result("default", k)
			if err != nil || !s.HasLayer(r.Layers[0]) {
				b.Fatal(err)
			}
			s.Touch("default", k)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommitStep(b *testing.B) {
	s := newStore(b)
	i := 0
	for b.Loop() {
		i++
		r := Result{Key: fmt.Sprintf("%02d-%d", i%100, i), Layers: []string{commitLayer(b, s, "", "x")}}
		putResult(b, s, "default", r)
	}
}

// A large blob that this process has written, or has hashed, is not hashed again, unless the file is another.
func TestKnownBlobs(t *testing.T) {
	s := newStore(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), smallBlob/16+1)
	d, err := s.PutBlob(data)
	if err != nil {
		t.Fatal(err)
	}
	path := s.path(blobsDir, "sha256", d.Encoded())
	other := openStore(t, s.Dir())
	known := func(s *Store) bool {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return s.isKnown(d, info)
	}
	if !known(s) || known(other) {
		t.Errorf("known to its writer: %v, to another: %v", known(s), known(other))
	}
	if durableAtOnce {
		return // the mark says that it is right
	}
	if _, ok := other.HasBlob(d); !ok || !known(other) {
		t.Errorf("there: %v, known after it was read: %v", ok, known(other))
	}
	data[5] = 'x'
	err = os.WriteFile(path, data, 0o644)
	if err == nil {
		err = os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)) // clocks may be too coarse to tell
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{s, other} {
		if _, ok := s.HasBlob(d); ok || known(s) {
			t.Errorf("spoiled: there: %v, known: %v", ok, known(s))
		}
	}
}
