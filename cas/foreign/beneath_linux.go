package foreign

import (
	"strings"

	"golang.org/x/sys/unix"
)

// OpenBeneath opens a file by its path relative to an open directory. No component may be a link, "." or ".."; with O_PATH and O_NOFOLLOW the
// last may be a link, which is opened itself. The path may be longer than the kernel takes in one call.
func OpenBeneath(dir int, name string, flags int) (int, error) {
	at := dir
	for {
		head, rest := cut(name)
		fl := flags
		if rest != "" {
			fl = unix.O_PATH | unix.O_DIRECTORY
		}
		fd, err := openBeneath(at, head, fl)
		if at != dir {
			unix.Close(at)
		}
		if err != nil || rest == "" {
			return fd, err
		}
		at, name = fd, rest
	}
}

// cut cuts off what the kernel takes in one call.
func cut(name string) (head, rest string) {
	if len(name) < unix.PathMax {
		return name, ""
	}
	i := strings.LastIndexByte(name[:unix.PathMax], '/')
	if i < 0 {
		return name, "" // one name of that length: the kernel says so
	}
	return name[:i], name[i+1:]
}

func openBeneath(dir int, name string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}
