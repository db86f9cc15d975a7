package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ocurrent/obx/executor"
)

// command is a process of the machine itself, ready to be started where it is to run.
func command(p executor.Process) (*exec.Cmd, error) {
	if len(p.Argv) == 0 {
		return nil, &executor.StartError{Msg: "no command"}
	}
	for _, s := range slices.Concat(p.Argv, p.Env, []string{p.Dir}) {
		if strings.ContainsRune(s, 0) {
			return nil, &executor.StartError{Msg: fmt.Sprintf("%q has a zero byte", s)}
		}
	}
	// The program is looked for as the process would: from its directory, in its PATH.
	dir := local(p.Dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, &executor.StartError{Msg: fmt.Sprintf("cannot make the working directory: %v", err)}
	}
	if err := os.Chdir(dir); err != nil {
		return nil, &executor.StartError{Msg: fmt.Sprintf("cannot use the working directory: %v", err)}
	}
	env := environment(p)
	own := os.Getenv("PATH")
	for _, v := range env {
		if name, value, _ := strings.Cut(v, "="); samePath(name) {
			if err := os.Setenv("PATH", value); err != nil {
				return nil, err
			}
		}
	}
	program, err := exec.LookPath(p.Argv[0])
	_ = os.Setenv("PATH", own) // it was one
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return nil, &executor.StartError{Msg: fmt.Sprintf("cannot run %s: %v", p.Argv[0], errors.Unwrap(err))}
	}
	cmd := &exec.Cmd{Path: program, Args: p.Argv, Env: env, Dir: dir}
	return cmd, asProcess(cmd, p)
}

// afterwards is how long a process that has been told to end, or the last of its output, is waited for.
const afterwards = 2 * time.Second

// runPlain runs a process to its end, and ends what it has left running.
func runPlain(p executor.Process, stdin *os.File, out io.Writer) error {
	setHostname(p.Hostname)
	if stdin != nil {
		defer stdin.Close()
	}
	cmd, err := command(p)
	defer func() { _ = os.Chdir(local("/")) }() // a directory in use cannot be removed on Windows
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = w, w
	if stdin != nil { // else it is the null device
		cmd.Stdin = stdin
	}
	g, err := startGroup(cmd)
	w.Close()
	if err != nil {
		r.Close()
		if errors.Is(err, errSystem) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
			return fmt.Errorf("run %s: %w", p.Argv[0], err)
		}
		return &executor.StartError{Msg: fmt.Sprintf("cannot run %s: %v", p.Argv[0], err)}
	}
	copied := make(chan error, 1)
	counted := &counter{w: out}
	go func() {
		_, err := io.Copy(counted, r)
		r.Close()
		copied <- err
	}()
	var late bool
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if p.Limits.Timeout > 0 {
		t := time.NewTimer(p.Limits.Timeout)
		defer t.Stop()
		select {
		case err = <-ended:
		case <-t.C:
			late = true
			g.kill()
			err = <-ended
		}
	} else {
		err = <-ended
	}
	g.kill()
	if err := counted.wait(copied); err != nil {
		return fmt.Errorf("read what the process prints: %w", err)
	}
	if late {
		return &executor.ExitError{Reason: executor.TimedOut, Limit: p.Limits.Timeout.String()}
	}
	return exitOf(err, cmd)
}

// A counter counts what is written to another.
type counter struct {
	w io.Writer
	n atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// wait waits until all is copied, or nothing comes any more: somebody who is no longer in the group may have the other end.
func (c *counter) wait(copied <-chan error) error {
	for before := int64(-1); before != c.n.Load(); {
		before = c.n.Load()
		select {
		case err := <-copied:
			return err
		case <-time.After(afterwards):
		}
	}
	return nil
}

// errSystem is a fault of the system's, not of the program that was to run.
var errSystem = errors.New("the system cannot start a process")

// exitOf tells how a process ended that was waited for.
func exitOf(err error, cmd *exec.Cmd) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if n := signalOf(cmd.ProcessState); n > 0 {
		return &executor.ExitError{Reason: executor.Signaled, Signal: n}
	}
	return &executor.ExitError{Reason: executor.Exited, Code: exit.ExitCode()}
}

// shutdownCommands are how systems are told to end.
var shutdownCommands = map[string][]string{
	"linux":   {"/sbin/poweroff"},
	"openbsd": {"/sbin/shutdown", "-p", "now"},
	"windows": {"shutdown", "/s", "/f", "/t", "0"},
}

// shutDown has the system write all that it holds back, and end.
func shutDown() error {
	argv := shutdownCommands[runtime.GOOS]
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("shut down: %s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
