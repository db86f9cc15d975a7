package registry

import (
	"net"
	"net/netip"
	"time"
)

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

// SetDialer says how public hosts are found, and which addresses are public, for PublicOnly.
func SetDialer(im *Images, r *net.Resolver, isPublic func(netip.Addr) bool) {
	im.dialer = publicDialer{r, isPublic}
}
