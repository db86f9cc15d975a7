package registry

import "time"

// SetResolveTime shortens how long a name may take.
func SetResolveTime(im *Images, d time.Duration) { im.hurry = d }
