package sandbox

import (
	"errors"
	"os"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/cgroup"
)

// A Container is one process to be started.
type Container struct {
	Spec   *specs.Spec   // as an OCI runtime is given it; Linux.Seccomp is not looked at
	Filter []byte        // of system calls, compiled: struct sock_filter, one after the other; none if empty
	Group  *cgroup.Group // which it begins in, or joins

	Starters *Starters // which clone it
	Networks *Networks // where its network namespace comes from, if it has one of its own

	// Stdin and Stdout are the process's standard input, and its output and errors. With a terminal, both are nil, and Console is a socket on which
	// the terminal's controlling end is sent, as the descriptor of a message of one byte.
	Stdin, Stdout, Console *os.File

	// Listener is a socket on which the filter's listener is sent, in the same way; nil if the filter has none.
	Listener *os.File

	Probe bool // end with status 0 where the process would be executed
}

// Supported is an error on architectures that no container can be started on.
func Supported() error {
	_, err := starterText()
	return err
}

// Start starts the process, and returns it when its program is executed. It is the first of its pid namespace, if it has one: when it has been
// waited for, all that it started have ended too.
func (c *Container) Start() (*os.Process, error) {
	b := builder{Container: c}
	if err := b.check(); err != nil {
		return nil, err
	}
	flags, err := namespaceFlags(c.Spec)
	if err != nil {
		return nil, err
	}
	files := []*os.File{c.Stdin, c.Stdout}
	if c.Console != nil {
		files = []*os.File{c.Console}
	}
	var group uint64
	if slices.ContainsFunc(c.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace }) {
		network, err := c.Networks.take()
		if err != nil {
			return nil, err
		}
		defer network.Close()
		b.network = uint64(firstFD + len(files))
		files = append(files, network)
	}
	if c.Group.Unified() {
		dir, err := os.Open(c.Group.Dirs[0].Path)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		flags |= unix.CLONE_INTO_CGROUP
		group = uint64(firstFD + len(files))
		files = append(files, dir)
	}
	if c.Listener != nil {
		b.listener = uint64(firstFD + len(files))
		files = append(files, c.Listener)
	}
	b.free = firstFD + len(files)
	if err := b.build(); err != nil {
		return nil, err
	}
	p, f, err := c.Starters.start(&b.program, flags, group, files)
	if err != nil {
		return nil, err
	}
	if f != nil {
		err := b.explain(*f)
		if p != nil {
			_, werr := p.Wait()
			err = errors.Join(err, werr)
		}
		return nil, err
	}
	return p, nil
}

// isPipe reports a pipe without a name: one with a name is a file of somebody's.
func isPipe(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == unix.PIPEFS_MAGIC
}

// CloseInherited has no program that this process executes inherit a descriptor that it was itself started with, but for the first three. It is
// called once, before the first Start: a container's first program knows by number what it has.
func CloseInherited() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
