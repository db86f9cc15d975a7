package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/executor/qemu/agents"
	"github.com/ocurrent/obx/executor/qemu/guest"
)

// A Maker makes the machines of some Options. Its methods may be called at the same time.
type Maker struct {
	options Options
	qemu    string
	kernel  kernel
	tmp     string // its own directory in the store's TempDir

	preparing sync.WaitGroup
	prepare   sync.Once
	life      context.Context // ends with Close
	endLife   context.CancelFunc

	ready   *semaphore.Weighted // held while what all machines need is made
	initrd  string
	image   string // the kernel, readable for QEMU
	scratch string // a new file system
	accel   string

	saving *semaphore.Weighted // held while a state is looked for or made
	states map[int64]foundState

	mu       sync.Mutex
	warned   map[string]bool
	machines map[*Machine]struct{}
	closed   bool
}

// New makes a Maker, which starts nothing yet. The error says what is wrong with the options, or missing on this host; that there is no kernel is told when
// one is needed.
func New(o Options) (*Maker, error) {
	if o.OS == "" {
		o.OS = "linux"
	}
	if o.Arch == "" {
		o.Arch = hostArch
	}
	if err := agents.Check(o.OS, o.Arch); err != nil {
		return nil, err
	}
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	if o.CPUs == 0 {
		o.CPUs = min(runtime.NumCPU(), 8)
	}
	if o.BootTimeout == 0 {
		o.BootTimeout = defaultBootTimeout
	}
	switch o.Accel {
	case "":
		o.Accel = "auto"
	case "auto", "kvm", "tcg":
	default:
		return nil, fmt.Errorf("accelerator %q: it is neither kvm, tcg nor auto", o.Accel)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the store's layers belong to many users: run obx with sudo")
	}
	program, err := findQEMU(o.Arch)
	if err != nil {
		return nil, err
	}
	kern, err := findKernel(o.Store, o.Kernel, o.Arch)
	if err != nil && !errors.Is(err, errNoKernel) { // disk images have kernels of their own
		return nil, err
	}
	tmp, err := os.MkdirTemp(o.Store.TempDir(), "qemu-")
	if err != nil {
		return nil, fmt.Errorf("make an executor: %w", err)
	}
	k := &Maker{
		options: o, qemu: program, kernel: kern, tmp: tmp,
		ready: semaphore.NewWeighted(1), saving: semaphore.NewWeighted(1), states: map[int64]foundState{},
		warned: map[string]bool{}, machines: map[*Machine]struct{}{},
	}
	k.life, k.endLife = context.WithCancel(context.Background())
	return k, nil
}

// Options is what New was given, with the defaults.
func (k *Maker) Options() Options { return k.options }

// Accel is how machines run, "kvm" or "tcg"; "" if none has been made yet.
func (k *Maker) Accel() string { return k.accel }

// Prepare saves a machine, if there is none, in the background.
func (k *Maker) Prepare() {
	k.prepare.Do(func() {
		k.preparing.Go(func() {
			if k.getReady(k.life) == nil {
				_, _ = k.state(k.life, k.options.Memory) // it comes again with Machine
			}
		})
	})
}

// getReadyForDisks makes what machines need that boot from disks: without a kernel of obx's, KVM cannot be tried.
func (k *Maker) getReadyForDisks(ctx context.Context) error {
	if k.kernel.image != "" {
		return k.getReady(ctx)
	}
	if err := k.ready.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer k.ready.Release(1)
	if k.accel != "" {
		return nil
	}
	k.scratch = filepath.Join(k.tmp, "scratch")
	if err := makeScratch(ctx, k.scratch); err != nil {
		return err
	}
	if k.accel = k.forced(); k.accel == "auto" {
		k.Warn("virtual machines are slow, without KVM, since it cannot be tried: " + noKernel(k.options.Arch).Error())
		k.accel = "tcg"
	}
	return nil
}

// Warn tells Options.Warn something, once.
func (k *Maker) Warn(msg string) {
	k.mu.Lock()
	first := !k.warned[msg]
	k.warned[msg] = true
	k.mu.Unlock()
	if first && k.options.Warn != nil {
		k.options.Warn(msg)
	}
}

// getReady makes what all machines need.
func (k *Maker) getReady(ctx context.Context) error {
	if err := k.ready.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer k.ready.Release(1)
	if k.kernel.image == "" {
		return noKernel(k.options.Arch)
	}
	if k.accel != "" {
		return nil
	}
	agent, err := agents.Program("linux", k.options.Arch)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(k.tmp, "initrd"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	err = errors.Join(k.kernel.writeInitrd(f, agent), f.Chmod(0o644), f.Close())
	if err != nil {
		return fmt.Errorf("make the initial root file system: %w", err)
	}
	k.initrd = f.Name()
	k.image = filepath.Join(k.tmp, "kernel")
	if err := copyForQEMU(k.image, k.kernel.image); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	k.scratch = filepath.Join(k.tmp, "scratch")
	if err := makeScratch(ctx, k.scratch); err != nil {
		return err
	}
	accel, err := k.chooseAccel(ctx)
	if err != nil {
		return err
	}
	k.accel = accel
	return nil
}

// hardware is a machine of a size.
func (k *Maker) hardware(memory int64) hardware {
	return hardware{
		qemu: k.qemu, arch: k.options.Arch, accel: k.accel, memory: memory, cpus: k.options.CPUs, kernel: k.image, initrd: k.initrd,
	}
}

// Machine gives a machine with so many bytes of memory, whose agent has greeted: one that goes on from a saved one, else one that has booted. It has a
// network. The caller closes it.
func (k *Maker) Machine(ctx context.Context, memory int64) (*Machine, error) {
	if err := k.getReady(ctx); err != nil {
		return nil, err
	}
	saved, err := k.state(ctx, memory)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		k.Warn(fmt.Sprintf("virtual machines boot for each build, since none can be saved: %v", err))
	}
	if saved != nil {
		m, err := k.restore(ctx, memory, saved)
		if err == nil || ctx.Err() != nil {
			return m, err
		}
		k.forgetState(memory, saved)
		k.Warn(fmt.Sprintf("a virtual machine boots, since the saved one does not go on: %v", err))
	}
	return k.boot(ctx, k.hardware(memory), k.options.BootTimeout)
}

// boot boots a machine.
func (k *Maker) boot(ctx context.Context, h hardware, limit time.Duration) (*Machine, error) {
	if h.arch == timeless {
		// One of some hundred sleeps for good while it boots, too.
		m, err := k.bootOnce(ctx, h, limit/2)
		var late *guest.BootError
		if !errors.As(err, &late) {
			return m, err
		}
	}
	return k.bootOnce(ctx, h, limit)
}

func (k *Maker) bootOnce(ctx context.Context, h hardware, limit time.Duration) (*Machine, error) {
	scratch, err := k.newScratch(k.scratch)
	if err != nil {
		return nil, err
	}
	defer scratch.Close()
	m, err := k.start(h, machineFiles{scratch: scratch})
	if err != nil {
		return nil, err
	}
	if err := m.hello(ctx, limit); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// start starts a machine.
func (k *Maker) start(h hardware, f machineFiles) (*Machine, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errors.New("the executor is closed")
	}
	m, err := startMachine(h, f)
	if err != nil {
		return nil, err
	}
	k.machines[m] = struct{}{}
	m.gone = func() {
		k.mu.Lock()
		delete(k.machines, m)
		k.mu.Unlock()
	}
	return m, nil
}

// A Disk is what a machine boots from that has its own kernel.
type Disk struct {
	Files   []string // a chain of qcow2 files, base first; the last is written to
	Memory  int64    // of the machine, in bytes
	Network bool     // the machine reaches the host's network
	SSHPort int      // of the machine's sshd
	Foreign bool     // its system has no use for the agent's disks and ports
}

// FromDisk starts a machine that boots from a disk. It does not wait for that: addr is the address on the host that leads to the machine's sshd, if there
// will be one. The caller closes the machine.
func (k *Maker) FromDisk(ctx context.Context, d Disk) (m *Machine, addr string, err error) {
	if err := k.getReadyForDisks(ctx); err != nil {
		return nil, "", err
	}
	scratch, err := k.newScratch(k.scratch)
	if err != nil {
		return nil, "", err
	}
	defer scratch.Close()
	firmware, err := k.options.firmware()
	if err != nil {
		return nil, "", err
	}
	if firmware != "" {
		own := filepath.Join(k.tmp, "firmware")
		if err := copyForQEMU(own, firmware); err != nil {
			return nil, "", fmt.Errorf("firmware: %w", err)
		}
		firmware = own
	}
	for try := 1; ; try++ {
		if addr, err = freeAddress(); err != nil {
			return nil, "", err
		}
		if m, err = k.start(k.hardware(d.Memory), machineFiles{disk: &bootDisk{Disk: d, firmware: firmware, forward: addr}, scratch: scratch}); err != nil {
			return nil, "", err
		}
		if err = m.unlock(ctx, k.options.BootTimeout, &guest.BootError{Limit: k.options.BootTimeout}); err == nil {
			return m, addr, nil
		}
		m.Close()
		if try == maxForwards || !strings.Contains(err.Error(), "host forwarding") { // somebody else has taken the port
			return nil, "", err
		}
	}
}

// maxForwards is how often a port for a machine is looked for.
const maxForwards = 5

// freeAddress finds a port of the loopback interface that nobody has; tests have it err.
var freeAddress = func() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Close ends all machines, and what Prepare does. None can be made after it.
func (k *Maker) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	k.closed = true
	k.endLife()
	var running []*Machine
	for m := range k.machines {
		running = append(running, m)
	}
	k.mu.Unlock()
	for _, m := range running {
		m.Fail(errors.New("the executor is closed"))
	}
	k.preparing.Wait()
	for _, m := range running {
		m.Close()
	}
	return k.options.Store.Trash(k.tmp)
}
