package rootless

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor/internal/sandbox"
)

// Enter has this program go on as root of a user namespace: it does not return then. It returns nil where the process can make mounts as it is, and
// an error that says what to do where there can be no namespace. Only what the process was started with survives: call it before input is read.
// The variables are added to the environment.
func Enter(variables ...string) error {
	switch {
	case os.Geteuid() == 0 && mayMount():
		return nil
	case userns.Entered():
		return errNoRights()
	}
	m, err := ownMaps()
	if err != nil {
		return err
	}
	ns, err := m.namespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	const self = "/proc/self/exe"
	file, err := os.Open(self)
	if err != nil {
		return err
	}
	defer file.Close()
	path, err := os.Readlink(self)
	if err != nil {
		return err
	}
	env := append(os.Environ(), variables...)
	return sandbox.Exec(ns, file, path, os.Args, append(env, userns.CallerVariable+"="+strconv.Itoa(os.Getuid())))
}

// Status says as what steps can be run, and else why not and what to do.
func Status() (string, error) {
	switch {
	case os.Geteuid() == 0 && mayMount() && !userns.Inside():
		return "", nil
	case os.Geteuid() == 0 && mayMount():
		n := 0
		for _, r := range idsOf("uid") {
			n += r.count
		}
		return fmt.Sprintf("in a user namespace, with %d ids", n), nil
	case userns.Entered():
		return "", errNoRights()
	}
	m, err := ownMaps()
	if err != nil {
		return "", err
	}
	ns, err := m.namespace()
	if err != nil {
		return "", err
	}
	return "a user namespace can be made", ns.Close()
}

// mayMount reports whether the process has CAP_SYS_ADMIN.
func mayMount() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&h, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// maps are the ids of a namespace.
type maps struct {
	uid, gid []idRange
	direct   bool // written by this process itself, not by newuidmap and newgidmap
}

type idRange struct{ inside, outside, count int }

// ownMaps are those of the namespaces that this process's user can make.
func ownMaps() (m maps, err error) {
	if os.Geteuid() == 0 {
		m.direct = true
		m.uid, m.gid = idsOf("uid"), idsOf("gid")
		for _, all := range [][]idRange{m.uid, m.gid} {
			for i := range all {
				all[i].outside = all[i].inside
			}
		}
		return m, nil
	}
	who, err := whoami()
	if err != nil {
		return m, err
	}
	var missing []string
	for kind, to := range map[string]*[]idRange{"uid": &m.uid, "gid": &m.gid} {
		if *to, err = who.subordinate(kind); err != nil {
			return m, err
		}
		if *to == nil {
			missing = append(missing, "/etc/sub"+kind)
		}
	}
	if missing != nil {
		slices.Sort(missing)
		return m, fmt.Errorf("user %s has no subordinate ids in %s, and files of images belong to more than one user: as root, run\n"+
			"  usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %[1]s\n"+
			"with a range that no other user has there; or run obx as root", who.name, strings.Join(missing, " and "))
	}
	m.uid = append([]idRange{{0, os.Geteuid(), 1}}, m.uid...)
	m.gid = append([]idRange{{0, os.Getegid(), 1}}, m.gid...)
	return m, nil
}

// idsOf are those that this namespace has.
func idsOf(kind string) (all []idRange) {
	b, _ := os.ReadFile("/proc/self/" + kind + "_map")
	for line := range strings.Lines(string(b)) {
		var r idRange
		if _, err := fmt.Sscan(line, &r.inside, &r.outside, &r.count); err == nil {
			all = append(all, r)
		}
	}
	return all
}

// A person is who has started this process.
type person struct{ name, uid string }

func whoami() (person, error) {
	uid := strconv.Itoa(os.Geteuid())
	u, err := user.LookupId(uid)
	if err != nil {
		return person{}, fmt.Errorf("user %s has no name, and so no subordinate ids: give it a line in /etc/passwd, or run obx as root", uid)
	}
	return person{u.Username, uid}, nil
}

// subordinate finds the user's ranges, which are from 1 in the namespace. A directory service may have them instead of the file; getsubids
// knows it.
func (p person) subordinate(kind string) ([]idRange, error) {
	name := "/etc/sub" + kind
	f, err := os.Open(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var lines []string
	if err == nil {
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			lines = append(lines, sc.Text())
		}
	}
	found, err := p.ranges(lines)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if found != nil {
		return found, nil
	}
	args := []string{p.name}
	if kind == "gid" {
		args = []string{"-g", p.name}
	}
	out, err := exec.Command("getsubids", args...).Output()
	if err != nil {
		return nil, nil // it is not there, or says that there are none
	}
	lines = nil
	for line := range strings.Lines(string(out)) { // 0: user 100000 65536
		if _, rest, ok := strings.Cut(line, ": "); ok {
			lines = append(lines, strings.Join(strings.Fields(rest), ":"))
		}
	}
	return p.ranges(lines)
}

// ranges reads lines of /etc/subuid: a name or number of a user, the first id, and how many there are.
func (p person) ranges(lines []string) (all []idRange, err error) {
	next := 1
	for i, line := range lines {
		field := strings.Split(strings.TrimSpace(line), ":")
		if field[0] != p.name && field[0] != p.uid {
			continue
		}
		if len(field) != 3 {
			return nil, fmt.Errorf("line %d: not USER:FIRST:COUNT", i+1)
		}
		first, err1 := strconv.Atoi(field[1])
		count, err2 := strconv.Atoi(field[2])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if count > 0 {
			all = append(all, idRange{next, first, count})
			next += count
		}
	}
	return all, nil
}

// namespace makes a user namespace with the ids.
func (m maps) namespace() (*os.File, error) {
	pid, release, err := sandbox.Hold()
	if err != nil {
		return nil, refused(err)
	}
	defer func() { _ = release() }()
	for kind, ranges := range map[string][]idRange{"uid": m.uid, "gid": m.gid} {
		write := command
		if m.direct {
			write = direct
		}
		if err := write(pid, kind, ranges); err != nil {
			return nil, err
		}
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
}

// command maps ids by a program that may do so for others than its user.
func command(pid int, kind string, ranges []idRange) error {
	name := "new" + kind + "map"
	program, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("the program %s is missing: try `apt-get install uidmap` (Debian, Ubuntu) or `dnf install shadow-utils` (Fedora)", name)
	}
	args := []string{strconv.Itoa(pid)}
	for _, r := range ranges {
		args = append(args, strconv.Itoa(r.inside), strconv.Itoa(r.outside), strconv.Itoa(r.count))
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("give a user namespace its ids: %s: %s (%w): the program has to be setuid root, and /etc/sub%s has to allow them",
			strings.Join(append([]string{name}, args...), " "), strings.TrimSpace(string(out)), err, kind)
	}
	return nil
}

// direct maps ids that this process has itself.
func direct(pid int, kind string, ranges []idRange) error {
	var text strings.Builder
	for _, r := range ranges {
		fmt.Fprintln(&text, r.inside, r.outside, r.count)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s_map", pid, kind), []byte(text.String()), 0); err != nil {
		return fmt.Errorf("give a user namespace its ids: %w: root needs the capabilities SETUID and SETGID for that", err)
	}
	return nil
}

const inContainer = "in a container, it has to allow user namespaces and mounts: see docs/rootless.md"

// refused says why the kernel makes no user namespace.
func refused(err error) error {
	read := func(name string) string {
		b, _ := os.ReadFile("/proc/sys/" + name)
		return strings.TrimSpace(string(b))
	}
	switch {
	case read("user/max_user_namespaces") == "0":
		return fmt.Errorf("%w: this machine allows none: as root, run `sysctl user.max_user_namespaces=15000`", err)
	case read("kernel/unprivileged_userns_clone") == "0":
		return fmt.Errorf("%w: this machine allows them only to root: as root, run `sysctl kernel.unprivileged_userns_clone=1`", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %s", err, inContainer)
	}
	return err
}

// errNoRights is for a process that is root of a namespace and still cannot mount.
func errNoRights() error {
	if b, err := os.ReadFile("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); err == nil && strings.TrimSpace(string(b)) == "1" {
		return errors.New("AppArmor takes all rights from the user namespaces of ordinary users: as root, give obx a profile with `userns,`, or run " +
			"`sysctl kernel.apparmor_restrict_unprivileged_userns=0`")
	}
	return errors.New("this process is root of a user namespace, but may not mount: " + inContainer)
}
