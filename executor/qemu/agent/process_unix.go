//go:build unix

package main

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
)

// defaultPath is where programs are, if the spec does not say so: where a login would find them.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/X11R6/bin"

func samePath(name string) bool { return name == "PATH" }

func environment(p executor.Process) []string {
	env := append([]string(nil), p.Env...)
	for _, d := range [][2]string{{"PATH", defaultPath}, {"HOME", homeOf(p.UID)}} {
		if !has(env, d[0]) {
			env = append(env, d[0]+"="+d[1])
		}
	}
	return env
}

func has(env []string, name string) bool {
	for _, v := range env {
		if strings.HasPrefix(v, name+"=") {
			return true
		}
	}
	return false
}

// homeOf is a user's directory, or "/".
func homeOf(uid int) string {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return "/"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if v := strings.Split(lines.Text(), ":"); len(v) > 5 && v[2] == strconv.Itoa(uid) && v[5] != "" {
			return v[5]
		}
	}
	return "/"
}

// asProcess has a command run as a user, in a session of its own.
func asProcess(cmd *exec.Cmd, p executor.Process) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: !p.Terminal}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(p.UID), Gid: uint32(p.GID)}
	}
	return nil
}

// A group is a process and what it has started, as long as that stays in its process group.
type group int

func startGroup(cmd *exec.Cmd) (group, error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return group(cmd.Process.Pid), nil
}

func (g group) kill() { _ = unix.Kill(-int(g), unix.SIGKILL) }

func signalOf(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return int(w.Signal())
	}
	return 0
}

// setHostname names the machine: a process without a sandbox cannot have a name of its own. The disk keeps the old one.
func setHostname(name string) {
	if name == "" {
		name = "builder"
	}
	_ = exec.Command("hostname", name).Run() // a machine without the program has the name that it has
}

// setUmask has new files be as everywhere, whatever the login has said.
func setUmask() { syscall.Umask(0o022) }

func syncDisks() error {
	unix.Sync()
	return nil
}
