package cas

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// racyTime is how long after its last change a file may change again without its times telling: file systems
	// round times, to two seconds on FAT. Git's rule.
	racyTime = 2 * time.Second
	// memoDays is after how many days an entry that nobody asked for is dropped: several builds may use
	// different parts of a directory.
	memoDays = 7
	// memoAge is after how long without a use prune removes a whole memo: it is little, and quick to make again.
	memoAge = 30 * 24 * time.Hour
)

// HashMemo opens what is remembered of the files below dir (a source directory): it implements keys.FileHasher by
// (path, size, mtime, ctime, inode). Files changed within the last two seconds are not remembered (racy timestamps).
func (s *Store) HashMemo(dir string) (*HashMemo, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("hash memo: %w", err)
	}
	m := &HashMemo{
		store: s,
		path:  s.path(hashesDir, fmt.Sprintf("%x", sha256.Sum256([]byte(dir)))),
		today: uint64(time.Now().Unix() / 86400),
		fresh: map[string]memoEntry{},
	}
	b, err := readFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("hash memo: %w", err)
	}
	touch(m.path)
	// A memo that is broken is an empty one.
	m.known, _ = decodeMemo(b)
	return m, nil
}

// A HashMemo remembers digests; safe for concurrent use.
type HashMemo struct {
	store *Store
	path  string
	today uint64
	known memoTable // as read; not changed

	buffers sync.Pool // of *[]byte, to read with

	mu      sync.Mutex
	fresh   map[string]memoEntry // hashed now, or used today for the first time
	unsaved bool                 // fresh has what the file has not
}

// A stamp tells one version of a file from all others.
type stamp struct {
	size, mtime, ctime int64 // times in nanoseconds; ctime is 0 where there is none
	inode, dev         uint64
}

// A memoTable is what a file has, in a form that is quick to make.
type memoTable struct {
	index   map[string]int // of entries, by name
	entries []memoEntry
}

func (t memoTable) lookup(name string) (memoEntry, bool) {
	i, ok := t.index[name]
	if !ok {
		return memoEntry{}, false
	}
	return t.entries[i], true
}

type memoEntry struct {
	stamp
	day    uint64 // since 1970, of the last use
	digest [sha256.Size]byte
}

// Digest is the digest of a file's content: the one remembered if info says that the file is the same, else that of
// what open gives.
func (m *HashMemo) Digest(name string, info fs.FileInfo, open func() (io.ReadCloser, error)) (digest.Digest, error) {
	st := stampOf(info)
	e, ok := m.known.lookup(name)
	if ok && e.stamp == st {
		if e.day != m.today {
			e.day = m.today
			m.remember(name, e)
		}
		return toDigest(e.digest), nil
	}
	if sum, ok := m.hashedNow(name, st); ok {
		return sum, nil
	}
	start := time.Now()
	sum, err := m.hash(open)
	if err != nil {
		return "", fmt.Errorf("hash %s: %w", name, err)
	}
	// A change sets ctime where there is one, whatever is done to mtime.
	changed := st.mtime
	if st.ctime != 0 {
		changed = st.ctime
	}
	if !info.ModTime().IsZero() && changed < start.Add(-racyTime).UnixNano() {
		m.remember(name, memoEntry{stamp: st, day: m.today, digest: sum})
	}
	return toDigest(sum), nil
}

func (m *HashMemo) remember(name string, e memoEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fresh[name] = e
	m.unsaved = true
}

func (m *HashMemo) hashedNow(name string, st stamp) (digest.Digest, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.fresh[name]
	return toDigest(e.digest), ok && e.stamp == st
}

func toDigest(sum [sha256.Size]byte) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, sum[:])
}

func (m *HashMemo) hash(open func() (io.ReadCloser, error)) (sum [sha256.Size]byte, err error) {
	f, err := open()
	if err != nil {
		return sum, err
	}
	defer f.Close()
	buf, ok := m.buffers.Get().(*[]byte)
	if !ok {
		b := make([]byte, 64<<10)
		buf = &b
	}
	defer m.buffers.Put(buf)
	h := sha256.New()
	// Only the Reader: a file's own WriteTo would make a buffer of its own.
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, *buf); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// Save writes it back, if anything is new, by one rename; entries that nobody asked for in a week are dropped.
func (m *HashMemo) Save() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.unsaved {
		return nil
	}
	all := map[string]memoEntry{}
	for name, i := range m.known.index {
		if e := m.known.entries[i]; e.day+memoDays >= m.today {
			all[name] = e
		}
	}
	maps.Copy(all, m.fresh)
	tmp := m.store.temp("hashes")
	if err := writeFile(tmp, encodeMemo(all)); err != nil {
		return fmt.Errorf("save hash memo: %w", err)
	}
	if err := Rename(tmp, m.path); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("save hash memo: %w", err)
	}
	m.unsaved = false
	return nil
}

// The file of a memo: a magic, the number of entries, the entries, and the SHA-256 of all before it. A wrong digest
// is a wrong build, hence no weaker sum; it takes half a millisecond for 10,000 entries.
const memoMagic = "obxhash1"

func encodeMemo(entries map[string]memoEntry) []byte {
	b := []byte(memoMagic)
	b = binary.AppendUvarint(b, uint64(len(entries)))
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		e := entries[name]
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendVarint(b, e.size)
		b = binary.AppendVarint(b, e.mtime)
		b = binary.AppendVarint(b, e.ctime)
		b = binary.AppendUvarint(b, e.inode)
		b = binary.AppendUvarint(b, e.dev)
		b = binary.AppendUvarint(b, e.day)
		b = append(b, e.digest[:]...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

var errMemo = errors.New("not a hash memo")

func decodeMemo(b []byte) (memoTable, error) {
	if len(b) < len(memoMagic)+sha256.Size || string(b[:len(memoMagic)]) != memoMagic {
		return memoTable{}, errMemo
	}
	body, want := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], want) {
		return memoTable{}, errMemo
	}
	r := memoReader{b: string(body), pos: len(memoMagic)}
	n := r.uvarint()
	const smallest = 7 + sha256.Size
	if n > uint64(len(body)/smallest) {
		return memoTable{}, errMemo
	}
	t := memoTable{index: make(map[string]int, n), entries: make([]memoEntry, n)}
	for i := range t.entries {
		e := &t.entries[i]
		name := r.take(r.uvarint())
		e.size, e.mtime, e.ctime = r.varint(), r.varint(), r.varint()
		e.inode, e.dev, e.day = r.uvarint(), r.uvarint(), r.uvarint()
		copy(e.digest[:], r.take(sha256.Size))
		t.index[name] = i
	}
	if r.bad || r.pos != len(r.b) {
		return memoTable{}, errMemo
	}
	return t, nil
}

// A memoReader reads from a string, so that names need no copies.
type memoReader struct {
	b   string
	pos int
	bad bool
}

func (r *memoReader) take(n uint64) string {
	if n > uint64(len(r.b)-r.pos) {
		r.bad = true
		return ""
	}
	r.pos += int(n)
	return r.b[r.pos-int(n) : r.pos]
}

func (r *memoReader) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64 && r.pos < len(r.b); shift += 7 {
		c := r.b[r.pos]
		r.pos++
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
	r.bad = true
	return 0
}

// varint is the inverse of binary.AppendVarint.
func (r *memoReader) varint() int64 {
	u := r.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// sweepMemos removes what was not used for long.
func (s *Store) sweepMemos(o PruneOptions) {
	age := memoAge
	if o.OlderThan > 0 {
		age = min(age, o.OlderThan)
	}
	for path := range filesBelow(s.path(hashesDir), 1) {
		if info, err := os.Lstat(path); err == nil && (o.All || ageOf(info) > age) {
			_ = os.Remove(path)
		}
	}
}
