package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/cgroup"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/rootless"
)

// Health tries what an Executor with these options needs: the kernel's overlayfs, control groups, and each runtime that
// may be chosen. The store may be nil, if it could not be opened: then only what needs none is tried.
func Health(ctx context.Context, o Options) []executor.Check {
	var h executor.Health
	h.Check("rights", rootless.Status)
	h.Check("overlayfs", kernel)
	h.Check("control groups", controlGroups)
	found, err := findRuntimes(o.Runtime)
	var all []string
	var warning string
	for _, file := range found {
		if file == Builtin {
			all = append(all, file)
			continue
		}
		version := rootfs.RuntimeVersion(ctx, file)
		all = append(all, strings.TrimSpace(file+" "+version))
		warning = cmp.Or(warning, rootfs.RuntimeWarning(version))
	}
	h.Check("runtime", func() (string, error) { return strings.Join(all, ", "), err })
	if len(found) > 0 && found[0] != Builtin {
		h.Warn(warning)
	}
	if len(found) == 0 || o.Store == nil || os.Geteuid() != 0 {
		return h.Checks
	}
	e, err := New(o)
	if err != nil {
		h.Check("executor", func() (string, error) { return "", err })
		return h.Checks
	}
	h.Check("mount", e.tryMount)
	h.Check("sandbox", func() (string, error) { return e.tryAll(ctx, found) })
	h.Warn(rootfs.AppArmorWarning())
	if err := e.Close(); err != nil {
		h.Check("clean-up", func() (string, error) { return "", err })
	}
	return h.Checks
}

func kernel() (string, error) {
	release, err := kernelRelease()
	if err != nil {
		return "", err
	}
	release = "Linux " + release
	if os.Geteuid() != 0 {
		return release, nil
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENODEV):
		return release, errors.New("this kernel has no overlayfs: try `modprobe overlay`")
	case errors.Is(err, unix.ENOSYS):
		return release, errors.New("steps need Linux 5.8 or newer")
	case err != nil:
		return release, fmt.Errorf("this process may not mount file systems (fsopen: %w)", err)
	}
	unix.Close(fs)
	if !rootfs.HasLowerPlus() {
		release += " (mounts the old way: no lowerdir+ before Linux 6.7)"
	}
	return release, nil
}

func controlGroups() (string, error) {
	c, err := cgroup.Find()
	if c.None != "" {
		return "none, so steps have no limits of memory, processors and processes: " + c.None, nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: try `mount -t cgroup2 none /sys/fs/cgroup`", err)
	}
	version := "version 1, or 1 and 2 side by side"
	if c.Unified {
		version = "version 2"
	}
	if err := c.Check(executor.Limits{Memory: 1, CPUs: 1, PIDs: 1}); err != nil {
		return version, err
	}
	for _, dir := range c.Hierarchies {
		if err := unix.Access(dir, unix.W_OK); err != nil && os.Geteuid() == 0 {
			return version, fmt.Errorf("%s is not writable: %w", dir, err)
		}
	}
	return version, nil
}

// tryMount mounts an empty overlay on the store's file system.
func (e *Executor) tryMount() (string, error) {
	dir, err := os.MkdirTemp(e.TempDir(), "health-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	m := rootfs.OverlayMount{Upper: filepath.Join(dir, "fs"), Work: filepath.Join(dir, "work")}
	for _, d := range []string{m.Upper, m.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	f, err := e.Mounter.Mount(m)
	if err != nil {
		return "", fmt.Errorf("overlayfs does not take the store's file system for its upper directory; put the store on ext4, xfs or btrfs with --store: %w", err)
	}
	return e.options.Store.Dir(), f.Close()
}

// tryAll tries every runtime. One that does not work is a fault only if no other does.
func (e *Executor) tryAll(ctx context.Context, found []string) (string, error) {
	s, err := e.supervisor()
	if err != nil {
		return "", err
	}
	var works []string
	var broken []error
	for _, file := range found {
		if err := e.try(ctx, s, file); err != nil {
			broken = append(broken, fmt.Errorf("%s: %w", file, err))
		} else {
			works = append(works, file)
		}
	}
	if len(works) == 0 {
		return "", noRuntime(errors.Join(broken...))
	}
	detail := "works with " + strings.Join(works, ", ")
	for _, err := range broken {
		detail += fmt.Sprintf(" (not with %v)", err)
	}
	return detail, nil
}
