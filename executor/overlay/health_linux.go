package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Health tries what an Executor with these options needs: the kernel's overlayfs, control groups, and each runtime that
// may be chosen. The store may be nil, if it could not be opened: then only what needs none is tried.
func Health(ctx context.Context, o Options) []Check {
	var checks []Check
	add := func(name, detail string, err error) {
		checks = append(checks, Check{Name: name, Detail: detail, Err: err})
	}

	var err error
	if os.Geteuid() != 0 {
		err = errors.New("steps need root: run obx with sudo")
	}
	add("root", "", err)

	release, err := kernelRelease()
	if data, rerr := os.ReadFile("/proc/filesystems"); rerr == nil && !strings.Contains(string(data), "\toverlay\n") {
		err = errors.Join(err, errors.New("this kernel has no overlayfs: try modprobe overlay"))
	}
	add("overlayfs", "Linux "+release, err)

	cg, err := findCgroups()
	if err == nil && len(cg.hierarchies) == 0 {
		err = errors.New("control groups are not mounted: steps cannot be limited")
	}
	if err == nil && cg.memory == "" && !cg.unified {
		err = errors.New("the memory controller is not mounted: --memory does nothing")
	}
	version := "version 1, or 1 and 2 side by side"
	if cg.unified {
		version = "version 2"
	}
	add("control groups", version, err)

	found, err := findRuntimes(o.Runtime)
	if err != nil || o.Store == nil || os.Geteuid() != 0 {
		add("OCI runtime", strings.Join(found, ", "), err)
		return checks
	}
	e, err := New(o)
	if err != nil {
		add("sandbox", "", err)
		return checks
	}
	defer e.Close()
	add("mount", o.Store.Dir(), e.tryMount())
	// One that does not work is a fault only if no other does.
	var works []string
	var broken []error
	s, err := e.supervisor()
	if err != nil {
		add("supervisor", "", err)
		return checks
	}
	for _, file := range found {
		if err := e.try(ctx, s, file); err != nil {
			broken = append(broken, fmt.Errorf("%s: %w", file, err))
		} else {
			works = append(works, file)
		}
	}
	detail := strings.Join(works, ", ")
	if len(works) > 0 {
		for _, err := range broken {
			detail += fmt.Sprintf(" (not %v)", err)
		}
		broken = nil
	}
	add("OCI runtime", detail, errors.Join(broken...))
	return checks
}

// tryMount mounts an empty overlay on the store's file system.
func (e *Executor) tryMount() error {
	dir, err := os.MkdirTemp(e.tmp, "health-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := overlayMount{upper: filepath.Join(dir, "fs"), work: filepath.Join(dir, "work")}
	for _, d := range []string{m.upper, m.work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	f, err := e.mounter.mount(m)
	if err != nil {
		return fmt.Errorf("overlayfs does not take the store's file system for its upper directory; put the store on ext4, xfs or btrfs with --store: %w", err)
	}
	return f.Close()
}
