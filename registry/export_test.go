package registry

import "time"

// Hurry shortens what tests would wait for.
func Hurry(im *Images, header, stall, throttle time.Duration) {
	im.patience = patience{header: header, stall: stall, throttle: throttle, backoff: 5 * time.Millisecond}
}

// SetCertsDir replaces the directory of certificates.
func SetCertsDir(im *Images, dir string) { im.certs = dir }

// HurryRepo is Hurry for a Repo that is to be opened.
func HurryRepo(o *RepoOptions, header, stall, throttle time.Duration) {
	o.patience = patience{header: header, stall: stall, throttle: throttle, backoff: 5 * time.Millisecond}
}

// SetResolveTime shortens how long a name may take.
func SetResolveTime(im *Images, d time.Duration) { im.hurry = d }
