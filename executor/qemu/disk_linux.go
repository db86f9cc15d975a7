package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// A disk image is a chain of qcow2 files in layers: disk/000.qcow2, the base, and for each step one more that has what the
// step has changed. Each names the one below it by that name, so the bytes do not depend on where they lie, and
// whoever pulls the image has a directory that qemu-img understands. QEMU is told of each file by obx all the same.
//
// Layers of other files, which copies make, are unpacked in the guest when it next runs something; from then on they are
// part of the disk.

const (
	// maxChain is how many files a chain has. The next one has all changes since the base.
	maxChain = 24
)

// diskFiles finds the disk in a chain of layer directories (paths, base first). The lowest one tells whether there is one: what an
// ordinary image has in disk/ are files like any. files is empty if there is none; rest are the layers that are not on the disk yet.
func diskFiles(dirs []string) (files, rest []string, err error) {
	known := map[string]*diskHeader{}
	paths := map[string]string{}
	top := ""
	for i, d := range dirs {
		file, h, err := diskIn(d, i == 0)
		if err != nil {
			return nil, nil, err
		}
		if h == nil {
			if i == 0 {
				return nil, nil, nil
			}
			rest = append(rest, d)
			continue
		}
		name := filepath.Base(file)
		if i == 0 {
			name = layers.DiskName(0) // containerDisks name theirs as they like
		}
		if known[name] != nil {
			return nil, nil, fmt.Errorf("a layer has a disk with the name %s", name)
		}
		known[name], paths[name], top, rest = h, file, name, nil
	}
	for name := top; name != ""; {
		h := known[name]
		if h == nil {
			return nil, nil, fmt.Errorf("the disk %s is in no layer", name)
		}
		delete(known, name) // so that no chain is a circle
		files = append([]string{paths[name]}, files...)
		name = h.backing
	}
	return files, rest, nil
}

// diskIn finds the file of a disk in a layer directory and reads its header, which is nil if there is none. A layer may have anything
// in the file's place: no link is followed, and nothing but a regular file is opened.
func diskIn(dir string, base bool) (string, *diskHeader, error) {
	d, err := os.OpenFile(filepath.Join(dir, layers.DiskDir), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return "", nil, err
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return !e.Type().IsRegular() || path.Ext(e.Name()) != ".qcow2" || !base && !layers.IsDiskName(e.Name())
	})
	switch {
	case len(entries) == 0:
		return "", nil, nil
	case len(entries) > 1:
		return "", nil, fmt.Errorf("a layer has %d disks", len(entries))
	}
	name := entries[0].Name()
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	h, err := parseDisk(f)
	if err != nil {
		return "", nil, fmt.Errorf("disk image %s: %w", name, err)
	}
	return filepath.Join(dir, layers.DiskDir, name), &h, nil
}

// A diskRoot is a machine that runs from a disk.
type diskRoot struct {
	e     *Executor
	files []string // of the chain, base first
	rest  []string // layer directories that are not on the disk
	top   int      // number of the topmost file

	m       *machine
	guest   *guest
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

// newFile makes the next file of the chain, DIR/fs/disk/NNN.qcow2.
func (r *diskRoot) newFile(ctx context.Context) (string, error) {
	f, err := os.Open(r.files[len(r.files)-1])
	if err != nil {
		return "", err
	}
	h, err := parseDisk(f)
	f.Close()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(r.e.tmp, "disk-")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "fs", layers.DiskDir, layers.DiskName(r.top+1))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	if err := qemuImg(ctx, "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", layers.DiskName(r.top), file, strconv.FormatInt(h.size, 10)); err != nil {
		return "", err
	}
	return file, nil
}

func qemuImg(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("disk images need qemu-img: %w: try `apt-get install qemu-utils`", err)
	}
	if err != nil {
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, lastLines(string(out), 2))
	}
	return nil
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
	err := r.guest.process(ctx, p, out)
	var exit *executor.ExitError
	var start *executor.StartError
	if err != nil && !errors.As(err, &exit) && !errors.As(err, &start) {
		err = r.why(ctx, err)
	}
	return err
}

// why explains an error of a connection.
func (r *diskRoot) why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the process was stopped: %w", context.Cause(ctx))
	}
	if !r.m.alive() || r.m.failed() {
		return r.m.why(err)
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
		if err := r.guest.addLayer(ctx, dir); err != nil {
			return r.why(ctx, err)
		}
		r.there++
	}
	return nil
}

func (r *diskRoot) boot(ctx context.Context, n executor.Network, memory int64) (err error) {
	guest := r.e.options.Guest.orDefault(r.e.options.OS)
	if r.e.foreign && guest.Key == "" {
		return fmt.Errorf("a machine of %s is reached by ssh: give the private key with --qemu-ssh-key", r.e.options.OS)
	}
	if err := r.e.getReadyForDisks(ctx); err != nil {
		return err
	}
	if r.active, err = r.newFile(ctx); err != nil {
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
		files:    append(append([]string(nil), r.files...), r.active), port: guest.Port,
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
		if err = r.m.unlock(ctx, r.e.options.BootTimeout, &bootError{limit: r.e.options.BootTimeout}); err == nil {
			break
		}
		if try == maxForwards || !strings.Contains(err.Error(), "host forwarding") { // somebody else has taken the port
			return err
		}
		r.e.end(r.m)
		r.m = nil
	}
	if r.guest, err = r.reach(ctx, guest, d.forward); err != nil {
		var late *bootError
		if errors.As(err, &late) {
			late.console += " " + lastLines(r.m.console.String(), 2)
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
		r.guest.close()
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
		if err := squash(ctx, r.e.tmp, r.files, done); err != nil {
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
	if err := r.guest.sync(ctx); err != nil {
		return r.why(ctx, err)
	}
	r.top++
	r.files = append(r.files, r.active)
	next, err := r.newFile(ctx)
	r.files = r.files[:len(r.files)-1]
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
	r.m.ending.Store(true)
	if err := r.guest.ask(ctx, wire.Request{Freeze: &wire.Freeze{ShutDown: true}}, nil, nil); err != nil {
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
		return r.m.why(errors.New("it was told to shut down, and did not end so"))
	}
	r.guest.close()
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
	h, err := parseDisk(to)
	if err != nil {
		return fmt.Errorf("QEMU has written a disk that is not whole: %w", err)
	}
	if h.backing != layers.DiskName(r.top-1) {
		return fmt.Errorf("QEMU has written a disk upon %s", h.backing)
	}
	return os.Rename(to.Name(), file)
}

// squash makes file, the next of a chain, one that has all changes since the base. Who has it open goes on with the old one.
func squash(ctx context.Context, tmp string, chain []string, file string) error {
	dir, err := os.MkdirTemp(tmp, "squash-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// qemu-img follows names: in a directory of links, they are what they are in the image.
	for i, f := range chain {
		name := filepath.Base(f)
		if i == 0 {
			name = layers.DiskName(0)
		}
		if err := os.Symlink(f, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	top := filepath.Join(dir, filepath.Base(file))
	if err := copyFile(top, file); err != nil {
		return err
	}
	// Not convert: with a backing file it copies what the topmost file has, and no more.
	cmd := exec.CommandContext(ctx, "qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", layers.DiskName(0), filepath.Base(file))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img rebase: %w: %s", err, lastLines(string(out), 2))
	}
	if err := os.Chmod(top, 0o644); err != nil {
		return err
	}
	return os.Rename(top, file)
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
	if _, h, err := diskIn(dir, false); h != nil || err != nil {
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
