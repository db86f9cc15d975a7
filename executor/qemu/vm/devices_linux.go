package vm

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/qemu/wire"
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

// A device is a part of a machine: what QEMU is told of it, and the files that QEMU inherits for it.
type device struct {
	name  string
	files []*os.File
	args  func(fd []int) []string // fd are QEMU's descriptors of files
}

// arguments puts devices together: QEMU's arguments, and all files that it inherits, from descriptor 3 on.
func arguments(list []device) (args []string, files []*os.File) {
	for _, d := range list {
		fd := make([]int, len(d.files))
		for i := range fd {
			fd[i] = 3 + len(files) + i
		}
		files = append(files, d.files...)
		args = append(args, d.args(fd)...)
	}
	return args, files
}

// fixed is the arguments of a device without files.
func fixed(args ...string) func([]int) []string { return func([]int) []string { return args } }

// A parts makes the devices of a machine. After an error it makes nothing of use.
type parts struct {
	h     hardware
	f     machineFiles
	board board
	list  []device
	ours  []net.Conn // of sockets that devices have the other ends of
	lacks error      // why there is no file for the device that comes next
	err   error      // the first device's
}

// devicesOf makes the devices of a machine, and our ends of what connects it. The caller closes the files.
func devicesOf(h hardware, f machineFiles) (*parts, connections, error) {
	p := &parts{h: h, f: f, board: boardOf(h)}
	var c connections
	p.add("machine", fixed(
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "obx",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-accel", map[string]string{"tcg": "tcg,thread=multi", "kvm": "kvm"}[h.accel],
		"-smp", strconv.Itoa(h.cpus), "-m", fmt.Sprintf("%dM", h.memory>>20)))
	p.addBoard()
	p.addMemory()
	c.console = p.addSocket("console", func(fd int) []string {
		return []string{"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fd), "-serial", "chardev:console"}
	})
	c.monitor = p.addSocket("monitor", func(fd int) []string {
		return []string{"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fd), "-mon", "chardev=qmp,mode=control"}
	})
	if f.disk != nil {
		p.addBootDisk(f.disk)
	} else {
		p.addKernel()
	}
	if !f.isForeign() {
		p.add("ports", fixed("-device", p.board.device("virtio-serial", "id=ports")))
		c.control = p.addPort(0, wire.PortControl)
		c.input = p.addPort(1, wire.PortInput)
		c.layers = p.addSocket("layers", func(fd int) []string {
			return []string{
				"-blockdev", fmt.Sprintf("driver=nbd,node-name=layers,read-only=on,server.type=fd,server.str=%d,export=", fd),
				"-device", p.board.device("virtio-blk", "drive=layers,serial=layers"),
			}
		})
		p.addScratch()
	}
	p.addNetwork()
	if f.state != nil {
		p.add("state", fixed("-incoming", "defer"))
	}
	if p.err != nil {
		p.close()
		p.hangUp()
		return nil, c, p.err
	}
	return p, c, nil
}

// connections are our ends of sockets to a machine. Those of the agent are nil in a foreign one.
type connections struct {
	console, monitor, control, input, layers net.Conn
}

// add adds a device with the files that were made for it.
func (p *parts) add(name string, args func([]int) []string, files ...*os.File) {
	p.list = append(p.list, device{name, files, args})
	if p.lacks != nil {
		p.err = cmp.Or(p.err, fmt.Errorf("%s: %w", name, p.lacks))
		p.lacks = nil
	}
}

// close closes the files, of which QEMU has its own when it has started.
func (p *parts) close() {
	for _, d := range p.list {
		for _, f := range d.files {
			if f != nil {
				f.Close()
			}
		}
	}
}

// hangUp closes our ends of sockets.
func (p *parts) hangUp() {
	for _, conn := range p.ours {
		conn.Close()
	}
}

// open opens a file for a device. It is nil after an error.
func (p *parts) open(name string, flags int) *os.File {
	f, err := os.OpenFile(name, flags, 0)
	p.lacks = cmp.Or(p.lacks, err)
	return f
}

// dup gives a device a descriptor of its own of a file. It is nil after an error.
func (p *parts) dup(f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	p.lacks = cmp.Or(p.lacks, err)
	return os.NewFile(uintptr(fd), f.Name())
}

// addSocket makes a device that has one end of a pair of sockets, and gives the other.
func (p *parts) addSocket(name string, args func(fd int) []string) net.Conn {
	ours, theirs, err := socketPair()
	if err != nil {
		p.err = cmp.Or(p.err, fmt.Errorf("%s: %w", name, err))
		return nil
	}
	p.ours = append(p.ours, ours)
	p.add(name, func(fd []int) []string { return args(fd[0]) }, theirs)
	return ours
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

func (f machineFiles) isForeign() bool { return f.disk != nil && f.disk.Foreign }

func (p *parts) addBoard() {
	var args []string
	kind := p.board.machine
	if p.f.disk != nil && p.h.arch == "amd64" {
		args = append(args, "-device", "pvpanic") // to be told of a crash, if the system knows how
	}
	if p.f.isForeign() {
		kind = "pc" // what its system was installed on, and has drivers for
		args = append(args, "-vga", "std")
	}
	p.add("board", fixed(append(args, "-machine", kind+",memory-backend=ram", "-cpu", p.board.cpu)...))
}

func (p *parts) addMemory() {
	mem := p.f.memory
	if mem.file == nil {
		p.add("memory", fixed("-object", fmt.Sprintf("memory-backend-ram,id=ram,size=%d", p.h.memory)))
		return
	}
	share := map[bool]string{true: "on", false: "off"}[mem.share]
	p.add("memory", func(fd []int) []string {
		return []string{"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=/proc/self/fd/%d,share=%s", p.h.memory, fd[0], share)}
	}, p.dup(mem.file))
}

func (p *parts) addKernel() {
	line := "console=" + p.board.console + " quiet loglevel=1 panic=-1 mitigations=off random.trust_cpu=on rdinit=/init GOMAXPROCS=1 " + p.board.append
	p.add("kernel", func(fd []int) []string {
		return []string{"-kernel", fmt.Sprintf("/proc/self/fd/%d", fd[0]), "-initrd", fmt.Sprintf("/proc/self/fd/%d", fd[1]), "-append", line}
	}, p.open(p.h.kernel, os.O_RDONLY), p.open(p.h.initrd, os.O_RDONLY))
}

// addBootDisk adds a chain of files as one disk. Each has a set of descriptors, by which QEMU opens it. The last one has two: it is read-only when
// the next one comes.
func (p *parts) addBootDisk(d *bootDisk) {
	top := len(d.Files) - 1
	for i, name := range d.Files {
		modes := []int{os.O_RDONLY}
		if i == top {
			modes = []int{os.O_RDWR, os.O_RDONLY}
			p.lacks = cmp.Or(p.lacks, os.Chmod(name, 0o666))
		}
		var files []*os.File
		for _, mode := range modes {
			files = append(files, p.open(name, mode|unix.O_NOFOLLOW))
		}
		node := nodeOf(i, i == top)
		p.add(fmt.Sprintf("disk %d", i), func(fd []int) (args []string) {
			for _, n := range fd {
				args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", n, i+1))
			}
			return append(args, "-blockdev", node)
		}, files...)
	}
	p.add("disk", fixed("-device", p.board.device("virtio-blk", fmt.Sprintf("drive=disk%d,werror=stop,bootindex=0", top))))
	p.add("random numbers", fixed("-device", p.board.device("virtio-rng", "id=rng")))
	if d.firmware != "" {
		p.add("firmware", func(fd []int) []string {
			return []string{firmwareFlag(p.h.arch), fmt.Sprintf("/proc/self/fd/%d", fd[0])}
		}, p.open(d.firmware, os.O_RDONLY))
	}
}

// nodeOf describes the file with a number of a chain: QEMU is told of the one below it, and does not follow the name in the file.
func nodeOf(i int, top bool) string {
	var backing any
	if i > 0 {
		backing = fmt.Sprintf("disk%d", i-1)
	}
	b, _ := json.Marshal(map[string]any{ // never fails
		"driver": "qcow2", "node-name": fmt.Sprintf("disk%d", i), "read-only": !top, "backing": backing,
		"file": map[string]any{
			"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", i+1), "read-only": !top, "locking": "off",
			"cache": map[string]any{"no-flush": true},
		},
	})
	return string(b)
}

// addPort adds a port of the agent.
func (p *parts) addPort(i int, name string) net.Conn {
	return p.addSocket(name, func(fd int) []string {
		return []string{
			"-chardev", fmt.Sprintf("socket,id=port%d,fd=%d", i, fd),
			"-device", fmt.Sprintf("virtserialport,bus=ports.0,nr=%d,chardev=port%d,name=%s", i+1, i, name),
		}
	})
}

func (p *parts) addScratch() {
	p.add("scratch", func(fd []int) []string {
		return []string{
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd[0], scratchSet),
			"-blockdev", "driver=file,node-name=scratch,aio=threads,cache.no-flush=on,discard=unmap,locking=off,filename=/dev/fdset/" + strconv.Itoa(scratchSet),
			"-device", p.board.device("virtio-blk", "drive=scratch,serial=scratch,werror=stop,discard=on"),
		}
	}, p.dup(p.f.scratch))
}

// addNetwork adds the network of QEMU's own. That of a disk leads to its sshd, and to nothing else if the process has no network.
func (p *parts) addNetwork() {
	network := "user,id=net"
	if d := p.f.disk; d != nil {
		restrict := map[bool]string{true: "off", false: "on"}[d.Network]
		network += fmt.Sprintf(",restrict=%s,hostfwd=tcp:%s-:%d", restrict, d.forward, d.SSHPort)
	}
	p.add("network", fixed("-netdev", network, "-device", p.board.device("virtio-net", "id=nic,netdev=net,romfile=")))
}
