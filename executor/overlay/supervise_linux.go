package overlay

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor/internal/cgroup"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/internal/sandbox"
)

// supervisorName is the argv[0] of a supervisor.
const supervisorName = "obx-supervisor"

// IsSupervisor reports whether this process was started to be a supervisor. Every program that makes an Executor asks it
// first of all in main, and every test in TestMain, and then calls Supervise.
func IsSupervisor() bool { return len(os.Args) == 3 && os.Args[0] == supervisorName }

// Supervise is the main function of a supervisor. It does not return. ready, if it is not nil, makes each root ready that is attached, before
// anything is mounted in it.
func Supervise(ready func(root int) error) {
	if err := supervise(os.Args[1], os.Args[2], ready); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A supervision is the state of a supervisor: pid 1, with mounts of its own, so that it ends everything by ending.
type supervision struct {
	priv     string // a tmpfs
	cgroups  cgroup.Maker
	ready    func(root int) error
	starters sandbox.Starters
	networks sandbox.Networks
	running  sync.WaitGroup // runs and the removal of what they leave
}

func supervise(priv, cgroups string, ready func(root int) error) error {
	if os.Getpid() != 1 {
		return errors.New("a supervisor is started by obx, as the first process of a namespace")
	}
	s := &supervision{priv: priv, ready: ready}
	if err := json.Unmarshal([]byte(cgroups), &s.cgroups.System); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	if err := s.setUp(); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	const control = 3
	unix.CloseOnExec(control)
	for {
		fds, err := recvFDs(control)
		if err != nil {
			return fmt.Errorf("supervisor: %w", err)
		}
		if fds == nil {
			break
		}
		s.running.Go(func() { s.serve(fds) })
	}
	// The maker shut down every run before; what is left is cleaning.
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
	}
	return nil
}

var errHiddenProc = errors.New("a /proc of its own cannot be mounted, since this container hides parts of /proc: " +
	"use docker run --security-opt systempaths=unconfined, podman run --security-opt unmask=ALL, or procMount: Unmasked in Kubernetes (docs/rootless.md)")

func (s *supervision) setUp() error {
	// Nothing that is mounted here shows outside, but what is unmounted outside vanishes here too.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cut off mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		if err == unix.EPERM && userns.Inside() {
			return errHiddenProc
		}
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Secrets lie here: not even in swap, where the kernel knows that option (Linux 6.4).
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("obx", s.priv, "tmpfs", flags, "mode=0700,noswap"); err != nil {
		if err := unix.Mount("obx", s.priv, "tmpfs", flags, "mode=0700"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", s.priv, err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.priv, stateName), 0o700); err != nil {
		return err
	}
	unix.Umask(0o022)
	return sandbox.CloseInherited()
}

// serve does one run, from its request to the last reply, and then removes what is left of it.
func (s *supervision) serve(fds []*os.File) {
	r := run{supervision: s, fds: fds}
	defer r.close()
	if len(fds) < fdMounts {
		return
	}
	conn, err := streamConn(fds[fdConn])
	if err != nil {
		return
	}
	defer conn.Close()
	out := json.NewEncoder(conn)
	in := json.NewDecoder(conn)
	if err := in.Decode(&r.request); err != nil {
		_ = out.Encode(reply{Event: broken, Error: "read request: " + err.Error()})
		return
	}
	cancelled := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		close(cancelled)
	}()
	last := r.do(cancelled, func(e reply) { _ = out.Encode(e) })
	if last.Event == exited && r.Detach {
		_ = out.Encode(last)
		r.unmount()
	} else {
		r.unmount()
		_ = out.Encode(last)
	}
	_ = conn.CloseWrite()
	r.clean()
}

// A run is one container.
type run struct {
	*supervision
	request
	fds []*os.File
	dir string

	group    *cgroup.Group // of a process that was started here
	refused  *refusals     // of such a process in a user namespace
	detached error         // why the root may still be mounted in dir
}

func (r *run) do(cancelled <-chan struct{}, tell func(reply)) reply {
	r.dir = bundleDir(r.priv, r.ID)
	if err := r.prepare(); err != nil {
		return reply{Event: broken, Error: err.Error()}
	}
	select {
	case <-cancelled:
		return reply{Event: broken, Error: "cancelled"}
	default:
	}
	init, said, err := r.start(cancelled)
	if err != nil {
		r.cgroups.Kill(r.Cgroup)
		return reply{Event: refused, Error: err.Error(), Said: said}
	}
	r.closeStdio() // so that the maker sees the end of the output
	if r.Runtime != Builtin {
		tell(reply{Event: started})
	}
	if r.Probe {
		_ = init.Kill()
	}
	state, err := wait(init, cancelled)
	if err != nil {
		r.cgroups.Kill(r.Cgroup)
		return reply{Event: broken, Error: "wait for the process: " + err.Error()}
	}
	e := reply{Event: exited, Refused: r.refused.all()}
	if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		e.Signal = int(ws.Signal())
	} else {
		e.Code = ws.ExitStatus()
	}
	switch {
	case state.Success(): // nobody asks
	case r.group != nil:
		e.OOM = r.group.OOM()
	default:
		e.OOM = r.cgroups.OOMKills(r.Cgroup) > 0
	}
	return e
}

// prepare puts mounts and files where the spec says they are.
func (r *run) prepare() error {
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return err
	}
	a := rootfs.Attachment{Mounts: r.fds[fdRoot:], Files: r.Files, Binds: r.Binds, Ready: r.ready}
	err := rootfs.Attach(r.dir, a)
	for _, f := range r.fds[fdRoot:] { // before the reply, after which the maker touches what is below the mounts
		f.Close()
	}
	if err != nil {
		return err
	}
	if r.Runtime == Builtin {
		return nil
	}
	spec, err := json.Marshal(r.Spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, "config.json"), spec, 0o600)
}

// startGrace is how long a runtime may take to start a process that is not wanted any more.
const startGrace = 10 * time.Second

// start starts the process and returns the first one of its pid namespace. If that fails, what the runtime said is
// returned too.
func (r *run) start(cancelled <-chan struct{}) (init *os.Process, said []string, err error) {
	if r.Runtime == Builtin {
		return r.startHere()
	}
	if err = r.create(cancelled); err == nil {
		init, err = r.init()
	}
	if err == nil && !r.Probe && !r.startsAtOnce() {
		if err = r.call(cancelled, exec.Command(r.Runtime), "start", r.ID); err != nil {
			_ = init.Kill()
			_, _ = init.Wait()
		}
	}
	if err != nil {
		return nil, readLog(r.log()), err
	}
	return init, nil, nil
}

// startHere starts the process without a runtime.
func (r *run) startHere() (init *os.Process, said []string, err error) {
	if r.group, err = r.cgroups.Make(r.Cgroup, r.Spec.Linux.Resources); err != nil {
		return nil, nil, err
	}
	if userns.Inside() && !r.Probe {
		init, err = r.startWatched()
		if errors.Is(err, unix.EBUSY) { // who has started obx hears of its system calls, and the kernel knows one listener
			r.refused = unheard
			init, err = r.startContainer(nil)
		}
	} else {
		init, err = r.startContainer(nil)
	}
	if err != nil {
		return nil, []string{err.Error()}, err
	}
	return init, nil, nil
}

// startContainer starts the process. listener, if it is not nil, is a socket on which the listener of its filter is sent.
func (r *run) startContainer(listener *os.File) (*os.Process, error) {
	c := sandbox.Container{Spec: r.Spec, Group: r.group, Starters: &r.starters, Networks: &r.networks, Listener: listener, Probe: r.Probe}
	var err error
	if c.Filter, err = rootfs.CompiledFilter(r.HostNetwork, r.FastSync, listener != nil); err != nil {
		return nil, err
	}
	if r.Terminal {
		c.Console = r.fds[fdStdout]
	} else {
		c.Stdin, c.Stdout = r.fds[fdStdin], r.fds[fdStdout]
	}
	return c.Start()
}

// startWatched starts the process, and has what it is refused noted.
func (r *run) startWatched() (*os.Process, error) {
	ours, theirs, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	init, err := r.startContainer(theirs)
	theirs.Close() // then the socket has an end, if no listener was sent
	if err != nil {
		return nil, err
	}
	if r.refused, err = watch(ours); err != nil {
		_ = init.Kill()
		_, werr := init.Wait()
		return nil, errors.Join(err, werr)
	}
	if r.refused == nil { // it was killed before it had a filter: how, is for wait to see
		_ = init.Kill()
	}
	return init, nil
}

// startsAtOnce reports whether the runtime's `run --detach` does what `create` and `start` do, in less time. With crun it does
// not: it may wait for a short process itself, and so take its exit status from us.
func (r *run) startsAtOnce() bool { return filepath.Base(r.Runtime) == "runc" }

// create runs the runtime until it has made the container and is gone.
func (r *run) create(cancelled <-chan struct{}) error {
	args := []string{"create"}
	if !r.Probe && r.startsAtOnce() {
		args = []string{"run", "--detach"}
	}
	args = append(args, "--pid-file", r.pidFile(), "--bundle", r.dir)
	cmd := exec.Command(r.Runtime)
	if !r.Terminal {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = r.fds[fdStdin], r.fds[fdStdout], r.fds[fdStdout]
		return r.call(cancelled, cmd, append(args, r.ID)...)
	}
	console, err := listenConsole(r.dir)
	if err != nil {
		return err
	}
	defer console.Close()
	passed := make(chan error, 1)
	go func() { passed <- console.pass(r.fds[fdStdout]) }()
	err = r.call(cancelled, cmd, append(args, "--console-socket", consoleName, r.ID)...)
	console.hurry()
	if perr := <-passed; err == nil {
		err = perr
	}
	return err
}

// call runs the runtime to its end.
func (r *run) call(cancelled <-chan struct{}, cmd *exec.Cmd, args ...string) error {
	cmd.Args = append([]string{r.Runtime, "--root", filepath.Join(r.priv, stateName), "--log", r.log(), "--log-format", "json"}, args...)
	cmd.Dir = r.dir
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", r.Runtime, err)
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
			return
		case <-cancelled:
		}
		select {
		case <-done:
		case <-time.After(startGrace):
			_ = cmd.Process.Kill()
		}
	}()
	err := cmd.Wait()
	close(done)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(r.Runtime), err)
	}
	return nil
}

func (r *run) log() string { return filepath.Join(r.dir, "log") }

func (r *run) pidFile() string { return filepath.Join(r.dir, "pid") }

// init is the container's first process.
func (r *run) init() (*os.Process, error) {
	b, err := os.ReadFile(r.pidFile())
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("pid file: %w", err)
	}
	return os.FindProcess(pid)
}

// readLog takes the errors out of a runtime's log of JSON lines; both runc and crun write them so.
func readLog(name string) []string {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	var said []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var line struct{ Level, Msg string }
		if json.Unmarshal(sc.Bytes(), &line) == nil && line.Level == "error" {
			said = append(said, line.Msg)
		}
	}
	return said
}

func (r *run) closeStdio() {
	r.fds[fdStdin].Close()
	r.fds[fdStdout].Close()
}

// unmount lets go of the mounts; the maker holds them a little longer.
func (r *run) unmount() {
	r.closeStdio()
	r.detached = rootfs.Detach(r.dir)
}

// clean removes what the runtime keeps of a container. It does for runc and crun what their `delete` does, for a tenth of its time;
// others may have more to clean.
func (r *run) clean() {
	state := filepath.Join(r.priv, stateName)
	switch filepath.Base(r.Runtime) {
	case Builtin:
	case "runc", "crun":
		_ = os.RemoveAll(filepath.Join(state, r.ID))
	default:
		_ = exec.Command(r.Runtime, "--root", state, "delete", "--force", r.ID).Run()
	}
	if r.detached == nil { // else it goes with the supervisor
		r.removeDir()
	}
	if r.group != nil {
		_ = r.group.Remove()
	} else {
		_ = r.cgroups.Remove(r.Cgroup)
	}
}

// removeDir removes what prepare has made.
func (r *run) removeDir() {
	for _, f := range r.Files {
		_ = unix.Unlink(filepath.Join(r.dir, f.Name))
	}
	_ = unix.Rmdir(filepath.Join(r.dir, rootfs.RootName))
	if unix.Rmdir(r.dir) != nil { // a runtime keeps more in it
		_ = os.RemoveAll(r.dir)
	}
}

func (r *run) close() {
	for _, f := range r.fds {
		f.Close()
	}
}

// A console is the socket on which a runtime hands over the controlling end of a terminal.
type console struct{ l *net.UnixListener }

// listenConsole listens in dir, whose name may be longer than a socket's address.
func listenConsole(dir string) (*console, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(rootfs.ProcFD(int(d.Fd())), consoleName)})
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // the directory goes as a whole
	return &console{l}, nil
}

func (c *console) Close() error { return c.l.Close() }

// hurry is called when the runtime has ended: what it sent is there already.
func (c *console) hurry() { _ = c.l.SetDeadline(time.Now().Add(100 * time.Millisecond)) }

// pass waits for the runtime's terminal and sends it on.
func (c *console) pass(to *os.File) error {
	conn, err := c.l.AcceptUnix()
	if err != nil {
		return fmt.Errorf("console socket: %w", err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var fds []*os.File
	var rerr error
	if err := raw.Read(func(fd uintptr) bool {
		fds, rerr = recvConsole(int(fd))
		return !errors.Is(rerr, unix.EAGAIN)
	}); err != nil {
		return err
	}
	if rerr != nil {
		return rerr
	}
	defer fds[0].Close()
	return sendFDs(int(to.Fd()), fds[0])
}

func recvConsole(fd int) ([]*os.File, error) {
	files, err := recvFDs(fd)
	if err == nil && len(files) == 0 {
		err = errors.New("console socket: the runtime sent no terminal")
	}
	return files, err
}
