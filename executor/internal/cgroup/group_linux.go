package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocurrent/obx/cas/userns"
)

// A Maker makes groups in which processes run without an OCI runtime.
type Maker struct {
	System
	mu      sync.Mutex
	ready   map[string]bool // groups above others that are as they have to be
	devices *os.File        // version 2: the program that judges devices
}

// A Group is that of one process.
type Group struct {
	Dirs  []Dir // none where there are no groups
	maker *Maker
	path  string
	kills int // in memory's directory, when the process began
}

// A Dir is a directory that a process has to join. Several processes may be in one: those without a limit of its controllers' are in the one of
// their run.
type Dir struct {
	Hierarchy string // where it is mounted
	Path      string // absolute
}

// shared is the group of an executor's processes without a limit, beside that of one of them, whose name ends with a number. It is the executor's
// alone, since it goes with it. It is not the run's: OCI runtimes make their groups in that, with rules for devices which this one does not have.
func shared(group string) string {
	executor := strings.TrimRight(group, "0123456789")
	return executor + "shared"
}

// limits are the files of a group for its resources, by controller.
func limits(r *specs.LinuxResources, unified bool) map[string]map[string]string {
	all := map[string]map[string]string{}
	set := func(controller, one, two, value string) {
		if unified {
			one = two
		}
		if one == "" {
			return
		}
		if all[controller] == nil {
			all[controller] = map[string]string{}
		}
		all[controller][one] = value
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	if r == nil {
		return all
	}
	if m := r.Memory; m != nil && m.Limit != nil {
		set("memory", "memory.limit_in_bytes", "memory.max", number(*m.Limit))
		if m.Swap != nil { // version 1 counts both together
			set("memory", "memory.memsw.limit_in_bytes", "", number(*m.Swap))
			set("memory", "", "memory.swap.max", number(*m.Swap-*m.Limit))
		}
	}
	if c := r.CPU; c != nil && c.Quota != nil && c.Period != nil {
		set("cpu", "cpu.cfs_period_us", "", strconv.FormatUint(*c.Period, 10))
		set("cpu", "cpu.cfs_quota_us", "", number(*c.Quota))
		set("cpu", "", "cpu.max", fmt.Sprintf("%d %d", *c.Quota, *c.Period))
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		set("pids", "pids.max", "pids.max", number(*p.Limit))
	}
	return all
}

// Make makes the group of a process, RUN/STEP below Top, with its limits. [System.Remove] removes it.
func (m *Maker) Make(group string, r *specs.LinuxResources) (*Group, error) {
	g := &Group{maker: m, path: group}
	if m.None != "" {
		return g, nil
	}
	all := limits(r, m.Unified)
	var err error
	if m.Unified {
		err = g.makeUnified(all)
	} else {
		err = g.makeEach(all)
	}
	if err != nil {
		return nil, fmt.Errorf("control group: %w", errors.Join(err, m.Remove(group)))
	}
	g.kills = g.oomKills()
	return g, nil
}

// makeUnified makes a group of version 2, where no process can be in a group that has others below it.
func (g *Group) makeUnified(all map[string]map[string]string) error {
	mount := g.maker.Hierarchies[0]
	dir := mount
	for _, name := range strings.Split(strings.Trim(path.Dir(g.path), "/"), "/") {
		if err := g.maker.enable(dir, all); err != nil {
			return err
		}
		dir = filepath.Join(dir, name)
		if err := mkdir(dir); err != nil {
			return err
		}
	}
	if err := g.maker.enable(dir, all); err != nil {
		return err
	}
	dir = filepath.Join(dir, path.Base(g.path))
	if err := mkdir(dir); err != nil {
		return err
	}
	if !userns.Inside() { // there, nobody can make a device that could be opened
		if err := g.restrictDevices(dir); err != nil {
			return err
		}
	}
	g.Dirs = []Dir{{mount, dir}}
	for _, files := range all {
		if err := write(dir, files); err != nil {
			return err
		}
	}
	return nil
}

// restrictDevices has a group of version 2 open few devices.
func (g *Group) restrictDevices(dir string) error {
	err := g.maker.once("devices", func() (err error) {
		g.maker.devices, err = loadDevices()
		return err
	})
	if err != nil {
		return err
	}
	return restrictDevices(dir, g.maker.devices)
}

// enable has the groups in a group of version 2 know the controllers of limits.
func (m *Maker) enable(dir string, all map[string]map[string]string) error {
	for c := range all {
		if err := m.once(dir+"+"+c, func() error { return write(dir, map[string]string{"cgroup.subtree_control": "+" + c}) }); err != nil {
			return fmt.Errorf("enable %s: %w", c, err)
		}
	}
	return nil
}

// makeEach makes groups of version 1: in each hierarchy that has a controller of a limit one of its own, in those of devices, of memory, for the
// count of what is killed, and of pids, for programs that look, else the one that is shared. Controllers that are mounted together have one hierarchy, and so one group.
func (g *Group) makeEach(all map[string]map[string]string) error {
	m := g.maker
	if m.Controllers["devices"] == "" {
		return errors.New("this machine has no devices controller of control groups")
	}
	files := map[string]map[string]string{} // of each hierarchy; none: the process is in the shared group
	for _, c := range []string{"devices", "memory", "cpu", "pids"} {
		at := m.Controllers[c]
		if at == "" || all[c] == nil && c == "cpu" {
			continue
		}
		if files[at] == nil {
			files[at] = map[string]string{}
		}
		maps.Copy(files[at], all[c])
	}
	for _, at := range slices.Sorted(maps.Keys(files)) {
		dir, begin := filepath.Join(at, shared(g.path)), m.once
		if len(files[at]) > 0 {
			dir, begin = filepath.Join(at, g.path), func(_ string, do func() error) error { return do() }
		}
		err := begin(dir, func() error {
			if err := os.MkdirAll(dir, 0o755); err != nil || at != m.Controllers["devices"] {
				return err
			}
			return allowDevices(dir)
		})
		if err != nil {
			return err
		}
		if err := write(dir, files[at]); err != nil {
			return err
		}
		g.Dirs = append(g.Dirs, Dir{at, dir})
	}
	return nil
}

// once does something that lasts as long as the run.
func (m *Maker) once(what string, do func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ready[what] {
		return nil
	}
	if err := do(); err != nil {
		return err
	}
	if m.ready == nil {
		m.ready = map[string]bool{}
	}
	m.ready[what] = true
	return nil
}

// order has what comes before others come first: a period before its quota, and the limit of memory before that of memory and swap.
var order = []string{"memory.limit_in_bytes", "cpu.cfs_period_us"}

func write(dir string, files map[string]string) error {
	for _, first := range []bool{true, false} {
		for name, value := range files {
			if slices.Contains(order, name) != first {
				continue
			}
			if err := writeFile(filepath.Join(dir, name), value); err != nil {
				return err
			}
		}
	}
	return nil
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// oomKills counts in the group of memory that the process is in, which others without a limit may be in as well.
func (g *Group) oomKills() int {
	at := g.maker.Controllers["memory"]
	for _, group := range []string{g.path, shared(g.path), path.Dir(g.path)} {
		if n, ok := g.maker.killsIn(filepath.Join(at, group)); ok {
			return n
		}
	}
	return 0
}

// OOM reports whether the kernel has killed a process of the group for want of memory; where the process has no limit of memory, or one of another
// process of its run that has none.
func (g *Group) OOM() bool { return g.oomKills() > g.kills }

// Remove removes it, as [System.Remove] does, but looks only where it was made.
func (g *Group) Remove() error {
	var errs []error
	for _, d := range g.Dirs {
		if path.Base(d.Path) != path.Base(g.path) { // shared
			continue
		}
		if err := removeTree(d.Path); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Unified reports a group of version 2, which a process begins in.
func (g *Group) Unified() bool { return g.maker.Unified }
