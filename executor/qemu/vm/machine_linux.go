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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/layerdisk"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/executor/qemu/words"
)

// A hardware is all of a virtual machine that a saved state depends on.
type hardware struct {
	qemu   string // path of the program
	arch   string
	accel  string
	memory int64 // bytes
	cpus   int
	kernel string // path
	initrd string // path
}

// A memory is what a machine's main memory is made of.
type memory struct {
	file  *os.File // nil: of nothing
	share bool     // the file is written to; else it is the beginning of the machine's own copy
}

// machineFiles is what a machine is given.
type machineFiles struct {
	memory  memory
	state   *os.File // goes on from it instead of booting
	scratch *os.File // the agent's writable disk

	disk *bootDisk // boots from it, instead of from the kernel
}

// scratchSet is the number of the scratch disk's descriptors. Those of a chain of disks begin at 1.
const scratchSet = 1 << 20

// A bootDisk is a Disk, with how it is booted and reached.
type bootDisk struct {
	Disk
	firmware string // a file; "" is QEMU's own
	forward  string // address on the host that leads to the machine's sshd
}

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
func startMachine(h hardware, f machineFiles) (_ *Machine, err error) {
	m := &Machine{online: true, ended: make(chan struct{})}
	var extra []*os.File
	var ours []*net.UnixConn
	defer func() {
		for _, f := range extra {
			f.Close()
		}
		if err != nil {
			for _, c := range ours {
				c.Close()
			}
		}
	}()
	pass := func(f *os.File) int {
		extra = append(extra, f)
		return 2 + len(extra)
	}
	dupAndPass := func(f *os.File) (int, error) {
		d, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		return pass(os.NewFile(uintptr(d), f.Name())), nil
	}
	connect := func() (*net.UnixConn, int, error) {
		a, b, err := socketPair()
		if err != nil {
			return nil, 0, err
		}
		ours = append(ours, a)
		return a, pass(b), nil
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "obx",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-accel", map[string]string{"tcg": "tcg,thread=multi", "kvm": "kvm"}[h.accel],
		"-smp", strconv.Itoa(h.cpus), "-m", fmt.Sprintf("%dM", h.memory>>20),
	}
	board, device := boardOf(h)
	foreign := f.disk != nil && f.disk.Foreign
	if f.disk != nil {
		m.node = len(f.disk.Files) - 1
	}
	if f.disk != nil && h.arch == "amd64" {
		args = append(args, "-device", "pvpanic") // to be told of a crash, if the system knows how
	}
	if foreign {
		board.machine = "pc" // what its system was installed on, and has drivers for
		args = append(args, "-vga", "std")
	}
	args = append(args, "-machine", board.machine+",memory-backend=ram", "-cpu", board.cpu)
	if f.memory.file != nil {
		fd, err := dupAndPass(f.memory.file)
		if err != nil {
			return nil, err
		}
		share := "off"
		if f.memory.share {
			share = "on"
		}
		args = append(args, "-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=/proc/self/fd/%d,share=%s", h.memory, fd, share))
	} else {
		args = append(args, "-object", fmt.Sprintf("memory-backend-ram,id=ram,size=%d", h.memory))
	}
	consoleConn, fd, err := connect()
	if err != nil {
		return nil, err
	}
	args = append(args, "-chardev", fmt.Sprintf("socket,id=console,fd=%d", fd), "-serial", "chardev:console")
	qmpConn, fd, err := connect()
	if err != nil {
		return nil, err
	}
	args = append(args, "-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fd), "-mon", "chardev=qmp,mode=control")
	load := func(flag, name string) error {
		file, err := os.Open(name)
		if err == nil {
			args = append(args, flag, fmt.Sprintf("/proc/self/fd/%d", pass(file)))
		}
		return err
	}
	netdev := "user,id=net"
	if f.disk != nil {
		more, err := f.disk.arguments(pass, device)
		if err != nil {
			return nil, err
		}
		args = append(args, more...)
		netdev += f.disk.network()
		if f.disk.firmware != "" {
			if err := load(firmwareFlag(h.arch), f.disk.firmware); err != nil {
				return nil, err
			}
		}
	} else {
		if err := cmp.Or(load("-kernel", h.kernel), load("-initrd", h.initrd)); err != nil {
			return nil, err
		}
		args = append(args, "-append", "console="+board.console+" quiet loglevel=1 panic=-1 mitigations=off random.trust_cpu=on rdinit=/init GOMAXPROCS=1 "+board.append)
	}
	var ports [2]net.Conn
	var nbd net.Conn
	if !foreign {
		args = append(args, "-device", device("virtio-serial", "id=ports"))
		for i, name := range []string{wire.PortControl, wire.PortInput} {
			conn, fd, err := connect()
			if err != nil {
				return nil, err
			}
			ports[i] = conn
			args = append(args, "-chardev", fmt.Sprintf("socket,id=port%d,fd=%d", i, fd), "-device", fmt.Sprintf("virtserialport,bus=ports.0,nr=%d,chardev=port%d,name=%s", i+1, i, name))
		}
		conn, fd, err := connect()
		if err != nil {
			return nil, err
		}
		nbd = conn
		args = append(args, "-blockdev", fmt.Sprintf("driver=nbd,node-name=layers,read-only=on,server.type=fd,server.str=%d,export=", fd))
		if fd, err = dupAndPass(f.scratch); err != nil {
			return nil, err
		}
		args = append(args,
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, scratchSet),
			"-blockdev", fmt.Sprintf("driver=file,node-name=scratch,filename=/dev/fdset/%d,aio=threads,cache.no-flush=on,discard=unmap,locking=off", scratchSet),
			"-device", device("virtio-blk", "drive=layers,serial=layers"),
			"-device", device("virtio-blk", "drive=scratch,serial=scratch,werror=stop,discard=on"))
	}
	args = append(args, "-netdev", netdev, "-device", device("virtio-net", "id=nic,netdev=net,romfile="))
	if f.state != nil {
		args = append(args, "-incoming", "defer")
	}

	cmd := &exec.Cmd{
		Path: h.qemu, Args: append([]string{h.qemu}, args...), Env: []string{"PATH=/usr/bin:/bin", "TMPDIR=/tmp"},
		Stderr: &m.stderr, ExtraFiles: extra, Dir: "/",
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
		return nil, fmt.Errorf("start %s: %w", h.qemu, err)
	}
	m.qmp = newQMP(qmpConn, m.event)
	m.Agent = guest.NewAgent(m, ports[0], ports[1])
	m.serving.Go(func() {
		_, _ = io.Copy(&m.console, consoleConn)
		consoleConn.Close()
	})
	if !foreign {
		m.serving.Go(func() { m.serveLayers(nbd) })
	}
	return m, nil
}

// serveLayers answers what QEMU reads of layers.
func (m *Machine) serveLayers(nbd net.Conn) {
	if err := m.Layers.Serve(nbd); err != nil {
		m.Fail(err)
	}
}

// arguments are those of QEMU for a machine that boots from a disk. Its kernel is whatever the disk has.
func (d *bootDisk) arguments(pass func(*os.File) int, device func(name, options string) string) (args []string, err error) {
	for i, name := range d.Files {
		last := i == len(d.Files)-1
		modes := []int{os.O_RDONLY}
		if last {
			modes = []int{os.O_RDWR, os.O_RDONLY} // it is read-only when the next one comes
			if err := os.Chmod(name, 0o666); err != nil {
				return nil, err
			}
		}
		for _, mode := range modes {
			f, err := os.OpenFile(name, mode|unix.O_NOFOLLOW, 0)
			if err != nil {
				return nil, err
			}
			args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", pass(f), i+1))
		}
		var backing any
		if i > 0 {
			backing = fmt.Sprintf("disk%d", i-1)
		}
		node, err := json.Marshal(map[string]any{
			"driver": "qcow2", "node-name": fmt.Sprintf("disk%d", i), "read-only": !last, "backing": backing,
			"file": map[string]any{
				"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", i+1), "read-only": !last, "locking": "off",
				"cache": map[string]any{"no-flush": true},
			},
		})
		if err != nil {
			return nil, err
		}
		args = append(args, "-blockdev", string(node))
	}
	return append(args,
		"-device", device("virtio-blk", fmt.Sprintf("drive=disk%d,werror=stop,bootindex=0", len(d.Files)-1)),
		"-device", device("virtio-rng", "id=rng")), nil
}

// network is what makes the user-mode network that of a disk.
func (d *bootDisk) network() string {
	restrict := "on"
	if d.Network {
		restrict = "off"
	}
	return fmt.Sprintf(",restrict=%s,hostfwd=tcp:%s-:%d", restrict, d.forward, d.SSHPort)
}

// groupsFor is the groups that QEMU needs for an accelerator. Where only root may open /dev/kvm, ok is false.
func groupsFor(accel string) (groups []uint32, ok bool) {
	var st unix.Stat_t
	if accel != "kvm" || unix.Stat("/dev/kvm", &st) != nil || st.Mode&0o006 == 0o006 {
		return nil, true
	}
	return []uint32{st.Gid}, st.Mode&0o060 == 0o060
}

func socketPair() (*net.UnixConn, *os.File, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(p[0]), "socket"), os.NewFile(uintptr(p[1]), "socket")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
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
