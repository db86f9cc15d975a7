package vm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/layerdisk"
	"github.com/ocurrent/obx/executor/qemu/words"
)

// A Machine is a running QEMU. It ends with this process, however that ends.
type Machine struct {
	Agent  *guest.Agent
	Layers layerdisk.Disk // what the machine sees as its disk of layers

	qmp     *qmp
	console words.Tail // what its kernel has said
	stderr  words.Tail

	process *os.Process
	ended   chan struct{} // closed when QEMU has been waited for
	status  error         // then: how it ended
	serving sync.WaitGroup

	online bool   // the network is on
	node   int    // number of the topmost file of the disk that it has booted from
	gone   func() // called when it is closed; may be nil

	mu       sync.Mutex
	cause    error  // why it is of no use any more
	shutdown string // why QEMU has ended, as it says: "guest-shutdown", "guest-reset", ...
}

// Users that QEMU runs as, if obx is root: one of these, which no system gives to anybody, so that what breaks out of a machine reaches no other.
// It owns nothing, but the memory that machines are copied from is open to it for writing.
const (
	firstUser = 0x7780_0000
	users     = 0x7ffe_0000 - firstUser
	nobody    = 65534 // where those are not to be had: in a user namespace
)

// machineUser draws a user for a machine, who is also its group.
func machineUser() uint32 {
	b, err := os.ReadFile("/proc/self/uid_map")
	if f := strings.Fields(string(b)); err != nil || len(f) != 3 || f[0] != "0" || f[2] != "4294967295" {
		return nobody
	}
	return firstUser + mathrand.Uint32N(users)
}

// startMachine starts QEMU. It does not wait for anything.
func startMachine(h hardware, f machineFiles) (*Machine, error) {
	p, c, err := devicesOf(h, f)
	if err != nil {
		return nil, fmt.Errorf("start a machine: %w", err)
	}
	defer p.close()
	m := &Machine{online: true, ended: make(chan struct{})}
	if f.disk != nil {
		m.node = len(f.disk.Files) - 1
	}
	if err := m.run(h, p.list); err != nil {
		p.hangUp()
		return nil, err
	}
	m.qmp = newQMP(c.monitor.(*net.UnixConn), m.event)
	m.Agent = guest.NewAgent(m, c.control, c.input)
	m.serving.Go(func() {
		_, _ = io.Copy(&m.console, c.console)
		c.console.Close()
	})
	if c.layers != nil {
		m.serving.Go(func() { m.serveLayers(c.layers) })
	}
	return m, nil
}

// run starts QEMU with devices, and has it waited for.
func (m *Machine) run(h hardware, devices []device) error {
	args, files := arguments(devices)
	cmd := &exec.Cmd{
		Path: h.qemu, Args: append([]string{h.qemu}, args...), Env: []string{"PATH=/usr/bin:/bin", "TMPDIR=/tmp"},
		Stderr: &m.stderr, ExtraFiles: files, Dir: "/",
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true},
	}
	if groups, ok := groupsFor(h.accel); ok && os.Geteuid() == 0 {
		user := machineUser()
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user, Groups: groups}
	}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread ends that has started the process: this one stays as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			m.process = cmd.Process
		}
		started <- err
		if err != nil {
			return
		}
		m.status = cmd.Wait()
		close(m.ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", h.qemu, err)
	}
	return nil
}

// serveLayers answers what QEMU reads of layers.
func (m *Machine) serveLayers(nbd net.Conn) {
	if err := m.Layers.Serve(nbd); err != nil {
		m.Fail(err)
	}
}

// groupsFor is the groups that QEMU needs for an accelerator. Where only root may open /dev/kvm, ok is false.
func groupsFor(accel string) (groups []uint32, ok bool) {
	var st unix.Stat_t
	if accel != "kvm" || unix.Stat("/dev/kvm", &st) != nil || st.Mode&0o006 == 0o006 {
		return nil, true
	}
	return []uint32{st.Gid}, st.Mode&0o060 == 0o060
}

// Ended is closed when QEMU has been waited for.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// Fail makes a machine of no use, and remembers the first reason.
func (m *Machine) Fail(err error) {
	m.mu.Lock()
	if m.cause == nil {
		m.cause = err
	}
	m.mu.Unlock()
	_ = m.process.Kill()
}

// Alive reports whether the machine has neither ended nor failed.
func (m *Machine) Alive() bool {
	select {
	case <-m.ended:
		return false
	default:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cause == nil
}

// WentDown reports whether the machine's system has shut it down, which has ended.
func (m *Machine) WentDown() bool {
	for range m.qmp.answer { // until all events have come
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cause == nil && m.status == nil && m.shutdown == "guest-shutdown"
}

// event is called for what QEMU tells.
func (m *Machine) event(name string, data json.RawMessage) {
	switch name {
	case "SHUTDOWN":
		var e struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(data, &e)
		m.mu.Lock()
		m.shutdown = e.Reason
		m.mu.Unlock()
	case "GUEST_PANICKED":
		m.Fail(errors.New("the machine's system has crashed"))
	case "BLOCK_IO_ERROR":
		var e struct {
			NoSpace bool   `json:"nospace"`
			Reason  string `json:"reason"`
		}
		_ = json.Unmarshal(data, &e)
		if e.NoSpace {
			m.Fail(errors.New("the host's disk is full: the machine cannot write to its disk"))
		} else {
			m.Fail(fmt.Errorf("the machine's disk: %s", e.Reason))
		}
	}
}

// Why explains the end of a machine: err is what came of it.
func (m *Machine) Why(err error) error {
	select {
	case <-m.ended:
	case <-time.After(time.Second): // QEMU lives: the agent has ended, or talks nonsense
		_ = m.process.Kill()
		<-m.ended
	}
	m.Agent.Close()  // else what comes of it may wait for somebody to take it
	m.serving.Wait() // the console has been read to its end
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cause != nil {
		return m.cause
	}
	said := m.console.String()
	if i := strings.LastIndex(said, "Kernel panic"); i >= 0 {
		line, _, _ := strings.Cut(said[i:], "\n")
		return fmt.Errorf("the machine's kernel has crashed: %s", words.Printable(strings.TrimSpace(line)))
	}
	if last := cmp.Or(words.Printable(strings.TrimSpace(m.stderr.String())), words.Last(said, 3)); last != "" {
		err = errors.New(last)
	}
	return &endError{m.status, err}
}

// An endError is a QEMU that has ended by itself.
type endError struct {
	status error
	err    error // what it has said, else what came of it
}

func (e *endError) Error() string {
	return fmt.Sprintf("the machine has ended (%v): %v", e.status, e.err)
}
func (e *endError) Unwrap() error { return e.err }

// unlock makes the monitor take commands and tell events. Before it does, QEMU makes the machine, and may hang in what it asks of the kernel: late
// is then the error.
func (m *Machine) unlock(ctx context.Context, limit time.Duration, late error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	if err := m.qmp.call(ctx, "qmp_capabilities", nil, nil); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return m.Why(err)
	}
	return nil
}

// hello waits for the agent, which is all that the machine has.
func (m *Machine) hello(ctx context.Context, limit time.Duration) error {
	err := m.unlock(ctx, limit, &guest.BootError{Limit: limit})
	if err == nil {
		err = m.Agent.Greet(ctx, limit)
	}
	var late *guest.BootError
	if errors.As(err, &late) {
		late.Console = m.LastWords()
		m.Fail(late)
		return m.Why(late)
	}
	return err
}

// LastWords is the last of what the machine's kernel has said, printable.
func (m *Machine) LastWords() string { return words.Last(m.console.String(), 2) }

// SetNetwork connects the machine to the host's network, or takes the cable out.
func (m *Machine) SetNetwork(ctx context.Context, on bool) error {
	if on == m.online {
		return nil
	}
	m.online = on
	return m.qmp.call(ctx, "set_link", map[string]any{"name": "nic", "up": on}, nil)
}

// SwitchDisk has a machine that has booted from a disk write to another file from now on, an empty one upon that which it writes to now.
func (m *Machine) SwitchDisk(ctx context.Context, file string) error {
	set := m.node + 100
	if err := os.Chmod(file, 0o666); err != nil {
		return err
	}
	for _, mode := range []int{os.O_RDWR, os.O_RDONLY} { // it is read-only when the next one comes
		f, err := os.OpenFile(file, mode, 0)
		if err != nil {
			return err
		}
		err = m.qmp.callWith(ctx, f, "add-fd", map[string]any{"fdset-id": set}, nil)
		f.Close()
		if err != nil {
			return err
		}
	}
	name := fmt.Sprintf("disk%d", m.node+1)
	add := map[string]any{
		"driver": "qcow2", "node-name": name, "backing": nil,
		"file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set), "locking": "off", "cache": map[string]any{"no-flush": true}},
	}
	if err := m.qmp.call(ctx, "blockdev-add", add, nil); err != nil {
		return err
	}
	if err := m.qmp.call(ctx, "blockdev-snapshot", map[string]any{"node": fmt.Sprintf("disk%d", m.node), "overlay": name}, nil); err != nil {
		return err
	}
	m.node++
	return nil
}

// Close ends the machine and waits for that. It may be called more than once.
func (m *Machine) Close() {
	_ = m.process.Kill()
	<-m.ended
	m.Agent.Close()
	m.qmp.conn.Close()
	m.serving.Wait()
	if m.gone != nil {
		m.gone()
	}
}
