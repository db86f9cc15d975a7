package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/cgroup"
)

// specVersion is of the runtime specification: the oldest that has all that is used here, for old runtimes refuse newer ones.
const specVersion = "1.0.2"

// capabilities are Docker's default ones, less NET_BIND_SERVICE and NET_RAW. Root has them, everybody can at most inherit them.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
	"CAP_SETPCAP", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// masked and readOnly are Docker's.
var (
	masked = []string{
		"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
		"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// systemDirs are where systemMounts are. The runtime reaches them by name, so they have to be directories of the root itself: not links, and
// nothing that a step could have written to before is mounted on them or below them.
var systemDirs = []string{"proc", "dev", "sys"}

// systemMounts are what every process finds below /proc, /dev and /sys.
var systemMounts = []specs.Mount{
	{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
	{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
	{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
	{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
	{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
}

// A Plan is one run: what the runtime is told, and what must be there for it.
type Plan struct {
	Spec  specs.Spec
	Files []File // for Attach to make
	Binds []Bind // for Attach to mount in the root

	view   RootDir // the root with the caches on it, as far as they have a place already
	points points
	caches []*cacheMount
}

// A File is made in memory, for the process to see by a bind mount.
type File struct {
	Name string      `json:"name"`
	Data []byte      `json:"data"`
	Mode fs.FileMode `json:"mode"`
}

const (
	defaultHostname = "builder"
	hostsFile       = "/etc/hosts"
	resolvFile      = "/etc/resolv.conf"
)

// systemFiles are the files that every process finds in place of its root's.
func systemFiles(n executor.Network) []string {
	if _, err := os.Stat(resolvFile); err == nil && n == executor.NetworkHost {
		return []string{hostsFile, resolvFile}
	}
	return []string{hostsFile}
}

// NewPlan makes the plan of a run in root, and the mount points in it. bundle is the directory that the Runner will give the
// run. Call Remove after it in any case.
func NewPlan(root RootDir, p executor.Process, bundle, group string, cg cgroup.System, caches []*cacheMount) (*Plan, error) {
	root.known = map[string]found{}
	pl := &Plan{view: root, points: points{root: root}, caches: caches}
	if !userns.HasUser(p.UID) || !userns.HasGroup(p.GID) {
		return pl, startError("this user namespace does not have the user %d:%d: obx needs more subordinate ids (obx healthcheck), or root", p.UID, p.GID)
	}
	pl.view.closed = systemDirs
	hostname := p.Hostname
	if hostname == "" {
		hostname = defaultHostname
	}
	for _, d := range systemDirs {
		if err := pl.systemDir(d); err != nil {
			return pl, err
		}
	}
	for i, c := range caches {
		if err := pl.bind(Bind{Mount: i + 1}, c.target, true); err != nil {
			return pl, err
		}
		pl.view.over = append(pl.view.over, overMount{strings.TrimPrefix(pl.Binds[i].Target, "/"), c.points.root.FD})
	}
	pl.Files = append(pl.Files, File{Name: "hosts", Data: []byte("127.0.0.1 localhost " + hostname), Mode: 0o644})
	for _, name := range systemFiles(p.Network) {
		source := name // the host's
		if name == hostsFile {
			source = "hosts"
		}
		if err := pl.bind(Bind{File: source}, name, false); err != nil {
			return pl, err
		}
	}
	for _, m := range p.Mounts {
		if m.Secret == nil {
			continue
		}
		f := File{Name: fmt.Sprintf("secret%d", len(pl.Files)), Data: m.Secret.Data, Mode: m.Secret.Mode.Perm()}
		if f.Mode == 0 {
			f.Mode = 0o644
		}
		pl.Files = append(pl.Files, f)
		if err := pl.bind(Bind{File: f.Name}, m.Target, false); err != nil {
			return pl, err
		}
	}
	pl.Spec = specs.Spec{
		Version:  specVersion,
		Root:     &specs.Root{Path: filepath.Join(bundle, RootName)},
		Hostname: hostname,
		Mounts:   systemMounts,
		Process:  process(root, p, cg),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			MaskedPaths:   masked,
			ReadonlyPaths: readOnly,
			CgroupsPath:   group,
			Resources:     resources(p.Limits, cg),
		},
	}
	if p.Network == executor.NetworkNone {
		pl.Spec.Linux.Namespaces = append(pl.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if cg.Unified {
		pl.Spec.Linux.Namespaces = append(pl.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return pl, pl.confine(p)
}

// systemDir makes sure that the root has a directory of its own for one of systemDirs.
func (pl *Plan) systemDir(dir string) error {
	st, err := pl.points.root.stat(dir)
	switch {
	case errors.Is(err, unix.ENOENT):
		return pl.points.make(place{missing: []string{dir}}, true)
	case err != nil:
		return fmt.Errorf("look at /%s of the root: %w", dir, err)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return startError("the image has a link at /%s: it must be a directory, or not be there", dir)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return startError("the image has a file at /%s: it must be a directory, or not be there", dir)
	}
	return nil
}

// bind plans to mount something on target, a directory or a file, and makes the mount point: in the root, or in a cache that is
// mounted over it.
func (pl *Plan) bind(b Bind, target string, dir bool) error {
	if !path.IsAbs(target) {
		return startError("mount target %q is not absolute", target)
	}
	at, err := pl.view.resolve(target)
	if err != nil {
		return startError("cannot mount on %s: %v", target, err)
	}
	b.Target = "/" + at.path()
	if b.Target == "/" {
		return startError("cannot mount on %s: it is the root directory", target)
	}
	if len(b.Target) >= unix.PathMax {
		return startError("cannot mount on %.100s...: its path is longer than the %d bytes that Linux takes", target, unix.PathMax-1)
	}
	for _, other := range pl.Binds {
		if dir && below(other.Target, b.Target) {
			return startError("cannot mount a cache on %s: it would hide what is mounted on %s", target, other.Target)
		}
	}
	points := &pl.points
	if i, inside := pl.view.covering(at.found); i >= 0 && at.path() != pl.view.over[i].at {
		points, at.found = &pl.caches[i].points, inside
	}
	if err := points.ensure(at, target, dir); err != nil {
		return err
	}
	pl.Binds = append(pl.Binds, b)
	return nil
}

// checkDir looks whether a process would begin in one of systemDirs: a name in /proc can lead out of the root while the process is made. A
// link that another step puts into a shared cache meanwhile is for the runtime to find.
func (pl *Plan) checkDir(dir string) error {
	view := pl.view
	view.lenient = true
	if _, err := view.resolve(dir); err != nil {
		return startError("working directory %s: %v", dir, err)
	}
	return nil
}

// covers reports whether the process will see something else at a path than the root has there.
func (pl *Plan) covers(name string) bool {
	at, err := pl.points.root.resolve(name)
	if err != nil {
		return false
	}
	cache, _ := pl.view.covering(at.path())
	return cache >= 0 || below(at.path(), systemDirs...)
}

// below reports whether a clean path is one of dirs or inside it.
func below(name string, dirs ...string) bool {
	for _, d := range dirs {
		if name == d || strings.HasPrefix(name, d+"/") {
			return true
		}
	}
	return false
}

// Remove removes all mount points that were made for the run.
func (pl *Plan) Remove() error { return pl.points.remove() }

func process(root RootDir, p executor.Process, cg cgroup.System) *specs.Process {
	umask := uint32(0o022)
	env := p.Env
	if _, set := lookupEnv(env, "HOME"); !set {
		env = append(env[:len(env):len(env)], "HOME="+homeOf(root, p.UID))
	}
	caps := &specs.LinuxCapabilities{Bounding: capabilities, Inheritable: capabilities}
	if p.UID == 0 { // exec takes them from others, but only after it has used them to find the program
		caps.Permitted, caps.Effective = capabilities, capabilities
	}
	var size *specs.Box
	if p.Terminal {
		size = windowSize(p.Stdin)
	}
	return &specs.Process{
		Terminal:     p.Terminal,
		ConsoleSize:  size,
		User:         specs.User{UID: uint32(p.UID), GID: uint32(p.GID), Umask: &umask},
		Args:         p.Argv,
		Env:          env,
		Cwd:          p.Dir,
		Capabilities: caps,
		Rlimits:      append([]specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}}, cg.Rlimits(p.Limits)...),
	}
}

func resources(l executor.Limits, cg cgroup.System) *specs.LinuxResources {
	res := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if l.Memory > 0 {
		res.Memory = &specs.LinuxMemory{Limit: &l.Memory}
		if cg.Swap {
			res.Memory.Swap = &l.Memory // of memory and swap together: none
		}
	}
	if l.CPUs > 0 {
		period := uint64(100_000)
		quota := max(int64(l.CPUs*float64(period)), 1000) // the kernel takes no less
		res.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if pids := cg.PIDs(l); pids > 0 {
		res.Pids = &specs.LinuxPids{Limit: &pids}
	}
	return res
}
