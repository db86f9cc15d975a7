package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/qcow2"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/layers"
)

// maxChain is how many files a chain has. The next one has all changes since the base.
const maxChain = 24

// A diskRoot is a machine that runs from a disk. Layers of other files, which copies make, are unpacked in the guest when it next runs something; from
// then on they are part of the disk.
type diskRoot struct {
	e     *Executor
	files []string // of the chain, base first
	rest  []string // layer directories that are not on the disk
	top   int      // number of the topmost file

	m       *vm.Machine
	guest   *guest.Guest
	network executor.Network // of m
	memory  int64            // of m, in bytes
	active  string           // the file that m writes to, in the store's TempDir
	dirty   bool
	there   int // how many of rest m has
}

func (e *Executor) newDiskRoot(files, rest []string) (*diskRoot, error) {
	top := 0
	if last := len(files) - 1; last > 0 {
		var err error
		if top, err = strconv.Atoi(strings.TrimSuffix(filepath.Base(files[last]), ".qcow2")); err != nil {
			return nil, err
		}
	}
	return &diskRoot{e: e, files: files, rest: rest, top: top}, nil
}

// newFile makes the next file of the chain, in a directory of its own: DIR/fs/disk/NNN.qcow2.
func (r *diskRoot) newFile(ctx context.Context, below string) (string, error) {
	dir, err := os.MkdirTemp(r.e.tmp, "disk-")
	if err != nil {
		return "", err
	}
	return qcow2.Create(ctx, filepath.Join(dir, "fs"), below, r.top+1)
}

// Run runs a process.
func (r *diskRoot) Run(ctx context.Context, p executor.Process, out io.Writer) error {
	err := r.run(ctx, p, out)
	if err == nil {
		r.dirty = true
		return nil
	}
	r.end() // the disk has what the process did
	return err
}

func (r *diskRoot) run(ctx context.Context, p executor.Process, out io.Writer) error {
	if err := r.start(ctx, p); err != nil {
		return err
	}
	err := r.process(ctx, p, out)
	var exit *executor.ExitError
	var start *executor.StartError
	if err != nil && !errors.As(err, &exit) && !errors.As(err, &start) {
		err = r.why(ctx, err)
	}
	return err
}

// process runs a process in the machine, when nobody else uses it.
func (r *diskRoot) process(ctx context.Context, p executor.Process, out io.Writer) error {
	return r.guest.Use(ctx, func() error {
		plain := r.m.Agent.Plain()
		if l := p.Limits; plain && (l.Memory > 0 || l.CPUs > 0 || l.PIDs > 0 || l.Disk > 0 || l.Inodes > 0) {
			r.e.maker.Warn("limits of memory, processors, processes and the disk do not apply in machines without a sandbox: they have what the machine has")
		}
		if plain && p.Terminal {
			return r.guest.Terminal(ctx, p)
		}
		return r.e.run(ctx, r.m, r.memory, p, out)
	})
}

// why explains an error of a connection.
func (r *diskRoot) why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the process was stopped: %w", context.Cause(ctx))
	}
	if !r.m.Alive() {
		return r.m.Why(err)
	}
	return err
}

// start makes sure that a machine runs that has the right network, and enough memory for a process.
func (r *diskRoot) start(ctx context.Context, p executor.Process) error {
	size, err := machineMemory(r.e.options.Memory, p.Limits.Memory)
	if err != nil {
		return err
	}
	if r.m != nil && (r.network != p.Network || r.memory < size) {
		if r.dirty {
			return errors.New("the processes of one step have different networks, or a later one needs more memory than the machine of the first has")
		}
		r.end()
	}
	if r.m == nil && !r.unpark(p.Network, size) {
		if err := r.boot(ctx, p.Network, size); err != nil {
			return err
		}
	}
	for _, dir := range r.rest[r.there:] {
		if err := r.guest.AddLayer(ctx, dir); err != nil {
			return r.why(ctx, err)
		}
		r.there++
	}
	return nil
}

func (r *diskRoot) boot(ctx context.Context, n executor.Network, memory int64) (err error) {
	o := r.e.options
	account := r.e.account.OrDefault(o.OS)
	if r.e.foreign && account.Key == "" {
		return fmt.Errorf("a machine of %s is reached by ssh: give the private key with --qemu-ssh-key", o.OS)
	}
	if r.active, err = r.newFile(ctx, r.files[len(r.files)-1]); err != nil {
		return err
	}
	r.network, r.memory = n, memory
	disk := vm.Disk{
		Files: append(slices.Clone(r.files), r.active), Memory: memory, Network: n == executor.NetworkHost, SSHPort: account.Port, Foreign: r.e.foreign,
	}
	var addr string
	if r.m, addr, err = r.e.maker.FromDisk(ctx, disk); err != nil {
		return err
	}
	r.guest, err = guest.Reach(ctx, r.m.Agent, guest.Way{
		Account: account, Addr: addr, OS: o.OS, Arch: o.Arch, Foreign: r.e.foreign, Limit: o.BootTimeout, Warn: r.e.maker.Warn,
	})
	if err != nil {
		var late *guest.BootError
		if errors.As(err, &late) {
			late.Console += " " + r.m.LastWords()
			return late
		}
		return r.why(ctx, err)
	}
	return nil
}

// end ends the machine and drops what is not frozen.
func (r *diskRoot) end() {
	if r.guest != nil {
		r.guest.Close()
		r.guest = nil
	}
	if r.m != nil {
		r.m.Close()
		r.m = nil
	}
	if r.active != "" {
		_ = r.e.options.Store.Trash(filepath.Dir(filepath.Dir(filepath.Dir(r.active))))
		r.active = ""
	}
	r.dirty, r.there = false, 0
}

// Freeze makes the change a layer: the machine goes on with a new file above it.
func (r *diskRoot) Freeze(ctx context.Context) (executor.Change, error) {
	if !r.dirty {
		return rootfs.NewChange(layers.Layer{}), nil
	}
	r.dirty = false
	name, err := r.freeze(ctx)
	if err != nil {
		r.end()
		return nil, fmt.Errorf("freeze the disk: %w", err)
	}
	return rootfs.NewChange(layers.Layer{Dir: name}), nil
}

func (r *diskRoot) freeze(ctx context.Context) (string, error) {
	done := r.active
	let := r.goOn
	if r.e.foreign {
		let = r.shutDown
	}
	if err := let(ctx); err != nil {
		return "", err
	}
	if err := r.seal(done); err != nil {
		return "", err
	}
	dir := filepath.Dir(filepath.Dir(filepath.Dir(done)))
	if len(r.files) >= maxChain {
		if err := qcow2.Squash(ctx, r.e.tmp, r.files, done); err != nil {
			return "", err
		}
	}
	name, err := r.e.options.Store.CommitLayer(dir, "")
	if err != nil {
		return "", err
	}
	file := filepath.Join(r.e.options.Store.LayerPath(name), layers.DiskDir, filepath.Base(done))
	if len(r.files) >= maxChain {
		r.files = r.files[:1]
	}
	r.files, r.rest, r.there = append(r.files, file), nil, 0 // the file has what was added
	return name, nil
}

// goOn has the machine write to the next file.
func (r *diskRoot) goOn(ctx context.Context) error {
	// What the file system has then is what it has after a power cut a moment later: whole.
	if err := r.guest.Sync(ctx); err != nil {
		return r.why(ctx, err)
	}
	r.top++
	next, err := r.newFile(ctx, r.active)
	if err != nil {
		return err
	}
	if err := r.m.SwitchDisk(ctx, next); err != nil {
		return err
	}
	r.active = next
	return nil
}

// shutDown has the machine's system write all that it holds back, and end: of others than Linux it is not known that a sync is enough.
func (r *diskRoot) shutDown(ctx context.Context) error {
	if err := r.guest.ShutDown(ctx); err != nil {
		return r.why(ctx, err)
	}
	limit := r.e.options.BootTimeout
	select {
	case <-r.m.Ended():
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(limit):
		return fmt.Errorf("the machine did not shut down within %v (--qemu-boot-time)", limit)
	}
	if !r.m.WentDown() {
		return r.m.Why(errors.New("it was told to shut down, and did not end so"))
	}
	r.guest.Close()
	r.m.Close()
	r.m, r.guest, r.active = nil, nil, ""
	r.top++
	return nil
}

// seal puts a copy in the place of a file that QEMU has written to, for QEMU may write to its own for as long as it runs. A guest that
// has broken out of it changes no result with that.
func (r *diskRoot) seal(file string) error {
	to, err := os.CreateTemp(r.e.tmp, "sealed-")
	if err != nil {
		return err
	}
	defer to.Close()
	if err := errors.Join(to.Chmod(0o644), vm.CopySparse(to, file)); err != nil {
		return err
	}
	h, err := qcow2.ReadHeader(to)
	if err != nil {
		return fmt.Errorf("QEMU has written a disk that is not whole: %w", err)
	}
	if h.Backing != layers.DiskName(r.top-1) {
		return fmt.Errorf("QEMU has written a disk upon %s", h.Backing)
	}
	return os.Rename(to.Name(), file)
}

// Add has files put into the machine before it next runs something.
func (r *diskRoot) Add(ctx context.Context, l layers.Layer) error {
	if r.dirty {
		return errors.New("a layer was added to a root with changes that were not frozen")
	}
	if l.IsZero() {
		return nil
	}
	l, err := layers.Unpack(ctx, r.e.options.Store, l)
	if err != nil {
		return err
	}
	dir := r.e.options.Store.LayerPath(l.Dir)
	if err := r.takes(dir); err != nil {
		return err
	}
	r.rest = append(r.rest, dir)
	return nil
}

// takes says why files cannot be put into the machine.
func (r *diskRoot) takes(dir string) error {
	if has, err := qcow2.Has(dir); has || err != nil {
		return fmt.Errorf("a file in /%s with a name like %s cannot be copied to a disk image: so are its own files called", layers.DiskDir, layers.DiskName(1))
	}
	if r.e.foreign {
		return nil
	}
	t, err := layers.DirTree(dir)
	if err != nil {
		return err
	}
	defer t.Close()
	if hasFiles(t, "run") {
		return errors.New("files cannot be copied to /run of a disk image: that is in the machine's memory, and would be gone with it")
	}
	return nil
}

// hasFiles reports whether a directory has anything but directories.
func hasFiles(t layers.Tree, name string) bool {
	entries, _ := t.ReadDir(name) // of what is no directory there are none
	for _, e := range entries {
		if !e.IsDir() || hasFiles(t, path.Join(name, e.Name())) {
			return true
		}
	}
	return false
}

// Files reads the files in the machine.
func (r *diskRoot) Files(ctx context.Context) (layers.Tree, error) {
	if err := r.start(ctx, executor.Process{Network: r.network}); err != nil {
		r.end()
		return nil, err
	}
	return r.guest.Files(ctx, r.e.tmp), nil
}

// Close forgets what was not frozen. A machine that has nothing of that kind stays for the next root with the same disk: what
// follows a stage is often that its files are copied.
func (r *diskRoot) Close() error {
	if r.m != nil && r.m.Alive() && !r.dirty && len(r.rest) == 0 {
		r.e.park(r)
	} else {
		r.end()
	}
	return nil
}

// park keeps the machine of a root, and ends the one that was kept before.
func (e *Executor) park(r *diskRoot) {
	kept := *r
	r.m, r.guest, r.active = nil, nil, ""
	e.mu.Lock()
	old := e.parked
	e.parked = &kept
	if e.closed {
		old, e.parked = &kept, old
	}
	e.mu.Unlock()
	if old != nil {
		old.end()
	}
}

// unpark takes the machine that was kept, if it has the disk, and the network and memory that a process needs.
func (r *diskRoot) unpark(n executor.Network, memory int64) bool {
	e := r.e
	e.mu.Lock()
	defer e.mu.Unlock()
	kept := e.parked
	if kept == nil || !slices.Equal(kept.files, r.files) || !kept.m.Alive() || kept.network != n || kept.memory < memory {
		return false
	}
	e.parked = nil
	r.m, r.guest, r.active, r.top = kept.m, kept.guest, kept.active, kept.top
	r.network, r.memory = kept.network, kept.memory
	return true
}
