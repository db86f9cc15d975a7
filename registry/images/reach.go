package images

import (
	"strings"

	"github.com/ocurrent/obx/registry/repo"
)

// A Reach is what has to be reached to fetch the image of a name.
type Reach int

const (
	ReachPublic  Reach = iota // a registry that everybody may have, as far as its name tells; or nothing, for scratch
	ReachPrivate              // a registry on this machine, or in the network around it
	ReachLocal                // files of this machine
)

// ReachOf tells what a name of an image reaches, by the name alone.
func ReachOf(ref string) (Reach, error) {
	n, err := parseName(ref)
	switch {
	case err != nil:
		return ReachPublic, err
	case n.dir != "":
		return ReachLocal, nil
	case !n.isScratch() && repo.IsPrivateName(hostnameOf(n.host)):
		return ReachPrivate, nil
	}
	return ReachPublic, nil
}

// hostnameOf takes the port from HOST[:PORT], and the brackets from an address.
func hostnameOf(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") && (host[0] == '[' || strings.Count(host, ":") == 1) {
		host = host[:i]
	}
	return strings.Trim(host, "[]")
}
