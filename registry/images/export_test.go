package images

import "time"

// SetResolveTime shortens how long a name may take.
func SetResolveTime(im *Resolver, d time.Duration) { im.hurry = d }
