//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// controllers are those of control groups that limits need.
var controllers = []string{"memory", "cpu", "pids"}

// startContainer starts the process of a bundle that package overlay has written.
func startContainer(bundle string, stdin, stdout *os.File) (process *os.Process, master *os.File, err error) {
	spec, err := readSpec(bundle)
	if err != nil {
		return nil, nil, err
	}
	group, err := makeCgroup(spec)
	if err != nil {
		return nil, nil, err
	}
	defer group.Close()
	flags, err := namespaceFlags(spec)
	if err != nil {
		return nil, nil, err
	}
	report, theirs, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer report.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{containerName, bundle}, Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Dir: bundle,
		Stdin: stdin, Stdout: stdout, Stderr: stdout,
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: flags, Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())},
	}
	if spec.Process.Terminal {
		var tty *os.File
		if master, tty, err = openTerminal(); err != nil {
			theirs.Close()
			return nil, nil, err
		}
		defer tty.Close()
		if box := spec.Process.ConsoleSize; box != nil {
			_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(box.Height), Col: uint16(box.Width)})
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr.Setctty = true // fd 0
	}
	err = cmd.Start()
	theirs.Close()
	if err == nil {
		var said []byte
		said, err = io.ReadAll(io.LimitReader(report, 4096))
		if err == nil && len(said) > 0 {
			err = errors.New(string(said))
		}
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	if err != nil {
		if master != nil {
			master.Close()
		}
		return nil, nil, err
	}
	return cmd.Process, master, nil
}

func namespaceFlags(spec *specs.Spec) (flags uintptr, err error) {
	for _, ns := range spec.Linux.Namespaces {
		switch ns.Type {
		case specs.PIDNamespace:
			flags |= unix.CLONE_NEWPID
		case specs.IPCNamespace:
			flags |= unix.CLONE_NEWIPC
		case specs.UTSNamespace:
			flags |= unix.CLONE_NEWUTS
		case specs.MountNamespace:
			flags |= unix.CLONE_NEWNS
		case specs.NetworkNamespace:
			flags |= unix.CLONE_NEWNET
		case specs.CgroupNamespace: // made from inside, when it is in its group
		default:
			return 0, fmt.Errorf("unknown namespace %q", ns.Type)
		}
	}
	return flags, nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	if s.Process == nil || s.Linux == nil || s.Root == nil || s.Process.Capabilities == nil {
		return nil, errors.New("config.json: something is missing")
	}
	return &s, nil
}

// makeCgroup makes the control group of a process with its limits.
func makeCgroup(spec *specs.Spec) (*os.File, error) {
	dir := cgroupRoot
	for name := range strings.SplitSeq(strings.Trim(spec.Linux.CgroupsPath, "/"), "/") {
		for _, c := range controllers {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				return nil, fmt.Errorf("control group: enable %s: %w", c, err)
			}
		}
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	limits := map[string]string{}
	if r := spec.Linux.Resources; r != nil {
		if r.Memory != nil && r.Memory.Limit != nil {
			limits["memory.max"] = strconv.FormatInt(*r.Memory.Limit, 10)
		}
		if r.CPU != nil && r.CPU.Quota != nil && r.CPU.Period != nil {
			limits["cpu.max"] = fmt.Sprintf("%d %d", *r.CPU.Quota, *r.CPU.Period)
		}
		if r.Pids != nil && r.Pids.Limit != nil {
			limits["pids.max"] = strconv.FormatInt(*r.Pids.Limit, 10)
		}
	}
	for name, value := range limits {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
			return nil, fmt.Errorf("control group: set %s: %w", name, err)
		}
	}
	return os.Open(dir)
}
