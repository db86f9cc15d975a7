package registry

import "time"

// SetClock gives a Cache another time.
func SetClock(c *Cache, now func() time.Time) { c.clock = now }
