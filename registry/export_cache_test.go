package registry

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// SetClock gives a Cache another time.
func SetClock(c *Cache, now func() time.Time) { c.clock = now }

// Corrupt changes the last byte of a blob.
func Corrupt(m *Memory, d digest.Digest) {
	m.begin(0)
	defer m.mu.Unlock()
	b := m.blobs[d]
	b.data = slices.Clone(b.data)
	b.data[len(b.data)-1] ^= 1
	m.blobs[d] = b
}

// Nearby says how long Find waits for one answer before it asks for all others.
func Nearby(c *Cache, d time.Duration) { c.nearby = d }
