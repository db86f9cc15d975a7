package overlay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/cgroup"
)

// A supervisor is the maker's end of one.
type supervisor struct {
	priv    string   // where it has its tmpfs
	control *os.File // closing it ends the supervisor
	ended   chan struct{}
	err     error // why it ended, after ended is closed

	sending sync.Mutex
}

// startSupervisor starts this program once more, with priv, an empty directory, for its own use, and the control groups that it may make. It does not
// wait until the supervisor is ready: requests queue.
func startSupervisor(priv string, cgroups cgroup.System) (*supervisor, error) {
	if IsSupervisor() {
		return nil, errors.New("a supervisor cannot start another: main must call overlay.Supervise when overlay.IsSupervisor says so")
	}
	groups, err := json.Marshal(cgroups)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	var stderr bytes.Buffer
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{supervisorName, priv, string(groups)},
		Env:        goSettings(),
		Stderr:     &limitedWriter{w: &stderr, left: 4096},
		ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
			Pdeathsig:  syscall.SIGKILL,
			Setsid:     true, // Ctrl-C at a terminal is for the maker alone
		},
	}
	s := &supervisor{priv: priv, control: ours, ended: make(chan struct{})}
	startErr := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread ends that has started the process: this one stays as long as
		// the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		startErr <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		if msg := strings.TrimSpace(stderr.String()); msg != "" {
			err = errors.New(msg)
		}
		s.err = err
		close(s.ended)
	}()
	if err := <-startErr; err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the supervisor in new pid and mount namespaces: %w", err)
	}
	return s, nil
}

// goSettings are the variables of the environment that speak to the Go runtime. A supervisor needs no others.
func goSettings() []string {
	env := []string{}
	for _, name := range []string{"GODEBUG", "GOMAXPROCS", "GORACE", "GOTRACEBACK"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// alive reports whether it has not ended yet.
func (s *supervisor) alive() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// close ends it and all that it runs, and waits for that.
func (s *supervisor) close() error {
	s.control.Close()
	select {
	case <-s.ended:
		return s.err
	case <-time.After(10 * time.Second):
		return errors.New("the supervisor does not end")
	}
}

// start sends a request and returns the socket on which replies come. It closes the process's ends of its input and output.
func (s *supervisor) start(req request, stdio *stdio, mounts []*os.File) (*net.UnixConn, error) {
	defer stdio.stdin.Close()
	defer stdio.stdout.Close()
	ours, theirs, err := socketPair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	conn, err := streamConn(ours)
	if err != nil {
		return nil, err
	}
	s.sending.Lock()
	err = sendFDs(int(s.control.Fd()), append([]*os.File{theirs, stdio.stdin, stdio.stdout}, mounts...)...)
	s.sending.Unlock()
	if err == nil {
		err = json.NewEncoder(conn).Encode(req)
	}
	if err != nil {
		conn.Close()
		return nil, s.wrap(fmt.Errorf("ask the supervisor: %w", err))
	}
	return conn, nil
}

// wrap adds why the supervisor ended to an error that came of it.
func (s *supervisor) wrap(err error) error {
	select {
	case <-s.ended:
		return fmt.Errorf("%w (the supervisor ended: %v)", err, s.err)
	case <-time.After(100 * time.Millisecond):
		return err
	}
}

// run does one run and returns its last reply. Cancelling ctx kills the process; the reply tells then how it ended. detached is closed when the mounts
// are gone, and nil if they are.
func (s *supervisor) run(ctx context.Context, req request, stdio *stdio, mounts []*os.File) (r reply, detached <-chan struct{}, err error) {
	conn, err := s.start(req, stdio, mounts)
	if err != nil {
		return reply{}, nil, err
	}
	defer func() {
		if err != nil || r.Event != exited || !req.Detach {
			conn.Close()
			return
		}
		gone := make(chan struct{})
		detached = gone
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
			close(gone)
		}()
	}()
	kill := func() { _ = conn.CloseWrite() }
	defer context.AfterFunc(ctx, kill)()
	replies := json.NewDecoder(conn)
	if req.Runtime != Builtin {
		if err := replies.Decode(&r); err != nil {
			return r, nil, s.wrap(fmt.Errorf("the supervisor does not answer: %w", err))
		}
		if r.Event != started {
			return r, nil, nil // whatever is in the pipe is not the process's
		}
	}
	copied := make(chan error, 1)
	go func() {
		err := stdio.copy()
		if err != nil {
			kill()
		}
		copied <- err
	}()
	if err = replies.Decode(&r); err != nil {
		err = s.wrap(fmt.Errorf("the supervisor does not answer: %w", err))
	}
	stdio.ended()
	cerr := <-copied
	if r.Event != exited { // so nothing was written, and no terminal was made
		cerr = nil
	}
	return r, nil, errors.Join(err, cerr)
}

// A limitedWriter keeps the beginning.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
