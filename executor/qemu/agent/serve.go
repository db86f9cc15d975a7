//go:build linux

package main

import (
	"bufio"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/layers"
)

// A server answers requests.
type server struct {
	onDisk  bool // the machine has booted from a disk: that is the root, and the machine is not the agent's alone
	at      place
	control *os.File
	in      *wire.Reader // of control
	input   *os.File

	store  *cas.Store
	e      *overlay.Executor
	root   executor.Root // nil: the machine's own
	disk   string        // of layers
	images int
	net    bool // the network is up

	caches caches
}

// serve is the agent's life.
func serve(onDisk bool) error {
	start := boot
	if onDisk {
		start = bootOnDisk
	}
	at, bootErr := start()
	s := &server{onDisk: onDisk, at: at}
	var err error
	if s.control, err = openPort(wire.PortControl); err != nil {
		return errors.Join(bootErr, err) // the console is all that is left
	}
	if s.input, err = openPort(wire.PortInput); err != nil {
		return err
	}
	if bootErr == nil {
		bootErr = s.getReady(context.Background())
	}
	hello := wire.Hello{Version: wire.Version}
	if bootErr != nil {
		hello.Err = bootErr.Error()
	}
	if err := wire.WriteJSON(s.control, wire.KindHello, hello); err != nil {
		return err
	}
	s.in = wire.NewReader(bufio.NewReaderSize(s.control, 64<<10))
	return answerAll(s.in, s.control, s.answer)
}

func (s *server) answer(ctx context.Context, req wire.Request) (reply wire.Reply, err error) {
	if err := setClock(req.Now); err != nil {
		return reply, err
	}
	if s.onDisk && (req.Export != nil || req.Attach != nil && req.Attach.Keep) {
		return reply, errors.New("the agent does not do that in a machine that has booted from a disk")
	}
	switch {
	case req.Begin != nil:
		err = reseed(req.Begin.Seed)
	case req.Attach != nil:
		err = s.attach(ctx, *req.Attach)
	case req.Run != nil:
		err = s.run(ctx, *req.Run)
	case req.Freeze != nil && s.onDisk:
		unix.Sync()
	case req.Freeze != nil:
		reply.Changed, err = s.freeze(ctx)
	case req.Export != nil:
		reply.Changed, err = s.export(ctx)
	case s.onDisk && (req.List != nil || req.Read != nil || req.Unpack != nil && req.Unpack.Cache == nil):
		err = answerFiles(req, s.in, s.control, unpacker{})
	default:
		err = errors.New("the agent does not know what is asked of it")
	}
	return reply, err
}

// getReady makes everything that a process needs but its files: this is what is saved.
func (s *server) getReady(ctx context.Context) error {
	var err error
	if s.disk, err = findDisk("layers"); err != nil {
		return err
	}
	scratch, err := findDisk("scratch")
	if err != nil {
		return err
	}
	if err := unix.Mount(scratch, s.at.scratch, "ext4", unix.MS_NOATIME, "noinit_itable"); err != nil {
		return fmt.Errorf("mount the writable disk: %w", err)
	}
	if s.store, err = cas.Open(filepath.Join(s.at.scratch, "store")); err != nil {
		return err
	}
	s.e, err = overlay.New(overlay.Options{Store: s.store, Runtime: overlay.Builtin, NoAppArmor: true, OpenCache: s.openCache})
	if err != nil || s.onDisk {
		return err
	}
	if err := s.warmUp(ctx); err != nil {
		return err
	}
	s.root, err = s.e.Open(ctx, nil)
	return err
}

// warmUp starts a process once, so that the supervisor and all that it touches is in memory.
func (s *server) warmUp(ctx context.Context) error {
	r, err := s.e.Open(ctx, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	dir, err := os.MkdirTemp(s.store.TempDir(), "layer-")
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "fs"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "fs", "program"), emptyProgram(), 0o755); err != nil {
		return err
	}
	name, err := s.store.CommitLayer(dir, "")
	if err != nil {
		return err
	}
	if err := r.Add(ctx, layers.Layer{Dir: name}); err != nil {
		return err
	}
	err = r.Run(ctx, executor.Process{Argv: []string{"/program"}, Dir: "/"}, io.Discard)
	var exit *executor.ExitError
	var start *executor.StartError
	if errors.As(err, &exit) || errors.As(err, &start) {
		err = nil // there is nothing in it that could run
	}
	return err
}

// emptyProgram is an ELF file without any code.
func emptyProgram() []byte {
	b := make([]byte, 64+56)
	copy(b, elf.ELFMAG)
	b[elf.EI_CLASS], b[elf.EI_DATA], b[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "riscv64": elf.EM_RISCV}[runtime.GOARCH]
	le := binary.LittleEndian
	le.PutUint16(b[16:], uint16(elf.ET_EXEC))
	le.PutUint16(b[18:], uint16(machine))
	le.PutUint32(b[20:], uint32(elf.EV_CURRENT))
	le.PutUint64(b[32:], 64) // program headers
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	return b
}

// attach mounts an image and puts its layers on the root.
func (s *server) attach(ctx context.Context, a wire.Attach) error {
	at, number, err := s.mountImage(a.Offset, a.Size)
	if err != nil {
		return err
	}
	if !a.Keep {
		s.caches.image, s.caches.partition = at, number
		return nil
	}
	for _, i := range a.Layers {
		dir, err := os.MkdirTemp(s.store.TempDir(), "layer-")
		if err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, "fs"), 0o755); err != nil {
			return err
		}
		name, err := s.store.CommitLayer(dir, "")
		if err != nil {
			return err
		}
		if err := unix.Mount(filepath.Join(at, strconv.Itoa(i)), s.store.LayerPath(name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount layer %d: %w", i, err)
		}
		if err := s.root.Add(ctx, layers.Layer{Dir: name}); err != nil {
			return err
		}
	}
	return nil
}

// mountImage mounts a part of the disk of layers.
func (s *server) mountImage(offset, size int64) (at string, number int32, err error) {
	s.images++
	number = int32(s.images)
	if err := changePartition(s.disk, unix.BLKPG_ADD_PARTITION, partition{start: offset, length: size, number: number}); err != nil {
		return "", 0, err
	}
	at = filepath.Join(s.at.layers, strconv.Itoa(s.images))
	if err := os.Mkdir(at, 0o755); err != nil {
		return "", 0, err
	}
	dev := s.disk + strconv.Itoa(s.images)
	if err := unix.Mount(dev, at, "erofs", unix.MS_RDONLY|unix.MS_NOATIME, ""); err != nil {
		return "", 0, fmt.Errorf("mount %s: %w", dev, err)
	}
	return at, number, nil
}

// send sends the tar of a directory.
func (s *server) send(ctx context.Context, dir string) error {
	w := bufio.NewWriterSize(wire.FrameWriter{W: s.control, Kind: wire.KindTar}, 128<<10)
	if err := layers.WriteChange(ctx, w, dir); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return wire.Write(s.control, wire.KindTar, nil)
}

func (s *server) freeze(ctx context.Context) (changed bool, err error) {
	c, err := s.root.Freeze(ctx)
	if err != nil {
		return false, err
	}
	l, err := c.Layer(ctx)
	if err != nil || l.IsZero() {
		return false, err
	}
	return true, s.send(ctx, s.store.LayerPath(l.Dir))
}

// export sends what Freeze would, and leaves it.
func (s *server) export(ctx context.Context) (changed bool, err error) {
	upper := s.root.(interface{ Upper() string }).Upper()
	if upper == "" {
		return false, nil
	}
	return true, s.send(ctx, upper)
}

func (s *server) run(ctx context.Context, r wire.Run) (err error) {
	p := r.Process
	if s.onDisk {
		if err := tameSystem(); err != nil {
			return err
		}
	}
	if p.Network == executor.NetworkHost && !s.net && !s.onDisk {
		if err := networkUp(); err != nil {
			return err
		}
		if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver "+nameServer+"\n"), 0o644); err != nil {
			return err
		}
		s.net = true
	}
	s.caches.begin(r.Caches)
	defer func() { err = errors.Join(err, s.closeCaches(ctx)) }()
	if p.Terminal {
		return s.runTerminal(ctx, p, r)
	}
	var pumped chan struct{}
	if r.Input {
		in, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer in.Close()
		p.Stdin = in
		pumped = make(chan struct{})
		go func() {
			defer close(pumped)
			pump(wire.NewReader(s.input), w, nil)
		}()
		// The host ends the input when it has the reply's announcement, an empty output.
	}
	err = s.runProcess(ctx, p, wire.FrameWriter{W: s.control, Kind: wire.KindOutput})
	if pumped != nil {
		p.Stdin.Close()
		if werr := wire.Write(s.control, wire.KindInput, nil); werr != nil {
			return werr
		}
		<-pumped
	}
	return err
}

func (s *server) runProcess(ctx context.Context, p executor.Process, out io.Writer) error {
	if s.onDisk {
		return s.e.RunHere(ctx, p, out)
	}
	return s.root.Run(ctx, p, out)
}

// runTerminal runs a process on a terminal of this machine, and joins it to the ports.
func (s *server) runTerminal(ctx context.Context, p executor.Process, r wire.Run) error {
	master, tty, err := openTerminal()
	if err != nil {
		return err
	}
	defer master.Close()
	resize := func(size wire.WindowSize) {
		_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	}
	resize(wire.WindowSize{Rows: r.Rows, Cols: r.Cols})
	p.Stdin = tty
	in, err := dup(master)
	if err != nil {
		tty.Close()
		return err
	}
	pumped := make(chan struct{})
	go func() {
		defer close(pumped)
		pump(wire.NewReader(s.input), in, resize)
	}()
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(wire.FrameWriter{W: s.control, Kind: wire.KindOutput}, master)
		if errors.Is(err, unix.EIO) { // nobody has the other end
			err = nil
		}
		copied <- err
	}()
	err = s.runProcess(ctx, p, nil)
	tty.Close()
	err = errors.Join(err, <-copied)
	if werr := wire.Write(s.control, wire.KindInput, nil); werr != nil {
		return werr
	}
	<-pumped
	return err
}

func openTerminal() (master, tty *os.File, err error) {
	const pts = "/dev/pts"
	if _, err := os.Stat(pts + "/ptmx"); err != nil {
		if err := os.MkdirAll(pts, 0o755); err != nil {
			return nil, nil, err
		}
		if err := unix.Mount("devpts", pts, "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
			return nil, nil, fmt.Errorf("mount %s: %w", pts, err)
		}
	}
	if master, err = os.OpenFile(pts+"/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		tty, err = os.OpenFile(filepath.Join(pts, strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	return master, tty, nil
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
