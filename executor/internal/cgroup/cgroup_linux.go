package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor"
)

// Top is the directory in each hierarchy below which all of obx's cgroups are: TOP/RUN/STEP.
const Top = "/obx"

// A System is how this process may use control groups.
type System struct {
	Hierarchies []string          // where groups are made: mount points of version 1, of version 2, or of both where they are used side by side
	Controllers map[string]string // their directories, which are some of Hierarchies
	Unified     bool              // version 2 alone
	Swap        bool              // memory and swap can be limited together

	// None says why there are no groups. That is so only in a user namespace: there, processes open no devices anyway.
	None string `json:",omitempty"`
}

// Find looks for the groups that this process may make. In a user namespace these are below its own, if that was given to its user (version 2
// only): nobody else may put processes there. This process leaves that group for one below it, so it finds once, and tells its children.
func Find() (System, error) {
	c, err := find()
	if !userns.Inside() {
		return c, err
	}
	if err == nil {
		c, err = c.delegated()
	}
	if err != nil {
		c = System{None: err.Error()}
	}
	return c, nil
}

// find reads the mounts that this process sees.
func find() (System, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return System{}, err
	}
	defer f.Close()
	c := System{Controllers: map[string]string{}}
	var two string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// 30 23 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		at := l[4]
		switch r[0] {
		case "cgroup":
			c.Hierarchies = append(c.Hierarchies, at)
			for name := range strings.SplitSeq(r[2], ",") {
				c.Controllers[name] = at
			}
		case "cgroup2":
			if two == "" {
				two = at
			}
		}
	}
	c.Unified = len(c.Hierarchies) == 0
	if two != "" {
		c.Hierarchies = append(c.Hierarchies, two)
	}
	if c.Unified {
		b, err := os.ReadFile(filepath.Join(two, "cgroup.controllers"))
		if err != nil && two != "" {
			return c, err
		}
		for name := range strings.FieldsSeq(string(b)) {
			c.Controllers[name] = two
		}
		c.Swap = swapLimited(two)
	} else {
		_, err := os.Stat(filepath.Join(c.Controllers["memory"], "memory.memsw.limit_in_bytes"))
		c.Swap = err == nil
	}
	if len(c.Hierarchies) == 0 {
		return c, errors.New("no cgroup file system is mounted")
	}
	return c, nil
}

// swapLimited reports whether groups have memory.swap.max; the root of version 2 itself never has it.
func swapLimited(mount string) bool {
	own, err := ownGroup()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(mount, own, "memory.swap.max"))
	return err == nil
}

// ownGroup is the group of version 2 that this process is in.
func ownGroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return own, nil
		}
	}
	return "", errors.New("this machine has no control groups of version 2")
}

// leaf is the group, in one that was given to a user, of the processes that were in that: a group with others below it has no processes.
const leaf = "obx-self"

// delegated is the system of who may make groups only below its own.
func (c System) delegated() (System, error) {
	const how = "with systemd, `systemd-run --user --scope -p Delegate=yes obx ...` gives it some"
	if !c.Unified {
		return c, errors.New("control groups of version 1 cannot be given to users")
	}
	own, err := ownGroup()
	if err != nil {
		return c, err
	}
	base := filepath.Join(c.Hierarchies[0], strings.TrimSuffix(own, "/"+leaf))
	if err := unix.Access(filepath.Join(base, "cgroup.subtree_control"), unix.W_OK); err != nil {
		return c, fmt.Errorf("this user has no control groups of its own (%s: %w): %s", base, err, how)
	}
	if path.Base(own) != leaf {
		if err := vacate(base); err != nil {
			return c, fmt.Errorf("%w: %s", err, how)
		}
	}
	b, err := os.ReadFile(filepath.Join(base, "cgroup.controllers"))
	if err != nil {
		return c, err
	}
	c.Hierarchies, c.Controllers = []string{base}, map[string]string{}
	for name := range strings.FieldsSeq(string(b)) {
		c.Controllers[name] = base
	}
	_, err = os.Stat(filepath.Join(base, "memory.swap.max"))
	c.Swap = err == nil
	return c, nil
}

// vacate puts this process, which must be the only one in a group, into a group below it. If it is not, nothing changes.
func vacate(base string) error {
	b, err := os.ReadFile(filepath.Join(base, "cgroup.procs"))
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(os.Getpid()) {
		return errors.Join(fmt.Errorf("other processes than obx are in the control group %s", base), err)
	}
	if err := mkdir(filepath.Join(base, leaf)); err != nil {
		return fmt.Errorf("make a control group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(base, leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("leave the control group %s: %w", base, err)
	}
	return nil
}

// Check reports a limit that cannot be set here. Without groups there are no limits, which is for the caller to tell.
func (c System) Check(l executor.Limits) error {
	if c.None != "" {
		return nil
	}
	for name, wanted := range map[string]bool{"memory": l.Memory > 0, "cpu": l.CPUs > 0, "pids": l.PIDs > 0} {
		if wanted && c.Controllers[name] == "" {
			return fmt.Errorf("a limit cannot be kept: this machine has no %s controller of control groups", name)
		}
	}
	return nil
}

// PIDs is how many processes a limit allows here; 0 for any number.
func (c System) PIDs(l executor.Limits) int64 {
	switch {
	case c.Controllers["pids"] == "" && (l.PIDs == 0 || c.None != ""):
		return 0
	case l.PIDs != 0:
		return max(l.PIDs, 0)
	}
	return executor.DefaultPIDs
}

// Rlimits are what a process in a user namespace has in place of a group that counts processes, as a bound against fork bombs. The kernel counts
// the processes of each user of the namespace, all steps' together; and none of those that are root outside, as in a container.
func (c System) Rlimits(l executor.Limits) []specs.POSIXRlimit {
	if l.PIDs < 0 || !userns.Inside() || c.Controllers["pids"] != "" {
		return nil
	}
	return []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: executor.DefaultPIDs, Hard: executor.DefaultPIDs}}
}

// Ignores says which limits do not hold, and why; "" if all do.
func (c System) Ignores(l executor.Limits) string {
	if c.None == "" || l.Memory == 0 && l.CPUs == 0 && l.PIDs <= 0 {
		return ""
	}
	return fmt.Sprintf("limits of memory, processors and processes do not hold for steps: %s", c.None)
}

// Processes lists the processes of a group.
func (c System) Processes(group string) []string {
	for _, h := range c.Hierarchies {
		if b, err := os.ReadFile(filepath.Join(h, group, "cgroup.procs")); err == nil {
			return strings.Fields(string(b))
		}
	}
	return nil
}

// OOMKills tells how many processes of a group the kernel has killed for want of memory.
func (c System) OOMKills(group string) int {
	n, _ := c.killsIn(filepath.Join(c.Controllers["memory"], group))
	return n
}

func (c System) killsIn(dir string) (n int, known bool) {
	name := "memory.oom_control"
	if c.Unified {
		name = "memory.events.local"
	}
	b, err := readFile(filepath.Join(dir, name))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			n, err := strconv.Atoi(v)
			return n, err == nil
		}
	}
	return 0, false
}

// readFile reads a small file of a group. Those can be polled, so for package os they are like sockets: that takes twice the calls, and wakes a thread.
func readFile(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 4096)
	n, err := unix.Read(fd, b)
	return b[:max(n, 0)], err
}

// writeFile writes one, as readFile reads it.
func writeFile(name, value string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// Kill kills every process of a group.
func (c System) Kill(group string) {
	for _, h := range c.Hierarchies {
		b, err := os.ReadFile(filepath.Join(h, group, "cgroup.procs"))
		if err != nil {
			continue
		}
		for pid := range strings.FieldsSeq(string(b)) {
			// 0 is a process that this pid namespace does not see.
			if n, err := strconv.Atoi(pid); err == nil && n > 1 {
				if p, err := os.FindProcess(n); err == nil {
					_ = p.Kill()
					_ = p.Release()
				}
			}
		}
	}
}

// KillAll kills every process of a group and of all below it.
func (c System) KillAll(group string) {
	groups := map[string]bool{}
	for _, h := range c.Hierarchies {
		_ = filepath.WalkDir(filepath.Join(h, group), func(dir string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				groups[strings.TrimPrefix(dir, h)] = true
			}
			return nil // it may go away meanwhile
		})
	}
	for g := range groups {
		c.Kill(g)
	}
}

// RemoveRun removes what an executor shared, which is told by the name of any process's group, and the group of its run, if nothing else is in it.
func (c System) RemoveRun(group string) {
	for _, h := range c.Hierarchies {
		_ = removeTree(filepath.Join(h, shared(group)))
		_ = os.Remove(filepath.Join(h, path.Dir(group)))
	}
}

// Remove removes a group and all below it, in all hierarchies. It waits a little for those that are still busy: the kernel counts
// a process that has just been waited for as inside a moment longer.
func (c System) Remove(group string) error {
	var errs []error
	for _, h := range c.Hierarchies {
		if err := removeTree(filepath.Join(h, group)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	if err := unix.Rmdir(dir); err == nil || err == unix.ENOENT { // nearly always
		return nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for wait := time.Millisecond; ; wait *= 2 {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if wait > 200*time.Millisecond {
			return err
		}
		time.Sleep(wait)
	}
}
