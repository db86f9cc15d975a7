package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/cgroup"
)

// A Container is one process to be started.
type Container struct {
	Spec   *specs.Spec   // as an OCI runtime is given it; Linux.Seccomp is not looked at
	Filter []byte        // of system calls, compiled: struct sock_filter, one after the other; none if empty
	Group  *cgroup.Group // which it begins in, or joins

	// Networks is where its network namespace comes from, if it has one of its own.
	Networks *Networks

	// Stdin and Stdout are the process's standard input, and its output and errors. With a terminal, both are nil, and Console is a socket on which
	// the terminal's controlling end is sent, as the descriptor of a message of one byte.
	Stdin, Stdout, Console *os.File

	Probe bool // end with status 0 where the process would be executed
}

// Supported is an error on architectures that no container can be started on.
func Supported() error {
	_, err := loopText()
	return err
}

// What the first program finds open beside its input and output, and reportFD.
const (
	programFD = 4 // itself
	consoleFD = 5
)

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
	report, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer report.Close()
	defer theirs.Close()
	attr := &os.ProcAttr{Env: []string{}, Sys: &syscall.SysProcAttr{Cloneflags: flags}}
	if c.Console == nil {
		attr.Files = []*os.File{c.Stdin, c.Stdout, c.Stdout, theirs, programFD: nil}
	} else { // three of them give way to the terminal
		attr.Files = []*os.File{c.Console, c.Console, c.Console, theirs, programFD: nil, consoleFD: c.Console}
	}
	if slices.ContainsFunc(c.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace }) {
		network, err := c.Networks.take()
		if err != nil {
			return nil, err
		}
		defer network.Close()
		b.network = uint64(len(attr.Files))
		attr.Files = append(attr.Files, network)
	}
	b.free = len(attr.Files)
	for fd, f := range attr.Files[:3] {
		if isPipe(f) {
			b.pipes = append(b.pipes, fd)
		}
	}
	if c.Group.Unified() {
		dir, err := os.Open(c.Group.Dirs[0].Path)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	if err := b.build(); err != nil {
		return nil, err
	}
	program, err := b.file()
	if err != nil {
		return nil, err
	}
	defer program.Close()
	attr.Files[programFD] = program
	p, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(programFD), []string{"obx"}, attr)
	if err != nil {
		return nil, fmt.Errorf("start a process in new namespaces: %w", err)
	}
	theirs.Close()
	said, err := io.ReadAll(io.LimitReader(report, 64))
	if err == nil && len(said) == 0 {
		return p, nil
	}
	_ = p.Kill()
	_, werr := p.Wait()
	if err != nil {
		return nil, errors.Join(err, werr)
	}
	f, err := b.failure(said)
	if err != nil {
		return nil, err
	}
	return nil, b.explain(f)
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
