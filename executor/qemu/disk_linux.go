package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
	"github.com/ocurrent/obx/executor/qemu/words"
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

	m       *machine
	guest   *guest.Guest
	network executor.Network // of m
	memory  int64            // of m, in bytes
	active  string           // the file that m writes to, in the store's TempDir
	node    int              // number of m's topmost node
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
		plain := r.m.agent.Plain()
		if l := p.Limits; plain && (l.Memory > 0 || l.CPUs > 0 || l.PIDs > 0 || l.Disk > 0 || l.Inodes > 0) {
			r.e.warn("limits of memory, processors, processes and the disk do not apply in machines without a sandbox: they have what the machine has")
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
	if !r.m.alive() || r.m.failed() {
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
	account := r.e.options.Guest.OrDefault(r.e.options.OS)
	if r.e.foreign && account.Key == "" {
		return fmt.Errorf("a machine of %s is reached by ssh: give the private key with --qemu-ssh-key", r.e.options.OS)
	}
	if err := r.e.getReadyForDisks(ctx); err != nil {
		return err
	}
	if r.active, err = r.newFile(ctx, r.files[len(r.files)-1]); err != nil {
		return err
	}
	scratch, err := r.e.newScratch(r.e.scratch)
	if err != nil {
		return err
	}
	defer scratch.Close()
	firmware, err := r.e.options.firmware()
	if err != nil {
		return err
	}
	if firmware != "" {
		own := filepath.Join(filepath.Dir(r.e.scratch), "firmware")
		if err := copyForQEMU(own, firmware); err != nil {
			return fmt.Errorf("firmware: %w", err)
		}
		firmware = own
	}
	d := &diskDevice{
		firmware: firmware,
		files:    append(append([]string(nil), r.files...), r.active), port: account.Port,
		online: n == executor.NetworkHost, foreign: r.e.foreign,
	}
	r.network, r.memory, r.node = n, memory, len(r.files)
	for try := 1; ; try++ {
		if d.forward, err = freeAddress(); err != nil {
			return err
		}
		if r.m, err = r.e.start(r.e.hardware(memory), machineFiles{disk: d, scratch: scratch}); err != nil {
			return err
		}
		if err = r.m.unlock(ctx, r.e.options.BootTimeout, &guest.BootError{Limit: r.e.options.BootTimeout}); err == nil {
			break
		}
		if try == maxForwards || !strings.Contains(err.Error(), "host forwarding") { // somebody else has taken the port
			return err
		}
		r.e.end(r.m)
		r.m = nil
	}
	o := r.e.options
	r.guest, err = guest.Reach(ctx, r.m.agent, guest.Way{Account: account, Addr: d.forward, OS: o.OS, Arch: o.Arch, Foreign: r.e.foreign, Limit: o.BootTimeout, Warn: r.e.warn})
	if err != nil {
		var late *guest.BootError
		if errors.As(err, &late) {
			late.Console += " " + words.Last(r.m.console.String(), 2)
			return late
		}
		return r.why(ctx, err)
	}
	return nil
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

// end ends the machine and drops what is not frozen.
func (r *diskRoot) end() {
	if r.guest != nil {
		r.guest.Close()
		r.guest = nil
	}
	if r.m != nil {
		r.e.end(r.m)
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
	if err := r.m.switchDisk(ctx, r.node, next); err != nil {
		return err
	}
	r.active = next
	r.node++
	return nil
}

// shutDown has the machine's system write all that it holds back, and end: of others than Linux it is not known that a sync is enough.
func (r *diskRoot) shutDown(ctx context.Context) error {
	if err := r.guest.ShutDown(ctx); err != nil {
		return r.why(ctx, err)
	}
	limit := r.e.options.BootTimeout
	select {
	case <-r.m.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(limit):
		return fmt.Errorf("the machine did not shut down within %v (--qemu-boot-time)", limit)
	}
	if !r.m.wentDown() {
		return r.m.Why(errors.New("it was told to shut down, and did not end so"))
	}
	r.guest.Close()
	r.e.end(r.m)
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
	if err := errors.Join(to.Chmod(0o644), copySparse(to, file)); err != nil {
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

// switchDisk has a machine write to another file from now on.
func (m *machine) switchDisk(ctx context.Context, node int, file string) error {
	set := node + 100
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
	name := fmt.Sprintf("disk%d", node+1)
	add := map[string]any{
		"driver": "qcow2", "node-name": name, "backing": nil,
		"file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set), "locking": "off", "cache": map[string]any{"no-flush": true}},
	}
	if err := m.qmp.call(ctx, "blockdev-add", add, nil); err != nil {
		return err
	}
	return m.qmp.call(ctx, "blockdev-snapshot", map[string]any{"node": fmt.Sprintf("disk%d", node), "overlay": name}, nil)
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
	if r.m != nil && r.m.alive() && !r.dirty && len(r.rest) == 0 {
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
	if kept == nil || !slices.Equal(kept.files, r.files) || !kept.m.alive() || kept.network != n || kept.memory < memory {
		return false
	}
	e.parked = nil
	r.m, r.guest, r.active, r.node, r.top = kept.m, kept.guest, kept.active, kept.node, kept.top
	r.network, r.memory = kept.network, kept.memory
	return true
}
