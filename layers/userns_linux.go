package layers

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/userns"
)

// inNamespace names the operation that failed, and says if that came of the user namespace.
func inNamespace(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case !userns.Inside():
	case op == "chown" && err == unix.EINVAL:
		err = fmt.Errorf("%w: this user namespace does not have that user or group: obx needs more subordinate ids (obx healthcheck), or root", err)
	case op == "mknod" && err == unix.EPERM:
		err = fmt.Errorf("%w: only root of the machine can make a device: obx needs to run as root for it", err)
	case strings.HasPrefix(op, "setxattr trusted.") && err == unix.EPERM:
		err = fmt.Errorf("%w: only root of the machine can set it: obx needs to run as root for it", err)
	}
	return fmt.Errorf("%s: %w", op, err)
}
