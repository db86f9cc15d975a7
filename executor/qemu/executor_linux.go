package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/agents"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/layerdisk"
	"github.com/ocurrent/obx/layers"
)

// An Executor runs processes in virtual machines.
type Executor struct {
	options Options
	foreign bool // machines are of another system than Linux
	qemu    string
	kernel  kernel
	tmp     string // its own directory in the store's TempDir
	empty   string // an empty layer directory, the root of what has no layers
	void    string // another, below everything that is mounted for reading

	preparing sync.WaitGroup
	prepare   sync.Once
	life      context.Context // ends with Close
	endLife   context.CancelFunc

	ready   *semaphore.Weighted // held while what all machines need is made
	initrd  string
	image   string // the kernel, readable for QEMU
	scratch string // a new file system
	accel   string
	chains  rootfs.Chains

	saving *semaphore.Weighted // held while a state is looked for or made
	states map[int64]foundState

	mu       sync.Mutex
	metas    map[string]*layerdisk.Layer // of layer directories
	warned   map[string]bool
	machines map[*machine]struct{}
	parked   *diskRoot // whose machine waits for a root with the same disk
	closed   bool
}

// New makes an executor. Machines start with the first Run.
func New(o Options) (*Executor, error) {
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
	k, err := findKernel(o.Store, o.Kernel, o.Arch)
	if err != nil && !errors.Is(err, errNoKernel) { // disk images have kernels of their own
		return nil, err
	}
	tmp, err := os.MkdirTemp(o.Store.TempDir(), "qemu-")
	if err != nil {
		return nil, fmt.Errorf("make an executor: %w", err)
	}
	e := &Executor{
		options: o, foreign: o.foreign(), qemu: program, kernel: k, tmp: tmp, empty: filepath.Join(tmp, "empty"), void: filepath.Join(tmp, "void"),
		ready: semaphore.NewWeighted(1), saving: semaphore.NewWeighted(1), states: map[int64]foundState{}, metas: map[string]*layerdisk.Layer{},
		chains: rootfs.Chains{Store: o.Store, Max: maxLayers, Block: flattenBlock},
		warned: map[string]bool{}, machines: map[*machine]struct{}{},
	}
	e.life, e.endLife = context.WithCancel(context.Background())
	for _, dir := range []string{e.empty, e.void} {
		if err := rootfs.MakeEmpty(dir); err != nil {
			return nil, fmt.Errorf("make an executor: %w", err)
		}
	}
	return e, nil
}

// Platform is that of the machines.
func (e *Executor) Platform() ocispec.Platform {
	return ocispec.Platform{OS: e.options.OS, Architecture: e.options.Arch}
}

// Prepare saves a machine, if there is none, in the background.
func (e *Executor) Prepare() error {
	e.prepare.Do(func() {
		e.preparing.Go(func() {
			if !e.foreign && e.getReady(e.life) == nil {
				_, _ = e.state(e.life, e.options.Memory) // it comes again with Run
			}
		})
	})
	return nil
}

// Open begins a root file system.
func (e *Executor) Open(_ context.Context, chain []layers.Layer) (executor.Root, error) {
	return &openedRoot{files: root{e: e, chain: e.chains.New(chain)}}, nil
}

// getReadyForDisks makes what machines need that boot from disks: without a kernel of obx's, KVM cannot be tried.
func (e *Executor) getReadyForDisks(ctx context.Context) error {
	if e.kernel.image != "" {
		return e.getReady(ctx)
	}
	if err := e.ready.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer e.ready.Release(1)
	if e.accel != "" {
		return nil
	}
	e.scratch = filepath.Join(e.tmp, "scratch")
	if err := makeScratch(ctx, e.scratch); err != nil {
		return err
	}
	if e.accel = e.forced(); e.accel == "auto" {
		e.warn("virtual machines are slow, without KVM, since it cannot be tried: " + noKernel(e.options.Arch).Error())
		e.accel = "tcg"
	}
	return nil
}

// warn says something once.
func (e *Executor) warn(msg string) {
	e.mu.Lock()
	first := !e.warned[msg]
	e.warned[msg] = true
	e.mu.Unlock()
	if first && e.options.Warn != nil {
		e.options.Warn(msg)
	}
}

// getReady makes what all machines need.
func (e *Executor) getReady(ctx context.Context) error {
	if err := e.ready.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer e.ready.Release(1)
	if e.kernel.image == "" {
		return noKernel(e.options.Arch)
	}
	if e.accel != "" {
		return nil
	}
	agent, err := agents.Program("linux", e.options.Arch)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(e.tmp, "initrd"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	err = errors.Join(e.kernel.writeInitrd(f, agent), f.Chmod(0o644), f.Close())
	if err != nil {
		return fmt.Errorf("make the initial root file system: %w", err)
	}
	e.initrd = f.Name()
	e.image = filepath.Join(e.tmp, "kernel")
	if err := copyForQEMU(e.image, e.kernel.image); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	e.scratch = filepath.Join(e.tmp, "scratch")
	if err := makeScratch(ctx, e.scratch); err != nil {
		return err
	}
	accel, err := e.chooseAccel(ctx)
	if err != nil {
		return err
	}
	e.accel = accel
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// copyForQEMU makes a copy that QEMU's user may read.
func copyForQEMU(to, from string) error {
	return errors.Join(copyFile(to, from), os.Chmod(to, 0o644))
}

// scratchSize is what a step can write, if the host has as much.
const scratchSize = "256G"

// makeScratch makes an empty file system in a sparse file.
func makeScratch(ctx context.Context, name string) error {
	program, err := lookSbin("mke2fs")
	if err != nil {
		return fmt.Errorf("%w: try `apt-get install e2fsprogs`", err)
	}
	cmd := exec.CommandContext(ctx, program, "-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-I", "256", "-i", "65536",
		"-O", "^has_journal,^resize_inode,^metadata_csum,^huge_file,sparse_super2,uninit_bg", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", name, scratchSize)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make a file system: mke2fs: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func lookSbin(name string) (string, error) {
	p, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		p, err = exec.LookPath(filepath.Join(dir, name))
	}
	return p, err
}

// hardware is a machine of a size.
func (e *Executor) hardware(memory int64) hardware {
	return hardware{
		qemu: e.qemu, arch: e.options.Arch, accel: e.accel, memory: memory, cpus: e.options.CPUs, kernel: e.image, initrd: e.initrd,
	}
}

// machine gives a machine whose agent waits for requests.
func (e *Executor) machine(ctx context.Context, memory int64) (*machine, error) {
	if err := e.getReady(ctx); err != nil {
		return nil, err
	}
	saved, err := e.state(ctx, memory)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		e.warn(fmt.Sprintf("virtual machines boot for each build, since none can be saved: %v", err))
	}
	if saved != nil {
		m, err := e.restore(ctx, memory, saved)
		if err == nil || ctx.Err() != nil {
			return m, err
		}
		e.forgetState(memory, saved)
		e.warn(fmt.Sprintf("a virtual machine boots, since the saved one does not go on: %v", err))
	}
	return e.boot(ctx, e.hardware(memory), e.options.BootTimeout)
}

// boot boots a machine.
func (e *Executor) boot(ctx context.Context, h hardware, limit time.Duration) (*machine, error) {
	if h.arch == timeless {
		// One of some hundred sleeps for good while it boots, too.
		m, err := e.bootOnce(ctx, h, limit/2)
		var late *guest.BootError
		if !errors.As(err, &late) {
			return m, err
		}
	}
	return e.bootOnce(ctx, h, limit)
}

func (e *Executor) bootOnce(ctx context.Context, h hardware, limit time.Duration) (*machine, error) {
	scratch, err := e.newScratch(e.scratch)
	if err != nil {
		return nil, err
	}
	defer scratch.Close()
	m, err := e.start(h, machineFiles{scratch: scratch})
	if err != nil {
		return nil, err
	}
	if err := m.hello(ctx, limit); err != nil {
		e.end(m)
		return nil, err
	}
	return m, nil
}

// start starts a machine that end must end.
func (e *Executor) start(h hardware, f machineFiles) (*machine, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.New("the executor is closed")
	}
	m, err := startMachine(h, f)
	if err != nil {
		return nil, err
	}
	e.machines[m] = struct{}{}
	return m, nil
}

func (e *Executor) end(m *machine) {
	m.close()
	e.mu.Lock()
	delete(e.machines, m)
	e.mu.Unlock()
}

// newScratch makes a writable disk that has no name, a copy of another.
func (e *Executor) newScratch(from string) (_ *os.File, err error) {
	to, err := os.CreateTemp(e.tmp, "scratch-")
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.Remove(to.Name()), to.Chmod(0o666)) // for QEMU, which is somebody else
	if err == nil {
		err = copySparse(to, from)
	}
	if err != nil {
		to.Close()
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	return to, nil
}

// Close ends all machines.
func (e *Executor) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.endLife()
	var running []*machine
	for m := range e.machines {
		running = append(running, m)
	}
	parked := e.parked
	e.parked = nil
	e.mu.Unlock()
	if parked != nil {
		parked.end()
	}
	for _, m := range running {
		m.Fail(errors.New("the executor is closed"))
	}
	e.preparing.Wait()
	for _, m := range running {
		m.close()
	}
	return e.options.Store.Trash(e.tmp)
}
