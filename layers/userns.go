package layers

import (
	"strings"

	"github.com/ocurrent/obx/cas/userns"
)

// OverlayXattr is overlayfs's own attribute of a name. In a user namespace its mounts have the option userxattr: nobody there can set "trusted" ones.
func OverlayXattr(name string) string {
	if userns.Inside() {
		return userOverlayXattrs + name
	}
	return overlayXattrs + name
}

// IsOverlayXattr reports whether an attribute is overlayfs's own, of the mounts that this process makes.
func IsOverlayXattr(key string) bool {
	return strings.HasPrefix(key, overlayXattrs) || strings.HasPrefix(key, userOverlayXattrs) && userns.Inside()
}
