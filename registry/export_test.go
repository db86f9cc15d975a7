package registry

import (
	"time"
)

// SetClock gives a Cache another time.
func SetClock(c *Cache, now func() time.Time) { c.clock = now }

// Nearby says how long Find waits for one answer before it asks for all others.
func Nearby(c *Cache, d time.Duration) { c.nearby = d }
