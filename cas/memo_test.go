package cas

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"
)

// A memoDir is a source directory, and counts the files that are read.
type memoDir struct {
	t    testing.TB
	dir  string
	mu   sync.Mutex
	read int
}

func (d *memoDir) digest(m *HashMemo, name string) digest.Digest {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	info, err := os.Lstat(path)
	if err != nil {
		d.t.Fatal(err)
	}
	sum, err := m.Digest(name, info, func() (io.ReadCloser, error) {
		d.mu.Lock()
		d.read++
		d.mu.Unlock()
		return os.Open(path)
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return sum
}

func (d *memoDir) reads() int {
	n := d.read
	d.read = 0
	return n
}

func (d *memoDir) write(name, content string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, name), []byte(content), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func newMemo(t testing.TB, s *Store, dir string) *HashMemo {
	t.Helper()
	m, err := s.HashMemo(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func save(t testing.TB, m *HashMemo) {
	t.Helper()
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
}

func TestHashMemo(t *testing.T) {
	s := newStore(t)
	d := &memoDir{t: t, dir: t.TempDir()}
	d.write("a", "one")
	d.write("b", "two")
	m := newMemo(t, s, d.dir)
	for range 2 { // too new to be remembered
		if d.digest(m, "a") != digest.FromString("one") || d.reads() != 1 {
			t.Error("a new file")
		}
	}
	save(t, m)
	if exists(m.path) {
		t.Error("it saves nothing")
	}
	time.Sleep(racyTime + 50*time.Millisecond)
	d.digest(m, "a")
	d.digest(m, "b")
	d.digest(m, "b")
	if n := d.reads(); n != 2 {
		t.Errorf("%d reads of two old files", n)
	}
	save(t, m)

	m = newMemo(t, s, d.dir)
	for range 2 {
		if d.digest(m, "a") != digest.FromString("one") || d.digest(m, "b") != digest.FromString("two") || d.reads() != 0 {
			t.Error("what was saved is not known")
		}
	}
	if runtime.GOOS == "windows" { // where size and mtime are all that a stamp has
		return
	}
	// The same size and the same mtime, as tar or git may restore them.
	info, err := os.Stat(filepath.Join(d.dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	d.write("a", "ONE")
	if err := os.Chtimes(filepath.Join(d.dir, "a"), time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if d.digest(m, "a") != digest.FromString("ONE") {
		t.Error("a change is not seen")
	}
	if err := os.Rename(filepath.Join(d.dir, "b"), filepath.Join(d.dir, "c")); err != nil {
		t.Fatal(err)
	}
	if d.digest(m, "c") != digest.FromString("two") || d.reads() != 2 {
		t.Error("a renamed file")
	}
	if newMemo(t, s, t.TempDir()).known.index != nil {
		t.Error("another directory has the same memo")
	}
	// A broken memo is an empty one.
	b, err := os.ReadFile(m.path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(m.path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if newMemo(t, s, d.dir).known.index != nil {
		t.Error("a broken memo is believed")
	}
}

func TestHashMemoForgets(t *testing.T) {
	s := newStore(t)
	m := newMemo(t, s, "/src")
	m.remember("unused", memoEntry{day: m.today - memoDays - 1})
	m.remember("lately", memoEntry{day: m.today - 1})
	save(t, m)
	m = newMemo(t, s, "/src")
	info, err := fs.Stat(fstest.MapFS{"lately": {}}, "lately")
	if err != nil {
		t.Fatal(err)
	}
	m.known.entries[m.known.index["lately"]].stamp = stampOf(info)
	if _, err := m.Digest("lately", info, nil); err != nil {
		t.Fatal(err)
	}
	save(t, m)
	m = newMemo(t, s, "/src")
	if e, _ := m.known.lookup("lately"); len(m.known.index) != 1 || e.day != m.today {
		t.Errorf("%v", m.known)
	}
}

// Files without times are never remembered.
func TestHashMemoOfUntimedFiles(t *testing.T) {
	m := newMemo(t, newStore(t), "/src")
	for _, content := range []string{"a", "b"} {
		fsys := fstest.MapFS{"x": {Data: []byte(content)}}
		info, err := fsys.Stat("x")
		if err != nil {
			t.Fatal(err)
		}
		sum, err := m.Digest("x", info, func() (io.ReadCloser, error) { return fsys.Open("x") })
		if err != nil || sum != digest.FromString(content) {
			t.Errorf("%s: %s, %v", content, sum, err)
		}
	}
}

func TestHashMemoTogether(t *testing.T) {
	s := newStore(t)
	d := &memoDir{t: t, dir: t.TempDir()}
	for i := range 50 {
		d.write(fmt.Sprint(i), fmt.Sprint(i))
	}
	m := newMemo(t, s, d.dir)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 50 {
				if d.digest(m, fmt.Sprint(i)) != digest.FromString(fmt.Sprint(i)) {
					t.Error("wrong digest")
				}
			}
		})
	}
	wg.Wait()
}

func manyEntries(n int) map[string]memoEntry {
	entries := map[string]memoEntry{}
	for i := range n {
		name := fmt.Sprintf("some/directory/%d/file-%d.ml", i%100, i)
		e := memoEntry{stamp: stamp{int64(i), 1766000000000000000 + int64(i), -1, uint64(i), 2049}, day: 20000}
		copy(e.digest[:], digest.FromString(name).Encoded())
		entries[name] = e
	}
	return entries
}

func toMap(t memoTable) map[string]memoEntry {
	entries := map[string]memoEntry{}
	for name, i := range t.index {
		entries[name] = t.entries[i]
	}
	return entries
}

func FuzzDecodeMemo(f *testing.F) {
	good := encodeMemo(manyEntries(3))
	f.Add(good[:len(good)-32])
	f.Add([]byte(memoMagic))
	f.Add([]byte(memoMagic + "\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Add([]byte(memoMagic + "\x01\x05abc"))
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = decodeMemo(body)
		// With a sum that is right, so that the rest is reached.
		sum := digest.FromBytes(body)
		var raw []byte
		if _, err := fmt.Sscanf(sum.Encoded(), "%x", &raw); err != nil {
			t.Fatal(err)
		}
		table, err := decodeMemo(append(bytes.Clone(body), raw...))
		if err != nil {
			return
		}
		entries := toMap(table)
		again, err := decodeMemo(encodeMemo(entries))
		if err != nil || !maps.Equal(entries, toMap(again)) {
			t.Fatalf("%v, %v, %v", entries, again, err)
		}
	})
}

func BenchmarkDecodeMemo(b *testing.B) {
	data := encodeMemo(manyEntries(10000))
	for b.Loop() {
		if _, err := decodeMemo(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMemoLookups(b *testing.B) {
	s := newStore(b)
	d := &memoDir{t: b, dir: b.TempDir()}
	d.write("f", "x")
	info, err := os.Lstat(filepath.Join(d.dir, "f"))
	if err != nil {
		b.Fatal(err)
	}
	m := newMemo(b, s, d.dir)
	m.known = memoTable{index: map[string]int{"f": 0}, entries: []memoEntry{{stamp: stampOf(info), day: m.today}}}
	for b.Loop() {
		if _, err := m.Digest("f", info, nil); err != nil {
			b.Fatal(err)
		}
	}
}
