package hcs_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/hcs"
)

// TestDaemonDies kills containerd while it runs a step: the step fails soon, and can be cancelled, and what the run has left is removed
// when containerd is back and somebody uses it.
func TestDaemonDies(t *testing.T) {
	for name, cancelled := range map[string]bool{"fails": false, "cancelled": true} {
		t.Run(name, func(t *testing.T) { daemonDies(t, cancelled) })
	}
}

func daemonDies(t *testing.T, cancelled bool) {
	address := conformance.StartContainerd(t, "overlayfs")
	daemon := containerdAt(t, address)
	exe, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(daemon), "exe"))
	if err != nil {
		t.Fatal(err)
	}
	st := conformance.OpenStore(t)
	e := maker(hcs.Options{Address: address}).New(t, st)
	r, err := e.Open(t.Context(), nil)
	if err == nil {
		err = r.Add(t.Context(), conformance.Busybox(t, st))
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		p := executor.Process{Argv: []string{"/bin/sh", "-c", "echo started; sleep 300"}, Dir: "/", Env: []string{"PATH=/bin"}}
		done <- r.Run(ctx, p, writerFunc(func(b []byte) (int, error) { close(started); return len(b), nil }))
	}()
	<-started
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if cancelled {
		cancel()
	}
	select {
	case err := <-done:
		var exit *executor.ExitError
		if err == nil || errors.As(err, &exit) || errors.Is(err, context.Canceled) != cancelled {
			t.Errorf("the step gives %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the step goes on without containerd")
	}
	_ = r.Close()
	if err := e.Close(); err == nil {
		t.Error("the executor's Close tells nothing of what it has left")
	}

	again := exec.Command(exe, "--config", filepath.Join(filepath.Dir(address), "config.toml"))
	again.Env = append(os.Environ(), "PATH="+filepath.Dir(exe)+":"+os.Getenv("PATH"))
	again.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = again.Process.Signal(syscall.SIGTERM)
		_ = again.Wait()
	})
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", address); err == nil {
			c.Close()
			break
		}
	}
	if err := maker(hcs.Options{Address: address}).New(t, st).Close(); err != nil {
		t.Error(err)
	}
	wantNothing(t, address, "overlayfs")
}

// containerdAt finds the process of a containerd that conformance has started.
func containerdAt(t *testing.T, address string) int {
	t.Helper()
	config := filepath.Join(filepath.Dir(address), "config.toml")
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		b, _ := os.ReadFile(name)
		args := strings.Split(string(b), "\x00")
		if filepath.Base(args[0]) == "containerd" && strings.Contains(string(b), config) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err == nil {
				return pid
			}
		}
	}
	t.Fatalf("no containerd has %s", config)
	return 0
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
